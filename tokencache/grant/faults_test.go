package grant

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// Answers that never come, or never come to an end.

// neverEnding are faults that last as long as the client bears them.
var neverEnding = map[string]granttest.Fault{
	"hang":               granttest.Hang,
	"drip":               drip(time.Minute),
	"drip in time":       drip(time.Second),
	"hijacked by a 101":  switchProtocols,
	"heads without end":  earlyHints,
	"refused, endlessly": refusedEndlessly,
}

// drip and truncated spoil a good answer, whatever grant it is to.
func drip(interval time.Duration) granttest.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		granttest.Drip(interval)(w, r, &recorder{})
	}
}

func truncated(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	granttest.Truncated(w, r, &recorder{})
}

// switchProtocols hands the connection over, bare, and says no more on it.
func switchProtocols(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	w.Header().Set("Connection", "Upgrade")
	w.Header().Set("Upgrade", "other")
	w.WriteHeader(http.StatusSwitchingProtocols)
	flush(w)
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

// earlyHints gives informational answers only.
func earlyHints(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	for r.Context().Err() == nil {
		w.WriteHeader(http.StatusEarlyHints)
		time.Sleep(time.Second)
	}
	panic(http.ErrAbortHandler)
}

// refusedEndlessly refuses at once, and then takes its time to say why.
func refusedEndlessly(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	w.WriteHeader(http.StatusBadRequest)
	flush(w)
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

func flush(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() }

func TestEveryRequestEndsAtItsDeadline(t *testing.T) {
	for name, fault := range neverEnding {
		for _, grantType := range bothGrants {
			t.Run(name+", "+grantType, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					srv := &granttest.Server{}
					srv.Always(fault)
					c := clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)})
					start := time.Now()
					_, err := ask(t.Context(), c, grantType)
					if got := time.Since(start); got > defaultTimeout {
						t.Errorf("took %v, want %v at most", got, defaultTimeout)
					}
					want := failure{tokencache.ErrOutcomeUnknown, "timeout", 0}
					switch {
					case name == "hijacked by a 101":
						want = failure{location{grantType: grantType}.unknownRefresh(), "bad_response", 0}
					case name == "refused, endlessly" && grantType == refreshToken:
						want = failure{tokencache.ErrRefreshTokenRejected, "invalid_grant", 0}
					case name == "refused, endlessly":
						want = failure{tokencache.ErrClientRejected, "invalid_request", 0}
					}
					wantFailure(t, err, want)
				})
			})
		}
	}
}

// sentinelOf is what a grant of this type fails with if it is refused.
func sentinelOf(grantType string) error {
	return location{grantType: grantType}.rejected()
}

func TestASlowAnswerInTimeIsAGoodAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{Delay: 9 * time.Second}
		c := clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)})
		if _, err := c.ClientCredentials(t.Context()); err != nil {
			t.Error(err)
		}
		c.cfg.Timeout = 5 * time.Second
		_, err := c.ClientCredentials(t.Context())
		wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "timeout", 0})
	})
}

func TestADialThatHangsHasSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := NewTransport(nil)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			time.Sleep(time.Minute)
			return nil, context.DeadlineExceeded
		}
		defer time.Sleep(time.Minute) // the transport lets a dial end by itself
		_, err := ask(t.Context(), clientOf(t, "http://server/", Config{Transport: transport}), refreshToken)
		wantFailure(t, err, failure{nil, "timeout", 0})
	})
}

func TestAHandshakeThatHangsHasSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := NewTransport(nil)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, server) }()
			return client, nil
		}
		start := time.Now()
		_, err := ask(t.Context(), clientOf(t, "https://server/", Config{Transport: transport}), refreshToken)
		wantFailure(t, err, failure{nil, "tls", 0})
		if got, want := time.Since(start), 5*time.Second; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
	})
}

func TestCancellingReturnsTheContextsError(t *testing.T) {
	for name, fault := range neverEnding {
		if name == "refused, endlessly" || name == "hijacked by a 101" { // which are answers, whatever follows
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			srv := &granttest.Server{}
			srv.Always(fault)
			c := clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)})
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(5*time.Second, cancel)
			for range 2 { // in flight, and before it starts
				if _, err := c.ClientCredentials(ctx); err != context.Canceled {
					t.Errorf("%s: got %v, want %v", name, err, context.Canceled)
				}
			}
			early, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := c.ClientCredentials(early)
			wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "timeout", 0})
		})
	}
}

