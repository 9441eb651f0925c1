// Package proxy forwards plain requests to one upstream, as bearer requests
// (RFC 6750 section 2.1). It is [httputil.ReverseProxy] with a RoundTripper
// that sets the Authorization header, and passes everything else on as it
// came: bodies and events stream both ways, websockets, trailers and interim
// responses go through, path and query are not touched. What must not enter is
// refused by a [Guard].
//
// The tokens come from a [TokenSource]; the proxy knows nothing of how they
// are got. It never follows a redirect and never sends a token to another host
// than the upstream's.
package proxy

import (
	"bufio"
	"errors"
	"io"
	"log"
	"maps"
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Recorder is told of every request, for metrics. It must not block.
type Recorder interface {
	RequestStarted()
	// RequestServed reports what the client was answered: 499 if it left
	// before there was an answer.
	RequestServed(method string, status int, took time.Duration)
	// RequestFailed reports an answer of the proxy's own, or one that the
	// upstream broke off; reason is one word of a fixed set: see Reasons.
	RequestFailed(reason string)
	// TokenRefused reports a 401 of the upstream on account of a token, and
	// what was done, one word of a fixed set: see Outcomes.
	TokenRefused(outcome string)
}

// Config is what a proxy is made of. Upstream and Tokens are required.
type Config struct {
	// Upstream is where requests go: scheme, host and a path that is put
	// before theirs.
	Upstream  *url.URL
	Tokens    TokenSource
	Transport http.RoundTripper // nil: NewTransport(TransportConfig{})
	// ViaProxy says that Transport has a proxy. For an http upstream that wants
	// whole URLs, which cannot hold every path that may be sent otherwise.
	ViaProxy bool
	// Unrepeatable counts the requests that have a token and no answer yet,
	// and whose bodies may be too large to be sent again: if their token is
	// killed now, the app sees a 401 that no replay can mend. nil: nobody asks.
	Unrepeatable *InFlight
	// MaxInFlight is the most requests that are served at a time, upgraded
	// connections among them. Any more are refused at once; 0: no limit.
	MaxInFlight int
	// BodyPatience bounds how long a client may send nothing of its body
	// before there is an answer; 0: no limit. gRPC has limits of its own.
	BodyPatience time.Duration
	Guard        Guard
	Log          *zap.Logger // nil: silent
	Recorder     Recorder    // nil: none
}

// New returns the handler that forwards requests as cfg says.
func New(cfg Config) http.Handler {
	if cfg.Transport == nil {
		cfg.Transport = NewTransport(TransportConfig{})
	}
	if cfg.Unrepeatable == nil {
		cfg.Unrepeatable = &InFlight{}
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Recorder == nil {
		cfg.Recorder = noRecorder{}
	}
	h := &handler{upstream: cfg.Upstream, recorder: cfg.Recorder, log: OncePerMinute(cfg.Log), maxInFlight: math.MaxInt64, patience: cfg.BodyPatience}
	h.guard = cfg.Guard.rules(strings.TrimSuffix(cfg.Upstream.EscapedPath(), "/"), cfg.ViaProxy && cfg.Upstream.Scheme == "http")
	if cfg.MaxInFlight > 0 {
		h.maxInFlight = int64(cfg.MaxInFlight)
	}
	h.budget.Store(min(recordBudget, min(h.maxInFlight, recordBudget)*recordShare))
	h.reverse = &httputil.ReverseProxy{
		Rewrite:        h.rewrite,
		Transport:      &bearer{tokens: cfg.Tokens, next: cfg.Transport, unrepeatable: cfg.Unrepeatable, recorder: cfg.Recorder, log: h.log},
		BufferPool:     &bufferPool{},
		ModifyResponse: h.answered,
		ErrorHandler:   h.fail,
		ErrorLog:       log.New(bodyLog{h.log}, "", 0),
	}
	return h
}

type handler struct {
	upstream *url.URL
	guard    *rules
	reverse  *httputil.ReverseProxy
	budget   atomic.Int64 // see recording
	recorder Recorder
	log      *zap.Logger

	patience    time.Duration
	maxInFlight int64
	inFlight    atomic.Int64
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	h.recorder.RequestStarted()
	observed := &response{ResponseWriter: w}
	defer func() { // also when ReverseProxy aborts the connection by a panic
		h.recorder.RequestServed(r.Method, observed.status, time.Since(start))
	}()
	if f := h.guard.refusal(r); f != nil {
		h.refuse(observed, r, f)
		return
	}
	if h.inFlight.Add(1) > h.maxInFlight {
		h.inFlight.Add(-1)
		h.shed(observed, r)
		return
	}
	defer h.inFlight.Add(-1)
	h.forward(observed, r)
}

func (h *handler) forward(w *response, r *http.Request) {
	aborted := true
	defer func() {
		if begun := w.status != 0 && w.status != statusClientGone; aborted && begun && r.Context().Err() == nil {
			h.recorder.RequestFailed(reasonBrokeOff)
			h.log.Warn("the upstream broke off its answer", zap.Int("status", w.status))
		}
	}()
	askForNoUpgradeButWebSocket(r)
	if r.ContentLength != 0 {
		body := &clientBody{ReadCloser: r.Body, client: w.ResponseWriter, patience: h.patience, ownDeadline: r.ProtoMajor == 2, unhurried: h.patience == 0 || isGRPC(r)}
		r.Body = body
		defer body.handBack()
	}
	h.reverse.ServeHTTP(w, r)
	disown(w.Header()) // whose fields are trailers by now
	dropFraming(w.Header(), http.TrailerPrefix)
	aborted = false
}

// isGRPC reports whether r may be a stream that pauses before it is answered.
func isGRPC(r *http.Request) bool {
	contentType := r.Header["Content-Type"]
	return r.ProtoMajor == 2 && len(contentType) == 1 && strings.HasPrefix(contentType[0], "application/grpc")
}

// answered is told of every answer of the upstream. Those of HTTP/2 are not
// looked at as closely by a Transport as those of HTTP/1.1.
func (h *handler) answered(resp *http.Response) error {
	if resp.StatusCode > 999 || resp.StatusCode < 100 { // a server panics at them
		return errStatus
	}
	if resp.ContentLength < 0 { // if it is said, then not as a number
		delete(resp.Header, "Content-Length")
	}
	if resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified {
		// A body is missing, if it tells the length that another answer would have (RFC 9110 section 8.6).
		_ = resp.Body.Close()
		resp.Body = http.NoBody
	}
	disown(resp.Header)
	if resp.Request == nil { // as from a transport that is not net/http's
		return nil
	}
	hangUp(resp.Header, resp.Request)
	if body := bodyOf(resp.Request); body != nil && body.client != nil {
		body.client.liftDeadline(false)
	}
	return nil
}

var errStatus = errors.New("the status of an answer is not one of three digits")

// refuse answers a request that may not enter. Its body is of no interest, but
// the server reads some of it even so.
func (h *handler) refuse(w http.ResponseWriter, r *http.Request, f *failure) {
	if f.status == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", h.guard.allow)
	}
	r.Trailer = nil // the server keeps r until the body has come
	if r.ContentLength != 0 && r.ProtoMajor == 1 {
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(shedPatience))
		w.Header().Set("Connection", "close")
	}
	h.answer(w, *f, nil)
}

