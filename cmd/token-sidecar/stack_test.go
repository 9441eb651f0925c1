package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// exampleEnv reads one of the files in examples, as docker run --env-file does.
func exampleEnv(t *testing.T, name string) map[string]string {
	t.Helper()
	content, err := os.ReadFile("../../examples/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return parseEnvFile(string(content))
}

func parseEnvFile(content string) map[string]string {
	environ := map[string]string{}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			environ[key] = value
		}
	}
	return environ
}

// stack is the whole sidecar between an app and a provider, over pipes, in a
// bubble of fake time.
type stack struct {
	t        *testing.T
	provider *granttest.Server
	app      *http.Client // what the legacy app uses
	log      *lockedBuffer
	dials    *lockedBuffer // the addresses to which connections were made
	admin    http.Handler
	ownPort  *granttest.Pipe    // where that is served
	stop     context.CancelFunc // as SIGTERM does
}

// withStack runs test against a sidecar configured by environ alone. The
// provider is reached by https at whatever host environ names, but silent.test,
// which takes connections and leaves it at that.
func withStack(t *testing.T, environ map[string]string, provider *granttest.Server, test func(*stack)) {
	t.Helper()
	withServer(t, environ, provider, httptest.NewUnstartedServer(provider), test)
}

// withServer has that server stand before the provider.
func withServer(t *testing.T, environ map[string]string, provider *granttest.Server, server *httptest.Server, test func(*stack)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		// Bubbles begin in the year 2000, where Unix times are so small that
		// they could be seconds to live.
		time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)))

		cfg, err := loadConfig(environ)
		if err != nil {
			t.Fatal(err)
		}
		network := granttest.NewPipe()
		server.Listener.Close()
		server.Listener = network
		server.StartTLS()
		defer server.Close()
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())

		log, dials := &lockedBuffer{}, &lockedBuffer{}
		a := newApp(cfg, newLogger(log, zap.DebugLevel), func(tr *http.Transport) {
			tr.DialContext = func(ctx context.Context, kind, address string) (net.Conn, error) {
				fmt.Fprint(dials, address, " ")
				if address == "silent.test:443" {
					conn, _ := net.Pipe()
					return conn, nil
				}
				return network.Dial(ctx, kind, address)
			}
			tr.TLSClientConfig = &tls.Config{RootCAs: roots, ServerName: "example.com"} // the certificate's name
		})
		ctx, stop := context.WithCancel(t.Context())
		local, adminLocal := granttest.NewPipe(), granttest.NewPipe()
		admin := a.admin.Handler
		served := make(chan error)
		go func() { served <- a.serve(ctx, local, adminLocal) }()
		app := &http.Transport{DialContext: local.Dial}

		defer func() { // also after a fatal error, or the bubble would hide it
			app.CloseIdleConnections()
			stop()
			if err := <-served; err != nil {
				t.Errorf("serve returned %v at a stop", err)
			}
			metrics := httptest.NewRecorder()
			admin.ServeHTTP(metrics, httptest.NewRequest("GET", "http://localhost/metrics", nil))
			t.Log(log, metrics.Body)
		}()
		test(&stack{t, provider, &http.Client{Transport: app}, log, dials, admin, adminLocal, stop})
	})
}

// get sends one plain request and returns what the API saw of it.
func (s *stack) get(path string) granttest.Echo {
	s.t.Helper()
	resp, err := s.app.Get("http://localhost" + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("at %v: %s %s %v\n%s", time.Now(), resp.Status, body, err, s.log)
	}
	var echo granttest.Echo
	if err := json.Unmarshal(body, &echo); err != nil {
		s.t.Fatal(err)
	}
	return echo
}

// metric returns the value of one series.
func (s *stack) metric(series string) string {
	s.t.Helper()
	w := httptest.NewRecorder()
	s.admin.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/metrics", nil))
	for line := range strings.Lines(w.Body.String()) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), series+" "); ok {
			return value
		}
	}
	s.t.Errorf("no series %s", series)
	return ""
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestMakiniForSixtyDays(t *testing.T) {
	provider := granttest.Makini("your_client_id", "your_client_secret")
	withStack(t, exampleEnv(t, "makini.env"), provider, func(s *stack) {
		for range 60 * 24 {
			s.get("/api/connections")
			time.Sleep(time.Hour)
		}
		got := provider.Stats()
		// One a day at least, since MAX_LIFETIME is 24 h, and each is drawn
		// from 0.50 to 0.75 of that.
		if got.ClientCredentials != 1 || got.RefreshToken < 60*24/18 || got.RefreshToken > 60*24/12 {
			t.Errorf("got %d full grants and %d refreshes, want 1 and 80 to 120", got.ClientCredentials, got.RefreshToken)
		}
		if got.APIRefused != 0 || got.APIServed != 60*24 || got.MostAtOnce != 1 || got.Refused != 0 {
			t.Errorf("got %+v, want no refusal and one token request at a time", got)
		}
		if series := fmt.Sprint(got.RefreshToken); s.metric(`token_sidecar_token_refreshes_total{grant_type="refresh_token",result="success"}`) != series {
			t.Errorf("the metrics count other than %s refreshes", series)
		}
	})
}