// Answers that break off, and connections that do not come about.

func TestALostAnswerLeavesTheOutcomeUnknown(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"cut": granttest.Cut, "lost": granttest.LoseAnswer, "truncated": truncated,
		"no HTTP": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "220 mail.test ESMTP\r\n")
			_ = conn.Close()
		},
		"a header without end": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			w.Header().Set("X-Long", strings.Repeat("a", 100<<10))
		},
	} {
		srv := &granttest.Server{}
		srv.Always(fault)
		c := clientOf(t, serve(t, srv)+"/oauth/token", Config{})
		for _, grantType := range bothGrants {
			_, err := ask(t.Context(), c, grantType)
			t.Run(name+", "+grantType, func(t *testing.T) {
				wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "connection_lost", 0})
			})
		}
		if got, want := srv.Stats().Requests, 2; got != want {
			t.Errorf("%s: %d requests, want %d: a request was repeated", name, got, want)
		}
	}
}

func TestARefusalThatBreaksOffIsARefusalAllTheSame(t *testing.T) {
	srv := &granttest.Server{ClientID: "somebody else", RefusedClient: 403}
	srv.Always(granttest.Truncated)
	_, err := clientOf(t, serve(t, srv)+"/oauth/token", Config{}).ClientCredentials(t.Context())
	wantFailure(t, err, failure{tokencache.ErrClientRejected, "invalid_client", 0})
}

func TestWithoutAConnectionNothingWasSent(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	dialing := func(err error) http.RoundTripper {
		transport := NewTransport(nil)
		transport.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, err }
		return transport
	}
	for _, tt := range []struct {
		name, address string
		transport     http.RoundTripper
		says          string
	}{
		{"refused", closed.URL, nil, "connection refused"},
		{"no such name", "http://auth.test/", dialing(&net.DNSError{Err: "no such host", Name: "auth.test", IsNotFound: true}), "lookup auth.test: no such host"},
		{"an error that may quote", "http://auth.test/", dialing(errors.New("canary")), "the connection could not be made"},
		{"a URL without host", "http:///token", nil, "the connection could not be made"},
		{"an unknown scheme", "gopher://auth.test/", nil, "the connection could not be made"},
	} {
		for _, grantType := range bothGrants {
			_, err := ask(t.Context(), clientOf(t, tt.address, Config{Transport: tt.transport}), grantType)
			wantFailure(t, err, failure{nil, "unreachable", 0})
			if !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %q does not say %q", tt.name, err, tt.says)
			}
		}
	}
}

func TestADialThatTakesTooLongIsATimeout(t *testing.T) {
	transport := NewTransport(nil)
	transport.DialContext = (&net.Dialer{Deadline: time.Unix(0, 1)}).DialContext
	_, err := ask(t.Context(), clientOf(t, "http://127.0.0.1/", Config{Transport: transport}), refreshToken)
	wantFailure(t, err, failure{nil, "timeout", 0})
}

func TestAnAddressThatMakesNoURL(t *testing.T) {
	c := New(Config{TokenURL: &url.URL{Scheme: "http", Host: "a b"}})
	_, err := c.ClientCredentials(t.Context())
	wantFailure(t, err, failure{nil, "unreachable", 0})
}

// TLS.

