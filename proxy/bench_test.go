package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// The client and the upstream of BenchmarkProxy and BenchmarkNaive allocate
// nothing, so what is reported are the proxy's own allocations.

func BenchmarkProxy(b *testing.B) {
	benchmark(b, func(upstream *url.URL) http.Handler {
		return proxy.New(proxy.Config{
			Upstream: upstream, Tokens: &tokens{token: canary}, Guard: proxy.Guard{Hosts: []string{"127.0.0.1", "app"}}, BodyPatience: time.Minute,
		})
	})
}

// BenchmarkNaive is what one would write in five lines.
func BenchmarkNaive(b *testing.B) {
	benchmark(b, func(upstream *url.URL) http.Handler {
		naive := httputil.NewSingleHostReverseProxy(upstream)
		//lint:ignore SA1019 it is naive
		direct := naive.Director
		//lint:ignore SA1019 as above
		naive.Director = func(r *http.Request) {
			direct(r)
			r.Header.Set("Authorization", "Bearer "+canary)
		}
		naive.Transport = http.DefaultTransport.(*http.Transport).Clone()
		return naive
	})
}

func benchmark(b *testing.B, handler func(upstream *url.URL) http.Handler) {
	const head = " / HTTP/1.1\r\nHost: app\r\nUser-Agent: bench\r\nAccept: */*\r\n"
	for _, exchange := range []struct{ name, request string }{
		{"GET-1KiB", "GET" + head + "\r\n"},
		{"POST-16KiB", "POST" + head + "Content-Length: 16384\r\n\r\n" + strings.Repeat("x", 16<<10)},
	} {
		for _, conns := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/conns=%d", exchange.name, conns), func(b *testing.B) {
				s := httptest.NewServer(handler(benchUpstream(b)))
				defer s.Close()
				b.ReportAllocs()
				b.SetParallelism(max(conns/runtime.GOMAXPROCS(0), 1))
				call := func(more func() bool) {
					conn, err := net.Dial("tcp", s.Listener.Addr().String())
					if err != nil {
						b.Error(err)
						return
					}
					defer func() { _ = conn.Close() }()
					from, request := bufio.NewReader(conn), []byte(exchange.request)
					for more() {
						if _, err := conn.Write(request); err != nil {
							b.Error(err)
							return
						}
						if ok, err := message(from, []byte("HTTP/1.1 200 OK")); err != nil || !ok {
							b.Error("refused: ", err)
							return
						}
					}
				}
				if conns == 1 {
					call(b.Loop)
					return
				}
				b.RunParallel(func(pb *testing.PB) { call(pb.Next) })
			})
		}
	}
}

// benchUpstream answers 1 KiB to whoever has the token.
func benchUpstream(b *testing.B) *url.URL {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = listener.Close() })
	good := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1<<10))
	bad := []byte("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				from := bufio.NewReader(conn)
				for {
					authorized, err := message(from, []byte("Authorization: Bearer "+canary+"\r\n"))
					answer := good
					if !authorized {
						answer = bad
					}
					if err != nil {
						return
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return &url.URL{Scheme: "http", Host: listener.Addr().String()}
}

// message reads a message to its end and tells whether a line of its head
// begins with this text.
func message(r *bufio.Reader, text []byte) (found bool, err error) {
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return false, err
		}
		found = found || bytes.HasPrefix(line, text)
		if value, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return false, err
			}
		}
		if len(line) == len("\r\n") {
			_, err := r.Discard(length)
			return found, err
		}
	}
}

// BenchmarkRoundTrip shows what we add to a bare ReverseProxy, without
// net/http's server and transport.
func BenchmarkRoundTrip(b *testing.B) {
	upstream := &url.URL{Scheme: "http", Host: "api.test"}
	transport := stub{strings.Repeat("x", 1<<10)}
	for _, method := range []string{"GET", "POST"} {
		for name, h := range map[string]http.Handler{
			"ours": proxy.New(proxy.Config{Upstream: upstream, Tokens: &tokens{token: canary}, Transport: transport}),
			"bare": &httputil.ReverseProxy{Rewrite: func(pr *httputil.ProxyRequest) { pr.SetURL(upstream) }, Transport: transport, BufferPool: &buffers{}},
		} {
			b.Run(method+"/"+name, func(b *testing.B) {
				ctx, cancel := context.WithCancel(b.Context())
				defer cancel()
				body := strings.NewReader(strings.Repeat("x", 16<<10))
				r := httptest.NewRequestWithContext(ctx, method, "/orders?a=b", nil)
				r.Header = http.Header{"User-Agent": {"bench"}, "Accept": {"*/*"}}
				w := sink{http.Header{}}
				b.ReportAllocs()
				for b.Loop() {
					if clear(w.header); method == "POST" {
						_, _ = body.Seek(0, io.SeekStart)
						r.Body, r.ContentLength = io.NopCloser(body), body.Size()
					}
					h.ServeHTTP(w, r)
				}
			})
		}
	}
}

// stub answers whatever it is asked.
type stub struct{ body string }

func (s stub) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
	}
	return &http.Response{
		StatusCode: http.StatusOK, Request: r, ContentLength: int64(len(s.body)), Body: io.NopCloser(strings.NewReader(s.body)),
		Header: http.Header{"Content-Type": {"application/json"}, "Content-Length": {"1024"}},
	}, nil
}

type sink struct{ header http.Header }

func (s sink) Header() http.Header         { return s.header }
func (s sink) WriteHeader(int)             {}
func (s sink) Write(p []byte) (int, error) { return len(p), nil }

type buffers struct{ sync.Pool }

func (p *buffers) Get() []byte {
	if b, ok := p.Pool.Get().(*[32 << 10]byte); ok {
		return b[:]
	}
	return make([]byte, 32<<10)
}

func (p *buffers) Put(b []byte) { p.Pool.Put((*[32 << 10]byte)(b)) }
