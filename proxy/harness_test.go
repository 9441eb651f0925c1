package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// canary is the token that all tests begin with. After each of them it is
// looked for in the log.
const canary = "canary-token.1"

// A sidecar is a proxy behind a server of its own.
type sidecar struct {
	*httptest.Server
	tokens   *tokens
	recorder *recorder
	logs     *observer.ObservedLogs
}

// start serves a proxy for upstream, with a fake for whatever cfg leaves out.
func start(t testing.TB, upstream string, cfg proxy.Config) *sidecar {
	t.Helper()
	return startFor(t, 1, upstream, cfg)
}

// startFor is start, for clients that send in HTTP/1.1 or HTTP/2.
func startFor(t testing.TB, major int, upstream string, cfg proxy.Config) *sidecar {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	s := &sidecar{tokens: &tokens{token: canary}, recorder: newRecorder(), logs: logs}
	cfg.Log, cfg.Recorder = zap.New(zapcore.NewTee(core, zaptest.NewLogger(t).Core())), s.recorder
	if cfg.Tokens == nil {
		cfg.Tokens = s.tokens
	}
	if cfg.BodyPatience == 0 {
		cfg.BodyPatience = patience // as in use, and more than any test takes
	}
	if cfg.Transport == nil {
		cfg.Transport = proxy.NewTransport(proxy.TransportConfig{})
	}
	var err error
	if cfg.Upstream, err = url.Parse(upstream); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup // a server that is closed waits for requests of HTTP/1.1 only
	h := proxy.New(cfg)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		running.Add(1)
		defer running.Done()
		h.ServeHTTP(w, r)
	}))
	complaints := &buffer{}
	s.Config.ErrorLog = log.New(complaints, "", 0)
	s.Config.Protocols = &http.Protocols{}
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	client := s.Client().Transport.(*http.Transport)
	client.DisableCompression = true
	client.Protocols = &http.Protocols{}
	client.Protocols.SetHTTP1(major == 1)
	client.Protocols.SetUnencryptedHTTP2(major == 2)
	t.Cleanup(func() {
		s.Close()
		running.Wait()
		if transport, ok := cfg.Transport.(*http.Transport); ok {
			transport.CloseIdleConnections()
		}
		if complaints.String() != "" {
			t.Errorf("the server complains: %s", complaints)
		}
		for _, line := range logs.All() {
			if strings.Contains(fmt.Sprint(line.Message, line.ContextMap()), "canary") {
				t.Errorf("a token is logged: %v", line)
			}
		}
		if got, want := s.recorder.servedCount(), s.recorder.startedCount(); got != want {
			t.Errorf("%d requests recorded as served, %d as started", got, want)
		}
	})
	return s
}

// serve starts an upstream.
func serve(t testing.TB, h http.HandlerFunc) *httptest.Server {
	upstream := httptest.NewServer(h)
	t.Cleanup(upstream.Close)
	return upstream
}

// send sends a request by a client that adds nothing to it and follows no
// redirect. The answer's body is closed with the test.
func (s *sidecar) send(t testing.TB, method, target string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+target, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("User-Agent", "")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := s.Client().Transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// dial connects to the sidecar and says these bytes.
func (s *sidecar) dial(t testing.TB, says string) (net.Conn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	say(t, conn, says)
	return conn, bufio.NewReader(conn)
}

func say(t testing.TB, w io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
}

// answer reads an answer to a request of this method.
func answer(t testing.TB, from *bufio.Reader, method string) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(from, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

func read(t testing.TB, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// expect reads exactly want.
func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v, want %q", got[:n], err, want)
	}
}

// tokens is a TokenSource of one token, which can be changed.
type tokens struct {
	mu      sync.Mutex
	token   string
	next    string // takes token's place when that is refused; "": nothing does
	err     error
	refused []string
}

func (s *tokens) AccessToken(context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.token, s.err
}

func (s *tokens) Invalidate(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused = append(s.refused, token)
	if token == s.token && s.next != "" {
		s.token = s.next
	}
}

func (s *tokens) set(token string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token, s.err = token, err
}

func (s *tokens) invalidated() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.refused)
}

// recorder remembers what it is told, and lets tests wait for it: the answer
// is with the client before it is recorded.
type recorder struct {
	mu              sync.Mutex
	started, served int
	failures        []string
	refusals        []string
	next            chan string
}

func newRecorder() *recorder { return &recorder{next: make(chan string, 1<<14)} }

func (r *recorder) RequestStarted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started++
}

func (r *recorder) RequestServed(method string, status int, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.served++
	if took <= 0 {
		method = "timeless " + method
	}
	r.next <- fmt.Sprint(method, " ", status)
}

func (r *recorder) RequestFailed(reason string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(proxy.Reasons, reason) {
		reason = "unlisted " + reason
	}
	r.failures = append(r.failures, reason)
}

func (r *recorder) TokenRefused(outcome string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(proxy.Outcomes, outcome) {
		outcome = "unlisted " + outcome
	}
	r.refusals = append(r.refusals, outcome)
}

func (r *recorder) wantsRefusals(t testing.TB, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if fmt.Sprint(r.refusals) != fmt.Sprint(want) {
		t.Errorf("refusals recorded: got %v, want %v", r.refusals, want)
	}
	r.refusals = nil
}

func (r *recorder) startedCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.started
}

func (r *recorder) servedCount() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.served
}

func (r *recorder) failed() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.failures)
}

// wants waits for the next request to be served.
func (r *recorder) wants(t testing.TB, want string) {
	t.Helper()
	if got := <-r.next; got != want {
		t.Errorf("recorded %q, want %q", got, want)
	}
}

// A buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// headOf starts an upstream that tells the bytes of the request head it gets,
// the field lines sorted, and answers 204.
func headOf(t testing.TB) (addr string, heads <-chan string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	got := make(chan string, 100)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			head := readHead(bufio.NewReader(conn))
			got <- sorted(head)
			_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
			_ = conn.Close()
		}
	}()
	return listener.Addr().String(), got
}

// readHead reads up to and with the empty line.
func readHead(r *bufio.Reader) string {
	var head strings.Builder
	for !strings.HasSuffix(head.String(), "\r\n\r\n") {
		line, err := r.ReadString('\n')
		if err != nil {
			break
		}
		head.WriteString(line)
	}
	return head.String()
}

// TestMain names a proxy in the environment, which net/http reads but once:
// no test may notice it.
func TestMain(m *testing.M) {
	for _, name := range []string{"HTTP_PROXY", "http_proxy"} {
		if err := os.Setenv(name, "http://proxy.invalid:3128"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