func TestWithoutTrustNothingIsSent(t *testing.T) {
	asked := new(counter)
	start := func(config *tls.Config) *httptest.Server {
		server := httptest.NewUnstartedServer(asked)
		server.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
		server.TLS = config
		server.StartTLS()
		t.Cleanup(server.Close)
		return server
	}
	choosy := start(&tls.Config{ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12})
	modern, old := start(nil), start(&tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	plain := "https" + strings.TrimPrefix(serve(t, asked), "http")
	trusting := func(change func(*tls.Config)) *http.Transport {
		transport := NewTransport(nil)
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		transport.TLSClientConfig.RootCAs.AddCert(modern.Certificate())
		change(transport.TLSClientConfig)
		return transport
	}
	for _, tt := range []struct {
		name, address string
		transport     http.RoundTripper
		says          string
	}{
		{"unknown authority", modern.URL, nil, "signed by an unknown authority: name its CA by TOKEN_CA_FILE"},
		{"another name", modern.URL, trusting(func(c *tls.Config) { c.ServerName = "other.test" }), "not valid for other.test"},
		{"expired", modern.URL, trusting(func(c *tls.Config) { c.Time = func() time.Time { return time.Now().AddDate(100, 0, 0) } }), "has expired"},
		{"TLS 1.1", old.URL, trusting(func(*tls.Config) {}), "must speak TLS 1.2 or later"},
		{"no TLS at all", plain, nil, "does not speak TLS"},
		{"no certificate of ours", choosy.URL, trusting(func(*tls.Config) {}), "accept that of TOKEN_CERT_FILE"},
	} {
		for _, grantType := range bothGrants {
			_, err := ask(t.Context(), clientOf(t, tt.address, Config{Transport: tt.transport}), grantType)
			wantFailure(t, err, failure{nil, "tls", 0})
			if !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %q does not say %q", tt.name, err, tt.says)
			}
		}
	}
	if got := asked.Load(); got != 0 {
		t.Errorf("%d requests were sent", got)
	}
	for name, c := range map[string]*Client{ // that the refusals above had the cause they tell
		modern.URL: clientOf(t, modern.URL, Config{Transport: trusting(func(*tls.Config) {})}),
		old.URL:    clientOf(t, old.URL, Config{Transport: trusting(func(c *tls.Config) { c.MinVersion = tls.VersionTLS10 })}),
	} {
		_, err := c.ClientCredentials(t.Context())
		if got, want := failureOf(t, err).reason, "bad_response"; got != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
}

// A server of TLS 1.3 asks for a certificate and does not wait for it: it is
// when the request is on its way that it refuses the connection.
func TestACertificateThatIsMissedLaterIsATLSFailure(t *testing.T) {
	issuer := httptest.NewTLSServer(nil) // for its certificate
	defer issuer.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = tls.Server(conn, &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: issuer.TLS.Certificates}).Handshake()
				_, _ = io.Copy(io.Discard, conn) // or a reset might overtake the alert
			}()
		}
	}()
	transport := NewTransport(nil)
	transport.TLSClientConfig.RootCAs = x509.NewCertPool()
	transport.TLSClientConfig.RootCAs.AddCert(issuer.Certificate())
	for _, grantType := range bothGrants {
		_, err := ask(t.Context(), clientOf(t, "https://"+l.Addr().String(), Config{Transport: transport}), grantType)
		wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "tls", 0})
		if !strings.Contains(err.Error(), "tls: certificate required") || !strings.Contains(err.Error(), "TOKEN_CERT_FILE") {
			t.Errorf("got %v", err)
		}
	}
}

// Answers that are too much.

// TestAnAnswerWithoutEndIsCutOff counts all that is allocated meanwhile, which
// is more than is ever held.
func TestAnAnswerWithoutEndIsCutOff(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"endless":    granttest.Endless,
		"gzip bomb":  prepared(granttest.GzipBomb(16 << 20)),
		"many names": granttest.Status(200, `{"access_token":"a"`+manyMembers()+`}`),
		"deep":       granttest.Status(200, `{"access_token":"a","x":`+strings.Repeat(`[`, maxBody/2)),
		"blanks": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			_, _ = io.WriteString(w, `{"access_token":"a"}`+strings.Repeat(" ", maxBody)+"trailing data")
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := &granttest.Server{}
			srv.Always(fault)
			c := clientOf(t, serve(t, srv)+"/oauth/token", Config{})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := ask(t.Context(), c, refreshToken)
			runtime.ReadMemStats(&after)
			wantFailure(t, err, failure{tokencache.ErrOutcomeUnknown, "bad_response", 0})
			allocated := after.TotalAlloc - before.TotalAlloc
			t.Logf("%d KiB", allocated>>10)
			if allocated > 2<<20 {
				t.Errorf("%d bytes were allocated in all", allocated)
			}
		})
	}
}

// prepared is what f answers, made beforehand.
func prepared(f granttest.Fault) granttest.Fault {
	w := httptest.NewRecorder()
	f(w, nil, nil)
	return func(to http.ResponseWriter, _ *http.Request, _ http.Handler) {
		maps.Copy(to.Header(), w.Header())
		_, _ = to.Write(w.Body.Bytes())
	}
}

// manyMembers are about as many as a body can hold.
func manyMembers() string {
	var b strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&b, `,"%x":0`, i)
	}
	return b.String()
}

