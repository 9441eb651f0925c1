package proxy

import (
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
)

// A requestBody is the client's body on its way upstream. It remembers whether
// it was the client that broke it off, and carries the announced trailers over:
// the server learns their values at the end of the body, when ReverseProxy has
// long made its copy of the request.
type requestBody struct {
	io.Reader
	client  *clientBody // nil: it has no deadline
	in, out http.Header // trailers
	ended   atomic.Bool
	broken  atomic.Bool
}

func newRequestBody(pr *httputil.ProxyRequest) *requestBody {
	b := &requestBody{Reader: pr.Out.Body}
	b.client, _ = pr.In.Body.(*clientBody)
	if len(pr.In.Trailer) > 0 {
		b.in, b.out = pr.In.Trailer, http.Header{}
		for name := range pr.In.Trailer {
			b.out[name] = nil
		}
		pr.Out.Trailer = b.out
	}
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		for name := range b.out { // not those of in: it may hold more than was announced
			b.out[name] = b.in[name]
		}
		b.ended.Store(true)
	case errors.Is(err, errClosed):
	default:
		b.broken.Store(true)
	}
	return n, err
}

// hangUp has the connection to the client closed after an answer that comes
// before the end of the client's body. That also lets the answer go out at
// once: the server would else read the rest of the body first.
func hangUp(answer http.Header, out *http.Request) {
	if out.Body == nil || out.ProtoMajor != 1 { // the client's, which ReverseProxy leaves as it was
		return
	}
	if body := bodyOf(out); body == nil || !body.ended.Load() {
		answer.Set("Connection", "close")
	}
}

// bodyOf returns the body of a request that rewrite has made, nil if it has none.
func bodyOf(out *http.Request) *requestBody {
	if p, ok := out.Body.(*playback); ok {
		return p.source
	}
	return nil
}
