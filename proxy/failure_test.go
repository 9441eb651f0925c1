package proxy_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

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

func TestOneLinePerReasonAndMinuteIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		source := &tokens{}
		h := proxy.New(proxy.Config{
			Upstream: &url.URL{Scheme: "http", Host: "api.test"}, Tokens: source, Log: zap.New(core),
			Transport: dialer(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}),
		})
		for minute := range 3 {
			for range 100 {
				for err, want := range map[error]int{nil: http.StatusBadGateway, error(noToken{"timeout", 0}): http.StatusServiceUnavailable} {
					source.set(canary, err)
					w := httptest.NewRecorder()
					h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/secret?q=secret", nil))
					if got := w.Code; got != want {
						t.Errorf("status = %d, want %d", got, want)
					}
				}
			}
			if got, want := logs.Len(), 2*(minute+1); got != want {
				t.Errorf("%d lines in the end of minute %d, want %d", got, minute, want)
			}
			time.Sleep(time.Minute)
		}
		want := map[string]string{
			"request not served: token_unavailable":    "map[cause:timeout error:no valid access token: timeout proxy_status:proxy_internal_error status:503]",
			"request not served: upstream_unreachable": "map[cause: error:dial tcp: connect: connection refused proxy_status:connection_refused status:502]",
		}
		for _, line := range logs.All() {
			if got, want := fmt.Sprint(line.ContextMap()), want[line.Message]; got != want || line.Level != zapcore.WarnLevel {
				t.Errorf("%v %s with %s, want %s", line.Level, line.Message, got, want)
			}
		}
	})
}

// What an upstream sends is not ours to log: it may hold anything.
func TestNothingReceivedIsLogged(t *testing.T) {
	s := start(t, serve(t, hijack(t, "HTTP/1.1 canary\r\n\r\n")).URL, proxy.Config{})
	if got, want := s.send(t, "GET", "/?canary", nil).StatusCode, http.StatusBadGateway; got != want {
		t.Errorf("status = %d, want %d", got, want)
	}
	if got, want := s.logs.Len(), 1; got != want {
		t.Errorf("%d lines logged, want %d", got, want)
	}
}

// A certificate is as its holder wants it.
func TestWhatIsWrongWithACertificateIsSaidInWordsOfOurs(t *testing.T) {
	const year = 365 * 24 * time.Hour
	now, ours := time.Now(), []net.IP{net.IPv4(127, 0, 0, 1)}
	for name, test := range map[string]struct {
		template x509.Certificate
		trusted  bool
		want     string
	}{
		"of somebody else": {x509.Certificate{NotAfter: now.Add(year), DNSNames: []string{"canary.test"}}, true, "the certificate is not valid for 127.0.0.1: check UPSTREAM_URL"},
		"of nobody known":  {x509.Certificate{NotAfter: now.Add(year), IPAddresses: ours}, false, "the certificate is signed by an unknown authority: name its CA by UPSTREAM_CA_FILE"},
		"expired":          {x509.Certificate{NotAfter: now.Add(-year), IPAddresses: ours}, true, "the certificate has expired or is not yet valid: have it renewed, or set this machine's clock right"},
		"of another use":   {x509.Certificate{NotAfter: now.Add(year), IPAddresses: ours, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection}}, true, "the certificate is not valid"},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			test.template.SerialNumber, test.template.Subject.CommonName = big.NewInt(1), "canary"
			test.template.NotBefore = now.Add(-2 * year)
			der, err := x509.CreateCertificate(rand.Reader, &test.template, &test.template, key.Public(), key)
			if err != nil {
				t.Fatal(err)
			}
			certificate, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			upstream := httptest.NewUnstartedServer(nil)
			upstream.Config.ErrorLog = log.New(io.Discard, "", 0) // it is told that the handshake failed
			upstream.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
			upstream.StartTLS()
			t.Cleanup(upstream.Close)
			transport := proxy.NewTransport(proxy.TransportConfig{})
			transport.TLSClientConfig.RootCAs = x509.NewCertPool()
			if test.trusted {
				transport.TLSClientConfig.RootCAs.AddCert(certificate)
			}
			s := start(t, upstream.URL, proxy.Config{Transport: transport})
			wantsOwn(t, s.send(t, "GET", "/", nil), http.StatusBadGateway, "upstream_unreachable", "tls_certificate_error", map[string]any{})
			if got := fmt.Sprint(s.logs.All()[0].ContextMap()["error"]); got != test.want {
				t.Errorf("logged %q, want %q", got, test.want)
			}
		})
	}
}

func TestNothingOfABodyThatBreaksOffIsLogged(t *testing.T) {
	const head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n"
	for name, end := range map[string]string{
		"a trailer without a colon": "0\r\nAuthorization  Bearer " + canary + "\r\n\r\n",
		"a chunk size":              canary + "\r\n",
		"the end of a chunk":        "5\r\nbegun" + canary + "\r\n",
		"a chunk extension":         "5;" + strings.Repeat(canary, 1000) + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, serve(t, hijack(t, head+end)).URL, proxy.Config{})
			for range 3 { // each by another connection, whose addresses net/http may name
				_, _ = io.Copy(io.Discard, s.send(t, "GET", "/", nil).Body)
				s.recorder.wants(t, "GET 200")
			}
			var got []string
			for _, line := range s.logs.All() { // start looks for the canary
				got = append(got, fmt.Sprint(line.Level, " ", line.Message, line.ContextMap()))
			}
			slices.Sort(got)
			if want := []string{"debug an answer's body could not be read to its endmap[]", "warn the upstream broke off its answermap[status:200]"}; !slices.Equal(got, want) {
				t.Errorf("logged %q, want %q", got, want)
			}
		})
	}
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
