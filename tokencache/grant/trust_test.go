package grant

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

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

// counter is a handler that counts its requests.
type counter struct{ atomic.Int32 }

func (c *counter) ServeHTTP(http.ResponseWriter, *http.Request) { c.Add(1) }

// theProxy is one for all runs of a test, since net/http reads the environment once.
var theProxy = sync.OnceValue(func() *httptest.Server { return httptest.NewServer(proxied) })

var proxied = new(counter)

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