// askForNoUpgradeButWebSocket takes other offers out, which a server may ignore
// (RFC 9110 section 7.8): Java's client offers h2c with every first request. In
// a tunnel of HTTP/2 requests would pass that nobody has looked at.
func askForNoUpgradeButWebSocket(r *http.Request) {
	offer := r.Header["Upgrade"]
	if offer != nil && (len(offer) > 1 || !strings.EqualFold(offer[0], "websocket") || !r.ProtoAtLeast(1, 1)) {
		delete(r.Header, "Upgrade")
	}
}

// shedPatience bounds how long the body of a refused request may take to come.
const shedPatience = 5 * time.Second

// shed refuses a request over the cap, at once. Only then it takes a small
// body, so that the connection can be kept.
func (h *handler) shed(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 || r.ProtoMajor != 1 { // HTTP/2 gives up a stream, and keeps the connection
		h.answer(w, overloaded, nil)
		return
	}
	rest := http.NewResponseController(w)
	_ = rest.SetReadDeadline(time.Now().Add(shedPatience))
	if r.ContentLength < 0 || r.ContentLength > recordLimit || r.Header["Expect"] != nil {
		w.Header().Set("Connection", "close")
		h.answer(w, overloaded, nil)
		return
	}
	_ = rest.EnableFullDuplex() // or the server would read the body first
	h.answer(w, overloaded, nil)
	_ = rest.Flush()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		panic(http.ErrAbortHandler) // what is left of the body is no request
	}
}

