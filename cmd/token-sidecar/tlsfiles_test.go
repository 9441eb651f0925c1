package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// An authority signs certificates, for servers and clients alike.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	pem         string
}

// issued is a certificate with its key, both in PEM.
type issued struct{ certificate, key string }

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := certificateOf(name)
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	if err == nil {
		a.certificate, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	a.pem = encode("CERTIFICATE", der)
	return a
}

func (a *authority) issue(t *testing.T, name string) issued {
	t.Helper()
	key := newKey(t)
	template := certificateOf(name)
	template.DNSNames = []string{"example.com"}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return issued{encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)}
}

func newKey(t *testing.T) crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func certificateOf(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// folder holds the files that secure both legs.
type folder struct {
	t    *testing.T
	path string
}

func (f folder) file(name string) string { return filepath.Join(f.path, name) }

func (f folder) write(name, content string) {
	f.t.Helper()
	if err := os.WriteFile(f.file(name), []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f folder) environ() map[string]string {
	return map[string]string{
		"UPSTREAM_URL": "https://api.test", "TOKEN_URL": "https://auth.test/oauth/token", "CLIENT_ID": "id", "CLIENT_AUTH_METHOD": "tls_client_auth",
		"TOKEN_CA_FILE": f.file("ca"), "TOKEN_CERT_FILE": f.file("cert"), "TOKEN_KEY_FILE": f.file("key"),
		"UPSTREAM_CA_FILE": f.file("ca"), "UPSTREAM_CERT_FILE": f.file("cert"), "UPSTREAM_KEY_FILE": f.file("key"),
	}
}

// choosyServer accepts no client without a certificate by its authority.
type choosyServer struct {
	*httptest.Server
	mu     sync.Mutex
	config *tls.Config
	seen   map[string]string // by path: the last client's name, and protocol
}

func newChoosyServer(provider *granttest.Server) *choosyServer {
	s := &choosyServer{seen: map[string]string{}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen[r.URL.Path] = fmt.Sprint(r.TLS.PeerCertificates[0].Subject.CommonName, " ", r.Proto)
		s.mu.Unlock()
		provider.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.config, nil
	}}
	return s
}

// be has new connections see that certificate, and ask for one of that authority.
func (s *choosyServer) be(t *testing.T, by *authority, certificate issued) {
	t.Helper()
	pair, err := tls.X509KeyPair([]byte(certificate.certificate), []byte(certificate.key))
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AddCert(by.certificate)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.config = &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, NextProtos: []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true, // which an HTTP/2 client does not read before it has written, and pipes keep nothing
	}
}

func (s *choosyServer) wantSeen(t *testing.T, path, want string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.seen[path]; got != want {
		t.Errorf("%s saw %q last, want %q", path, got, want)
	}
}

func TestCertificatesOfBothLegsAreTakenUpWhenTheyChange(t *testing.T) {
	first, second := newAuthority(t, "first"), newAuthority(t, "second")
	f := folder{t, t.TempDir()}
	client, renewed := first.issue(t, "client"), second.issue(t, "renewed client")
	server, renewedServer := first.issue(t, "server"), second.issue(t, "server")
	f.write("ca", first.pem)
	f.write("cert", client.certificate)
	f.write("key", client.key)

	provider := &granttest.Server{}
	web := newChoosyServer(provider)
	web.be(t, first, server)
	withServer(t, f.environ(), provider, web.Server, func(s *stack) {
		afterAWhile := func() string {
			time.Sleep(61 * time.Second) // the files are looked at, and complained of again; idle connections end
			s.get("/orders")
			return s.log.String()
		}

		s.get("/orders")
		web.wantSeen(t, "/oauth/token", "client HTTP/1.1")
		web.wantSeen(t, "/orders", "client HTTP/2.0")

		f.write("ca", second.pem[:len(second.pem)/2])
		if log := afterAWhile(); strings.Count(log, "holds a block that is cut off or damaged") != 2 { // told by each leg, once
			t.Errorf("a file half written: the log says %s", log)
		}
		f.write("ca", second.pem)
		f.write("cert", renewed.certificate) // of which the key has yet to come
		if log := afterAWhile(); !strings.Contains(log, "private key does not match public key") {
			t.Errorf("a certificate without its key: the log says %s", log)
		}
		web.wantSeen(t, "/orders", "client HTTP/2.0")

		f.write("key", renewed.key)
		web.be(t, second, renewedServer)
		if log := afterAWhile(); !strings.Contains(log, "certificates have changed: new connections use them") {
			t.Errorf("the log says %s", log)
		}
		web.wantSeen(t, "/oauth/token", "renewed client HTTP/1.1") // asked at once, for a certificate is a credential
		web.wantSeen(t, "/orders", "renewed client HTTP/2.0")
		if got := provider.Stats(); got.ClientCredentials != 2 || got.APIRefused != 0 {
			t.Errorf("got %+v, want a full grant with each certificate", got)
		}
		if strings.Contains(s.log.String(), "PRIVATE KEY") {
			t.Error("the log holds a key")
		}
	})
}

