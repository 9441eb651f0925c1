package proxy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// noToken is an error such as a token cache has.
type noToken struct {
	reason string
	after  time.Duration
}

func (e noToken) Error() string             { return "no valid access token: " + e.reason }
func (e noToken) Reason() string            { return e.reason }
func (e noToken) RetryAfter() time.Duration { return e.after }

// own is an answer of the proxy's own.
type own struct {
	Error   string         `json:"error"`
	Message string         `json:"message"`
	Code    string         `json:"code"`
	Details map[string]any `json:"details"`
}

// wantsOwn compares an answer of the proxy's own, all but its message.
func wantsOwn(t testing.TB, resp *http.Response, status int, reason, proxyStatus string, details map[string]any) {
	t.Helper()
	if got, want := fmt.Sprint(resp.StatusCode, resp.Header["Content-Type"], resp.Header["Cache-Control"], resp.Header["Proxy-Status"]),
		fmt.Sprintf("%d [application/json] [no-store] [token-sidecar; error=%s]", status, proxyStatus); got != want {
		t.Errorf("answered %s, want %s", got, want)
	}
	var got own
	body := read(t, resp.Body)
	t.Log(resp.Header, body)
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	details["source"] = "token-sidecar"
	want := own{reason, got.Message, "SIDECAR_" + strings.ToUpper(reason), details}
	if fmt.Sprint(got) != fmt.Sprint(want) || got.Message == "" {
		t.Errorf("answered %v, want %v", got, want)
	}
	if !slices.Contains(proxy.Reasons, reason) {
		t.Errorf("%q is not in Reasons", reason)
	}
}

func TestWithoutATokenTheAnswerIs503AndTheUpstreamHearsNothing(t *testing.T) {
	upstream := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the upstream was asked") })
	for _, test := range []struct {
		name        string
		err         error
		retryAfter  []string
		proxyStatus string
		details     map[string]any
	}{
		{"with a reason", noToken{"invalid_client", 90 * time.Second}, []string{"90"},
			`proxy_internal_error; details="invalid_client"`, map[string]any{"reason": "invalid_client", "retry_after_seconds": 90}},
		{"rounded up", noToken{"timeout", 1001 * time.Millisecond}, []string{"2"},
			`proxy_internal_error; details="timeout"`, map[string]any{"reason": "timeout", "retry_after_seconds": 2}},
		{"never at once", fmt.Errorf("wrapped: %w", noToken{"timeout", -time.Second}), []string{"1"},
			`proxy_internal_error; details="timeout"`, map[string]any{"reason": "timeout", "retry_after_seconds": 1}},
		{"without a reason", errors.New("no idea"), nil, "proxy_internal_error", map[string]any{}},
		{"out of patience", context.DeadlineExceeded, nil, "proxy_internal_error", map[string]any{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, upstream.URL, proxy.Config{})
			s.tokens.set("", test.err)
			for range 2 {
				resp := s.send(t, "POST", "/", strings.NewReader("body"))
				wantsOwn(t, resp, http.StatusServiceUnavailable, "token_unavailable", test.proxyStatus, test.details)
				if got, want := resp.Header["Retry-After"], test.retryAfter; !slices.Equal(got, want) {
					t.Errorf("Retry-After = %q, want %q", got, want)
				}
				s.recorder.wants(t, "POST 503")
			}
			if got, want := fmt.Sprint(s.recorder.failed()), "[token_unavailable token_unavailable]"; got != want {
				t.Errorf("failures = %s, want %s", got, want)
			}
		})
	}
}

// dialer is a transport whose connections are not made.
func dialer(err error) http.RoundTripper {
	transport := proxy.NewTransport(proxy.TransportConfig{})
	transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, err }
	return transport
}