// Where the credentials must not go.

func TestNoRedirectIsFollowed(t *testing.T) {
	followed := new(counter)
	elsewhere := serve(t, followed)
	srv := &granttest.Server{}
	address := serve(t, srv)
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(elsewhere, "http://"))
	for _, status := range []int{300, 301, 302, 303, 304, 307, 308} {
		for _, target := range []string{address + "/oauth/token", "/oauth/token", elsewhere, "http://localhost:" + port, ""} {
			for _, grantType := range bothGrants {
				srv.Script(granttest.Redirect(status, target))
				before := srv.Stats().Requests
				_, err := ask(t.Context(), clientOf(t, address+"/oauth/token", Config{}), grantType)
				wantFailure(t, err, failure{sentinelOf(grantType), "redirect", 0})
				if got := srv.Stats().Requests - before; got != 1 {
					t.Errorf("%d to %s: %d requests, want 1", status, target, got)
				}
			}
		}
	}
	if got := followed.Load(); got != 0 {
		t.Errorf("%d redirects were followed", got)
	}
}

// theProxy is one for all runs of a test, since net/http reads the environment once.
var theProxy = sync.OnceValue(func() *httptest.Server { return httptest.NewServer(proxied) })
var proxied = new(counter)

// counter is a handler that counts its requests.
type counter struct{ atomic.Int32 }

func (c *counter) ServeHTTP(http.ResponseWriter, *http.Request) { c.Add(1) }

func TestAProxyInTheEnvironmentIsIgnored(t *testing.T) {
	proxied.Store(0)
	for _, name := range []string{"HTTP_PROXY", "http_proxy", "ALL_PROXY"} {
		t.Setenv(name, theProxy().URL)
	}
	t.Setenv("NO_PROXY", "")
	t.Setenv("no_proxy", "")
	const unroutable = "http://192.0.2.1/" // RFC 5737; proxies are never used for loopback
	ask := func(transport *http.Transport) {
		c := clientOf(t, unroutable, Config{Transport: transport, Timeout: 200 * time.Millisecond})
		_, _ = c.ClientCredentials(t.Context())
	}
	ask(NewTransport(nil))
	if got := proxied.Load(); got != 0 {
		t.Errorf("the proxy saw %d requests", got)
	}
	ask(NewTransport(http.ProxyFromEnvironment))
	if got := proxied.Load(); got != 1 {
		t.Errorf("asked to, the client made %d requests of the proxy, want 1", got)
	}
}

// What must not be told.