// A bundle stands in place of the system's roots.
func TestTheBundleAloneVouches(t *testing.T) {
	trusted := httptest.NewTLSServer(http.NotFoundHandler())
	defer trusted.Close()
	stranger := newAuthority(t, "stranger")
	f := folder{t, t.TempDir()}
	f.write("own", encode("CERTIFICATE", trusted.Certificate().Raw))
	f.write("stranger", stranger.pem)
	f.write("both", "# two of them\n"+stranger.pem+"\nand\n"+encode("CERTIFICATE", trusted.Certificate().Raw))
	for bundle, want := range map[string]bool{"own": true, "both": true, "stranger": false, "gone": false} {
		l := newLeg(tlsFiles{ca: f.file(bundle)}, func() *http.Transport {
			systems := x509.NewCertPool() // which would trust it
			systems.AddCert(trusted.Certificate())
			return &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: systems}}
		})
		req, _ := http.NewRequest("GET", trusted.URL, nil)
		resp, err := l.RoundTrip(req)
		if (err == nil) != want {
			t.Errorf("%s: got %v", bundle, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
}

func TestTheUpstreamMustSpeakTLS12OrLater(t *testing.T) {
	for version, want := range map[uint16]bool{tls.VersionTLS11: false, tls.VersionTLS12: true, tls.VersionTLS13: true} {
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.TLS = &tls.Config{MinVersion: version, MaxVersion: version}
		server.Config.ErrorLog = zap.NewStdLog(zap.NewNop())
		server.StartTLS()
		f := folder{t, t.TempDir()}
		f.write("ca", encode("CERTIFICATE", server.Certificate().Raw))
		cfg, err := loadConfig(map[string]string{
			"UPSTREAM_URL": server.URL, "TOKEN_URL": server.URL, "CLIENT_ID": "id", "CLIENT_AUTH_METHOD": "none", "UPSTREAM_CA_FILE": f.file("ca"),
		})
		if err != nil {
			t.Fatal(err)
		}
		req, _ := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
		resp, err := newApp(cfg, zap.NewNop(), nil).toUpstream.RoundTrip(req)
		if (err == nil) != want {
			t.Errorf("%s: got %v", tls.VersionName(version), err)
		}
		if err == nil {
			_ = resp.Body.Close()
		}
		server.Close()
	}
}

func TestFaultsOfCertificatesAreToldByVariable(t *testing.T) {
	by := newAuthority(t, "authority")
	good, other := by.issue(t, "client"), by.issue(t, "other")
	f := folder{t, t.TempDir()}
	for name, content := range map[string]string{
		"ca": by.pem, "cert": good.certificate, "key": good.key, "other": other.key, "empty": "", "text": "no certificate",
		"half": by.pem + by.pem[:100], "pieces": by.pem[:100] + "\n" + by.pem, "damaged": encode("CERTIFICATE", []byte("not DER")), "keys": good.key,
	} {
		f.write(name, content)
	}
	for _, tt := range []struct{ name, value, says string }{
		{"TOKEN_CA_FILE", f.file("absent"), "TOKEN_CA_FILE: stat .*absent: no such file"},
		{"TOKEN_CA_FILE", f.file("empty"), "TOKEN_CA_FILE: .*empty: holds no PEM certificate"},
		{"TOKEN_CA_FILE", f.file("text"), "TOKEN_CA_FILE: .*text: holds no PEM certificate"},
		{"TOKEN_CA_FILE", f.file("keys"), "TOKEN_CA_FILE: .*keys: holds no PEM certificate"},
		{"TOKEN_CA_FILE", f.file("half"), "TOKEN_CA_FILE: .*half: holds a block that is cut off or damaged"},
		{"TOKEN_CA_FILE", f.file("pieces"), "TOKEN_CA_FILE: .*pieces: holds a block that is cut off or damaged"},
		{"UPSTREAM_CA_FILE", f.file("damaged"), "UPSTREAM_CA_FILE: .*damaged: x509: malformed"},
		{"UPSTREAM_KEY_FILE", f.file("other"), "UPSTREAM_CERT_FILE: .*cert, .*other: tls: private key does not match"},
		{"UPSTREAM_KEY_FILE", "", "UPSTREAM_CERT_FILE: and UPSTREAM_KEY_FILE must be set both, or neither"},
		{"TOKEN_CERT_FILE", "", "TOKEN_CERT_FILE: is required for CLIENT_AUTH_METHOD=tls_client_auth"},
	} {
		environ := f.environ()
		environ[tt.name] = tt.value
		_, err := loadConfig(environ)
		if err == nil || !matches(`\(1\):\n  `+tt.says, err.Error()) {
			t.Errorf("%s=%s: got %v, want %s", tt.name, tt.value, err, tt.says)
		}
		if err != nil && strings.Contains(err.Error(), "PRIVATE KEY-") {
			t.Errorf("the fault shows a key: %v", err)
		}
	}
	if _, err := loadConfig(f.environ()); err != nil {
		t.Errorf("without a fault: got %v", err)
	}
}