func TestMakiniRefreshRefusedLeadsToAFullGrantInTheSameCycle(t *testing.T) {
	provider := granttest.Makini("your_client_id", "your_client_secret")
	withStack(t, exampleEnv(t, "makini.env"), provider, func(s *stack) {
		if n := s.get("/").TokenNumber; n != 1 {
			t.Errorf("got token %d, want 1", n)
		}
		provider.Script(granttest.Status(401, `{"error":"invalid_grant"}`))
		time.Sleep(18*time.Hour + time.Minute)
		if n := s.get("/").TokenNumber; n != 2 {
			t.Errorf("got token %d, want 2", n)
		}
		if got := provider.Stats(); got.ClientCredentials != 2 || got.RefreshToken != 1 {
			t.Errorf("got %+v, want a refresh and a second full grant", got)
		}
		if s.metric(`token_sidecar_token_refreshes_total{grant_type="refresh_token",result="rejected"}`) != "1" {
			t.Error("the refusal was not counted")
		}
	})
}

// A token of 30 days is replaced daily, yet an outage of a week is not felt.
func TestMakiniOutageForAWeek(t *testing.T) {
	provider := granttest.Makini("your_client_id", "your_client_secret")
	withStack(t, exampleEnv(t, "makini.env"), provider, func(s *stack) {
		s.get("/")
		provider.Always(granttest.Unavailable("900"))
		for range 8 * 24 {
			s.get("/")
			time.Sleep(time.Hour)
		}
		provider.Always(nil)
		time.Sleep(20 * time.Minute)
		if n := s.get("/").TokenNumber; n != 2 {
			t.Errorf("got token %d after the outage, want 2", n)
		}
	})
}

func TestAdminV3ForADay(t *testing.T) {
	provider := granttest.AdminV3("your_client_id", "your_client_secret")
	withStack(t, exampleEnv(t, "admin-v3.env"), provider, func(s *stack) {
		for range 24 * 60 {
			s.get("/v3/users")
			time.Sleep(time.Minute)
		}
		got := provider.Stats()
		if got.ClientCredentials != 1 || got.RefreshToken < 24*60/45 || got.RefreshToken > 24*60/30 {
			t.Errorf("got %d full grants and %d refreshes, want 1 and 32 to 48", got.ClientCredentials, got.RefreshToken)
		}
		if got.APIRefused != 0 || got.APIServed != 24*60 || got.MostAtOnce != 1 || got.Refused != 0 {
			t.Errorf("got %+v, want no refusal and one token request at a time", got)
		}
	})
}

func TestThousandRequestsOnAColdStartCauseOneTokenRequest(t *testing.T) {
	provider := granttest.AdminV3("your_client_id", "your_client_secret")
	provider.Delay = 2 * time.Second
	withStack(t, exampleEnv(t, "admin-v3.env"), provider, func(s *stack) {
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { s.get("/v3/users") })
		}
		wg.Wait()
		if got := provider.Stats(); got.Requests != 1 || got.APIServed != 1000 {
			t.Errorf("got %+v, want 1 token request and 1000 requests served", got)
		}
	})
}

func TestWrongCredentialsAreExplained(t *testing.T) {
	provider := granttest.Makini("your_client_id", "another canary")
	withStack(t, exampleEnv(t, "makini.env"), provider, func(s *stack) {
		resp, err := s.app.Get("http://localhost/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != 503 || !strings.Contains(string(body), "invalid_client") || resp.Header.Get("Retry-After") == "" {
			t.Errorf("got %s %s %v", resp.Status, body, resp.Header)
		}
		w := httptest.NewRecorder()
		s.admin.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/readyz", nil))
		if w.Code != 503 || !strings.Contains(w.Body.String(), "answered 403 invalid_client: the client is refused: check CLIENT_ID") {
			t.Errorf("readyz: %d %s", w.Code, w.Body)
		}
		time.Sleep(time.Hour)
		if n := provider.Stats().Requests; n < 12 || n > 61 {
			t.Errorf("got %d token requests in an hour of refusals, want one each 1 to 5 minutes", n)
		}
		if strings.Contains(s.log.String(), "your_client_secret") {
			t.Error("the log holds the secret")
		}
	})
}

func TestRevocationBehindOurBackIsNotSeen(t *testing.T) {
	provider := granttest.Makini("your_client_id", "your_client_secret")
	withStack(t, exampleEnv(t, "makini.env"), provider, func(s *stack) {
		for n := 1; n <= 5; n++ {
			if got := s.get("/").TokenNumber; got != n || provider.Stats().Requests != n {
				t.Errorf("got token %d by %d token requests, want %d", got, provider.Stats().Requests, n)
			}
			provider.Revoke()
			time.Sleep(10 * time.Second)
		}
	})
}