func TestAnUpstreamOutOfReachIsA502OrA504(t *testing.T) {
	cut := serve(t, hijack(t, ""))
	garbled := serve(t, hijack(t, "canary, not HTTP\r\n\r\n"))
	secure := httptest.NewUnstartedServer(nil)
	secure.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	secure.StartTLS()
	defer secure.Close()
	nobody := httptest.NewServer(nil)
	nobody.Close()
	hang := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	mute, err := net.Listen("tcp", "127.0.0.1:0") // it takes connections, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mute.Close() }()
	const somewhere = "http://api.test"
	for _, test := range []struct {
		name, upstream string
		transport      http.RoundTripper
		status         int
		proxyStatus    string
	}{
		{"refused", nobody.URL, nil, 502, "connection_refused"},
		{"unknown host", somewhere, dialer(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "api.test", IsNotFound: true}}), 502, "dns_error"},
		{"no route", somewhere, dialer(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}), 502, "destination_unavailable"},
		{"dial timeout", somewhere, dialer(&net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}), 504, "connection_timeout"},
		{"handshake timeout", "https://" + mute.Addr().String(), proxy.NewTransport(proxy.TransportConfig{ConnectTimeout: 20 * time.Millisecond}), 504, "http_response_timeout"},
		{"read timeout", somewhere, dialer(&net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}), 504, "connection_read_timeout"},
		{"unknown certificate", secure.URL, nil, 502, "tls_certificate_error"},
		{"slow head", hang.URL, proxy.NewTransport(proxy.TransportConfig{ResponseTimeout: 20 * time.Millisecond}), 504, "http_response_timeout"},
		{"cut", cut.URL, nil, 502, "connection_terminated"},
		{"not HTTP", garbled.URL, nil, 502, "connection_terminated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, test.upstream, proxy.Config{Transport: test.transport})
			reason := map[int]string{502: "upstream_unreachable", 504: "upstream_timeout"}[test.status]
			for range 2 {
				resp := s.send(t, "POST", "/", strings.NewReader("body"))
				wantsOwn(t, resp, test.status, reason, test.proxyStatus, map[string]any{})
				s.recorder.wants(t, fmt.Sprint("POST ", test.status))
			}
			if got, want := s.recorder.failed(), []string{reason, reason}; !slices.Equal(got, want) {
				t.Errorf("failures = %q, want %q", got, want)
			}
			if got := s.logs.FilterMessage("request not served: " + reason).Len(); got != 1 {
				t.Errorf("%d lines logged, want 1", got)
			}
			if got := s.tokens.invalidated(); got != nil {
				t.Errorf("invalidated %q", got)
			}
		})
	}
}

func TestAnAnswerThatBreaksOffDoesNotEndCleanly(t *testing.T) {
	large := strings.Repeat("begun", 10000)
	for name, begun := range map[string]string{
		"sized":        "Content-Length: 100\r\n\r\nbegun",
		"sized, large": "Content-Length: 100000\r\n\r\n" + large,
		"chunked":      "Transfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n",
		"mid-chunk":    "Transfer-Encoding: chunked\r\n\r\nffff\r\n" + large,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, serve(t, hijack(t, "HTTP/1.1 200 OK\r\n"+begun)).URL, proxy.Config{})
			for method, fields := range map[string]string{"GET": "\r\n", "POST": "Content-Length: 4\r\n\r\nbody"} {
				_, from := s.dial(t, method+" / HTTP/1.1\r\nHost: app\r\n"+fields)
				resp, err := http.ReadResponse(from, nil)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
				}
				if got, want := err, io.ErrUnexpectedEOF; !errors.Is(got, want) {
					t.Errorf("the answer ends in %v, want %v", got, want)
				}
				s.recorder.wants(t, method+" 200")
			}
			if got := fmt.Sprint(s.recorder.failed()); got != "[upstream_broke_off upstream_broke_off]" {
				t.Errorf("failures = %s", got)
			}
		})
	}
}

// wantsQuiet tells what is logged above debug level.
func wantsQuiet(t testing.TB, s *sidecar) {
	t.Helper()
	for _, line := range s.logs.All() {
		if line.Level > zapcore.DebugLevel {
			t.Errorf("logged %v", line)
		}
	}
}

func TestAnUpstreamThatIsGoneIsNoticedWhileTheClientPauses(t *testing.T) {
	leave := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadFull(r.Body, make([]byte, 5))
		if r.ProtoMajor == 2 {
			panic(http.ErrAbortHandler)
		}
		conn, _, err := http.NewResponseController(w).Hijack() // or the server would read the body first
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	}
	each(t, slices.Concat(fromHTTP1, fromHTTP2, []protocols{{1, 1, true}}), leave, func(t *testing.T, s *sidecar) {
		t.Parallel()
		resp := talk(t, s.Client(), s.URL, "text/plain", "begun")
		wantsOwn(t, resp, http.StatusBadGateway, "upstream_unreachable", "connection_terminated", map[string]any{})
		s.recorder.wants(t, "POST 502")
	})
}

func TestAMalformedBodyIsTheClientsFault(t *testing.T) {
	seen := make(chan error, 1)
	upstream := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		seen <- err
	})
	s := start(t, upstream.URL, proxy.Config{})
	_, from := s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\nzz\r\n")
	resp := answer(t, from, "POST")
	wantsOwn(t, resp, http.StatusBadRequest, "request_body", "http_request_error", map[string]any{})
	if !resp.Close {
		t.Error("the connection is kept")
	}
	if <-seen == nil {
		t.Error("the upstream saw a whole body")
	}
	s.recorder.wants(t, "POST 400")
	if got, want := fmt.Sprint(s.recorder.failed()), "[request_body]"; got != want {
		t.Errorf("failures = %s, want %s", got, want)
	}
}

func TestAClientThatLeavesIsNotAFailure(t *testing.T) {
	for name, request := range map[string]string{
		"while it waits": "GET / HTTP/1.1\r\nHost: app\r\n\r\n",
		"in a body":      "GET / HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nbegun",
		"in a chunk":     "GET / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nbegun",
	} {
		t.Run(name, func(t *testing.T) {
			asked, left := make(chan struct{}), make(chan struct{})
			upstream := serve(t, func(_ http.ResponseWriter, r *http.Request) {
				close(asked)
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
				close(left)
			})
			s := start(t, upstream.URL, proxy.Config{})
			conn, from := s.dial(t, request)
			<-asked
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			<-left
			if got := read(t, from); got != "" { // an empty 200, say
				t.Errorf("answered %q", got)
			}
			s.recorder.wants(t, "GET 499")
			if got := s.recorder.failed(); got != nil {
				t.Errorf("failures = %q", got)
			}
			wantsQuiet(t, s)
		})
	}
}

func TestAClientThatLeavesDuringAnAnswerEndsItUpstream(t *testing.T) {
	left := make(chan struct{})
	upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
		flush(t, w)
		<-r.Context().Done()
		close(left)
	})
	s := start(t, upstream.URL, proxy.Config{})
	conn, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\n\r\n")
	answer(t, from, "GET")
	_ = conn.Close()
	<-left
	s.recorder.wants(t, "GET 200")
	wantsQuiet(t, s)
}

func TestNoGoroutineOutlivesItsRequest(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("requests", func(t *testing.T) {
		var asked atomic.Int32
		upstream := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch asked.Add(1) % 4 {
			case 0:
				w.WriteHeader(http.StatusUnauthorized)
			case 1:
				panic(http.ErrAbortHandler)
			case 2:
				flush(t, w)
				panic(http.ErrAbortHandler)
			default:
				_, _ = io.Copy(w, r.Body)
			}
		})
		s := start(t, upstream.URL, proxy.Config{})
		for range 100 {
			if resp, err := s.Client().Post(s.URL, "", strings.NewReader("body")); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
			s.dial(t, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100\r\n\r\nbegun")
		}
	})
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// Whoever tells our answers from the upstream's does so by Proxy-Status.
func TestAnUpstreamCannotSpeakInOurName(t *testing.T) {
	for _, test := range []struct{ said, want []string }{
		{[]string{"token-sidecar; error=dns_error"}, nil},
		{[]string{"token-sidecar"}, nil},
		{[]string{` "Token-Sidecar" ;error=dns_error`}, nil},
		{[]string{"cdn; error=dns_error", "token-sidecar"}, []string{"cdn; error=dns_error"}},
		{[]string{"a; details=\"x, y\", token-sidecar; error=dns_error ,b"}, []string{"a; details=\"x, y\",b"}},
		{[]string{`a; details="x`, `y", token-sidecar; error=dns_error`}, []string{`a; details="x`, `y"`}},
		{[]string{"token-sidecar-2; error=dns_error, a;by=token-sidecar"}, []string{"token-sidecar-2; error=dns_error, a;by=token-sidecar"}},
	} {
		eachProtocol(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Proxy-Status"] = test.said
			w.Header()["Link"] = []string{"</a>"}
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, "busy")
			flush(t, w)
			for _, said := range test.said {
				w.Header().Add(http.TrailerPrefix+"Proxy-Status", said)
			}
		}, func(t *testing.T, s *sidecar) {
			hints := make(chan []string, 1)
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
				hints <- h["Proxy-Status"]
				return nil
			}})
			req, err := http.NewRequestWithContext(ctx, "GET", s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := s.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			if got, want := read(t, resp.Body), "busy"; got != want {
				t.Errorf("answered %q, want %q", got, want)
			}
			for where, got := range map[string][]string{"103": <-hints, "header": resp.Header["Proxy-Status"], "trailers": resp.Trailer["Proxy-Status"]} {
				if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", test.want) {
					t.Errorf("%s: %q arrived of %q, want %q", where, got, test.said, test.want)
				}
			}
		})
	}
}

// broken is a TokenSource with a fault in the program.
type broken struct{ tokens }

func (*broken) AccessToken(context.Context) (string, error) { panic(http.ErrAbortHandler) }

func TestAFaultOfOurOwnIsNotTheUpstreams(t *testing.T) {
	s := start(t, "http://127.0.0.1:1", proxy.Config{Tokens: &broken{}})
	_, from := s.dial(t, "GET / HTTP/1.1\r\nHost: app\r\n\r\n")
	if _, err := http.ReadResponse(from, nil); err == nil {
		t.Error("answered")
	}
	s.recorder.wants(t, "GET 0")
	if got := s.recorder.failed(); got != nil {
		t.Errorf("failures = %q", got)
	}
}