func TestNeitherErrorsNorLogsHoldASecret(t *testing.T) {
	const (
		query   = "que/ry+canary&="
		pass    = "pass/word+canary&="
		access  = "acc/ess+canary&=%"
		refresh = "ref/resh+canary&=%"
	)
	core, logs := observer.New(zap.DebugLevel)
	srv := &granttest.Server{ClientID: testID, ClientSecret: testSecret}
	tokens := func(members map[string]any) granttest.Fault {
		return granttest.Edited(func(answer map[string]any) {
			answer["access_token"], answer["refresh_token"] = access, refresh
			for name, value := range members {
				answer[name] = value
			}
		})
	}
	reflector := func(w http.ResponseWriter, r *http.Request, _ http.Handler) { // of what it gets, wherever it can be read
		body, _ := io.ReadAll(r.Body)
		values, _ := url.ParseQuery(string(body))
		_ = json.NewEncoder(w).Encode(map[string]any{
			"error": values.Get("client_secret"), "token_type": testSecret, "expires_in": testSecret, "scope": testSecret,
		})
	}
	faults := map[string]granttest.Fault{
		"honest":                 tokens(nil),
		"odd expiry":             tokens(map[string]any{"expires_in": access}),
		"less scope":             tokens(map[string]any{"scope": refresh}),
		"bad token":              tokens(map[string]any{"access_token": access + "é"}),
		"long token":             tokens(map[string]any{"access_token": strings.Repeat(access, 2000)}),
		"not bearer":             tokens(map[string]any{"token_type": "DPoP"}),
		"secret as a code":       reflector,
		"secret as a bad number": granttest.Status(200, `{"access_token":"`+access+`","expires_in":`+testSecret+`}`),
		"token in a page":        granttest.Status(200, access+refresh+testSecret),
		"token in the location":  granttest.Redirect(302, "http://other.test/?secret="+url.QueryEscape(testSecret)),
		"secret as Retry-After":  granttest.TooManyRequests(testSecret),
		"truncated":              granttest.Truncated,
		"cut":                    granttest.Cut,
		"bad status line": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			body, _ := io.ReadAll(r.Body)
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, testSecret+" "+string(body)+"\r\n\r\n")
			_ = conn.Close()
		},
		"bad header": func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+testSecret+access+"\r\nContent-Length: "+testSecret+"\r\n\r\n")
			_ = conn.Close()
		},
	}
	for _, status := range []int{200, 201, 301, 400, 401, 403, 404, 408, 429, 500, 503} {
		faults[fmt.Sprint("echo of ", status)] = granttest.EchoRequest(status)
	}
	web := serve(t, srv)
	withUser := strings.Replace(web, "http://", "http://user:"+url.QueryEscape(pass)+"@", 1)
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	canaries := spellings(query, pass, access, refresh, testSecret, testRefresh, testID+":"+testSecret,
		url.QueryEscape(testID)+":"+url.QueryEscape(testSecret))

	check := func(t *testing.T, what, text string) {
		t.Helper()
		for _, canary := range canaries {
			if strings.Contains(text, canary) {
				t.Errorf("%s shows %q: %s", what, canary, text)
			}
		}
	}
	for name, fault := range faults {
		addresses := []string{withUser}
		if name == "honest" { // not that anybody hears it
			addresses = append(addresses, closed.URL, "https"+strings.TrimPrefix(web, "http"))
		}
		t.Run(name, func(t *testing.T) {
			for _, auth := range clientAuths {
				for _, encoding := range encodings {
					for _, address := range addresses {
						c := clientOf(t, address+"/oauth/token?key="+url.QueryEscape(query), Config{
							Auth: auth, Encoding: encoding, Log: zap.New(core), Scope: "read",
							Parameters: func() url.Values { return url.Values{"password": {pass}} },
							Header:     func() http.Header { return http.Header{"X-Key": {query}} },
						})
						check(t, "the configuration", printed(c, c.cfg, &c.cfg, []Config{c.cfg})+fmt.Sprintf("%v %+v %#v", *c, *c, *c))
						for _, grantType := range bothGrants {
							srv.Script(fault)
							token, err := ask(t.Context(), c, grantType)
							zap.New(core).Info("outcome", zap.Error(err), zap.Any("error", err), zap.Any("token", token))
							if e, ok := errors.AsType[*Error](err); ok {
								check(t, "the error", printed(err, *e))
							}
						}
					}
				}
			}
		})
	}
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, entry := range logs.All() {
		line, err := encoder.EncodeEntry(entry.Entry, entry.Context)
		if err != nil {
			t.Fatal(err)
		}
		check(t, "the log", line.String())
		check(t, "the log", fmt.Sprintf("%+v", entry.ContextMap()))
	}
}

// printed is all that can be made of values by printing them.
func printed(values ...any) string {
	var b strings.Builder
	for _, v := range values {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&b, verb, v)
		}
		_ = json.NewEncoder(&b).Encode(v)
		line, _ := zapcore.NewJSONEncoder(zapcore.EncoderConfig{}).EncodeEntry(zapcore.Entry{}, []zap.Field{zap.Any("a", v), zap.Reflect("r", v)})
		b.Write(line.Bytes())
	}
	return b.String()
}

// spellings are the ways in which the values may turn up in a text.
func spellings(values ...string) []string {
	var all []string
	for _, v := range values {
		asJSON, _ := json.Marshal(v)
		twice, _ := json.Marshal(string(asJSON))
		b := []byte(v)
		all = append(all, v, url.QueryEscape(v), url.PathEscape(v), strings.Trim(string(asJSON), `"`), strings.Trim(string(twice), `"\`),
			base64.RawStdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b), // which begin the padded ones
			hex.EncodeToString(b), strings.ToUpper(hex.EncodeToString(b)))
	}
	return all
}

// overPipe returns a transport to a server of h over net.Pipe, so that a
// bubble's clock can move. A test fails in the end if a connection is left.
func overPipe(t *testing.T, h http.Handler) *http.Transport {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: h}
	done := make(chan error)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Errorf("still serving: %v", err)
			_ = server.Close()
		}
		<-done
	})
	transport := NewTransport(nil)
	transport.DialContext = l.dial
	return transport
}

type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }
