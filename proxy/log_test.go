package proxy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/token-sidecar/token-sidecar/proxy"
)

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