func (h *handler) rewrite(pr *httputil.ProxyRequest) {
	pr.SetURL(h.upstream)
	// ReverseProxy drops what it cannot parse of a query, for the sake of
	// those who decide by it. We do not, so it goes on as it came.
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery
	// Nor does net/url escape the path anew: it would also turn %2F into a slash.
	if escapedAnew(pr.In.URL) {
		pr.Out.URL.Opaque = h.guard.base + rawPath(pr.In)
	}
	pr.Out.Header.Del("Authorization")
	// What the app says of its own clients is its to say.
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if values, ok := pr.In.Header[name]; ok {
			pr.Out.Header[name] = values
		}
	}
	if pr.Out.Body != nil {
		pr.Out.Body = record(newRequestBody(pr), pr.In.ContentLength, &h.budget).play()
	}
}

// isNetworkPath reports whether net/http would take path for more than a path
// if it were a URL's Opaque.
func isNetworkPath(path string) bool { return strings.HasPrefix(path, "//") }

// response notes the status of the answer.
type response struct {
	http.ResponseWriter
	status   int
	interims []interim
}

// An interim is an answer that precedes the answer.
type interim struct {
	status int
	header http.Header
}

// maxInterims is more than upstreams are known to send.
const maxInterims = 10

// WriteHeader is told of interim answers by the goroutine that reads from the
// upstream. In HTTP/2 it reads for others as well, so it must not wait for this
// client: they go out with the answer.
func (r *response) WriteHeader(status int) {
	switch {
	case status == http.StatusContinue: // the server says it when the body is read, which the upstream's 100 brings about
	case status == http.StatusSwitchingProtocols: // nobody has switched: that would be a case for Hijack
	case status >= 200:
		r.writeInterims()
		r.status = status
		if h := r.Header(); h["Content-Type"] == nil {
			h["Content-Type"] = nil // or the server would guess one
		}
		r.ResponseWriter.WriteHeader(status)
	case len(r.interims) < maxInterims:
		header := r.Header().Clone()
		disown(header)
		dropFraming(header, "")
		r.interims = append(r.interims, interim{status, header})
	}
}

func (r *response) writeInterims() {
	if r.interims == nil {
		return
	}
	h := r.Header()
	last := maps.Clone(h)
	for _, i := range r.interims {
		clear(h)
		maps.Copy(h, i.header)
		r.ResponseWriter.WriteHeader(i.status)
	}
	clear(h)
	maps.Copy(h, last)
	r.interims = nil
}

// Hijack is called when the upstream has switched protocols.
func (r *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.status = http.StatusSwitchingProtocols
	conn, buffered, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil && buffered.Reader.Buffered() > 0 {
		early, _ := buffered.Peek(buffered.Reader.Buffered())
		conn = &earlyConn{Conn: conn, early: early}
	}
	return conn, buffered, err
}

// An earlyConn begins with what a client sent before its upgrade was granted.
// ReverseProxy looks at the connection alone.
type earlyConn struct {
	net.Conn
	early []byte
}

func (c *earlyConn) Read(p []byte) (int, error) {
	if len(c.early) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.early)
	c.early = c.early[n:]
	return n, nil
}

// CloseWrite is what ReverseProxy looks for at the end of one direction.
func (c *earlyConn) CloseWrite() error {
	if conn, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return conn.CloseWrite()
	}
	return errors.ErrUnsupported
}

// Unwrap lets [http.ResponseController] find the methods we do not have.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// A bufferPool spares the 32 KiB that ReverseProxy allocates for each response.
type bufferPool struct{ pool sync.Pool }

const bufferSize = 32 << 10

func (p *bufferPool) Get() []byte {
	if b, ok := p.pool.Get().(*[bufferSize]byte); ok {
		return b[:]
	}
	return make([]byte, bufferSize)
}

func (p *bufferPool) Put(b []byte) { p.pool.Put((*[bufferSize]byte)(b)) }

// OncePerMinute drops all but the first line of a kind in a minute: what goes
// wrong with one request tends to go wrong with many.
func OncePerMinute(l *zap.Logger) *zap.Logger {
	return l.WithOptions(zap.WrapCore(func(core zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(core, time.Minute, 1, 0)
	}))
}

// A bodyLog is told by ReverseProxy of bodies that break off, in words that may
// be the upstream's own. So it has others.
type bodyLog struct{ log *zap.Logger }

func (l bodyLog) Write(p []byte) (int, error) {
	l.log.Debug("an answer's body could not be read to its end")
	return len(p), nil
}

type noRecorder struct{}

func (noRecorder) RequestStarted()                          {}
func (noRecorder) RequestServed(string, int, time.Duration) {}
func (noRecorder) RequestFailed(string)                     {}
func (noRecorder) TokenRefused(string)                      {}
