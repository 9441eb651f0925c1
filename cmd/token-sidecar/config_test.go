package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

func TestEverySettingReachesTheTokenRequest(t *testing.T) {
	folder := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	environ := map[string]string{
		"UPSTREAM_URL": "https://api.example.com/v1", "TOKEN_URL": "https://auth.example.com/oauth/token?tenant=7",
		"CLIENT_ID": "id", "CLIENT_SECRET_FILE": file("secret", "p&ss+canary\n"), "CLIENT_AUTH_METHOD": "client_secret_basic",
		"SCOPE": "read write", "AUDIENCE": "api", "RESOURCE": "https://a.example, https://b.example",
		"TOKEN_PARAMETERS_FILE": file("parameters", "account_id=4%262\n"), "TOKEN_HEADERS_FILE": file("headers", "x-version=3"),
		"DEFAULT_LIFETIME": "", // empty is as good as not set
	}
	provider := &granttest.Server{ClientID: "id", ClientSecret: "p&ss+canary"}
	var seen string
	watchTokenRequests(provider, nil, func(r *http.Request, body string) {
		seen = fmt.Sprint(r.URL.RawQuery, " ", body, " ", r.Header.Get("X-Version"), " ", r.Header.Get("User-Agent"))
	})
	withStack(t, environ, provider, func(s *stack) {
		if uri := s.get("/orders").URI; uri != "/v1/orders" {
			t.Errorf("upstream path: got %s", uri)
		}
	})
	want := "tenant=7 account_id=4%262&audience=api&grant_type=client_credentials" +
		"&resource=https%3A%2F%2Fa.example&resource=https%3A%2F%2Fb.example&scope=read+write 3 token-sidecar/" + runningVersion()
	if seen != want {
		t.Errorf("token request:\ngot  %s\nwant %s", seen, want)
	}
}

// watchTokenRequests shows every token request to see before it is answered, or
// meets fault.
func watchTokenRequests(provider *granttest.Server, fault granttest.Fault, see func(r *http.Request, body string)) {
	provider.Always(func(w http.ResponseWriter, r *http.Request, grant http.Handler) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		see(r, string(body))
		if fault != nil {
			fault(w, r, grant)
			return
		}
		grant.ServeHTTP(w, r)
	})
}

func TestDefaultsAreValid(t *testing.T) {
	cfg, err := loadConfig(map[string]string{
		"UPSTREAM_URL": "http://localhost", "TOKEN_URL": "http://localhost/token", "CLIENT_ID": "id", "CLIENT_AUTH_METHOD": "none",
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.ListenAddress != "127.0.0.1:8080" || cfg.AdminAddress != "127.0.0.1:9090" {
		t.Errorf("the default is to listen at %s and %s, want loopback", cfg.ListenAddress, cfg.AdminAddress)
	}
	if cfg.TokenProxyURL.proxy != nil || cfg.UpstreamProxyURL.proxy != nil {
		t.Error("a proxy is used unasked")
	}
	if cfg.TokenRequestTimeout != 10*time.Second {
		t.Errorf("got %v for a token request", cfg.TokenRequestTimeout)
	}
}

func TestProxiesAreUsedWhenAskedFor(t *testing.T) {
	environ := map[string]string{
		"UPSTREAM_URL": "https://api.test", "TOKEN_URL": "https://auth.test/token", "CLIENT_ID": "id", "CLIENT_SECRET": "s",
		"TOKEN_PROXY_URL": "http://user:password@proxy:3128", "UPSTREAM_PROXY_URL": "environment",
	}
	cfg, err := loadConfig(environ)
	if err != nil || cfg.TokenProxyURL.proxy == nil || cfg.UpstreamProxyURL.proxy == nil {
		t.Fatalf("got %v", err)
	}
	req, _ := http.NewRequest("GET", "https://auth.test/token", nil)
	if u, err := cfg.TokenProxyURL.proxy(req); err != nil || u.Host != "proxy:3128" {
		t.Errorf("got %v, %v", u, err)
	}
	file := filepath.Join(t.TempDir(), "proxy")
	if err := os.WriteFile(file, []byte("socks5://proxy:1080\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	environ["TOKEN_PROXY_URL_FILE"] = file
	if _, err := loadConfig(environ); err == nil || !strings.Contains(err.Error(), "TOKEN_PROXY_URL_FILE: is set beside") {
		t.Errorf("both forms: got %v", err)
	}
	delete(environ, "TOKEN_PROXY_URL")
	if cfg, err := loadConfig(environ); err != nil || cfg.TokenProxyURL.proxy == nil {
		t.Errorf("from a file: got %v", err)
	}
	if err := os.WriteFile(file, []byte("proxy:1080\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadConfig(environ); err == nil || !strings.Contains(err.Error(), "TOKEN_PROXY_URL_FILE: want ") {
		t.Errorf("a fault in a file: got %v", err)
	}
	delete(environ, "TOKEN_PROXY_URL_FILE")
	for _, bad := range []string{"proxy:3128", "http://us er@proxy", "ftp://proxy", "http://"} {
		faulty := maps.Clone(environ)
		faulty["TOKEN_PROXY_URL"] = bad
		if _, err := loadConfig(faulty); err == nil || strings.Contains(err.Error(), "us er") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func TestFaultsThatOnlyShowLaterAreToldAtTheStart(t *testing.T) {
	good := map[string]string{
		"UPSTREAM_URL": "http://localhost", "TOKEN_URL": "http://localhost/token", "CLIENT_ID": "id", "CLIENT_SECRET": "s",
	}
	for _, fault := range []struct{ name, value string }{
		{"CLIENT_ID", "id\n"}, {"CLIENT_SECRET", "s\n"}, {"LISTEN_ADDRESS", "localhost:99999"}, {"ADMIN_ADDRESS", "127.0.0.1:8080"},
		{"TOKEN_HEADERS", "Accept=text/html"}, {"TOKEN_HEADERS", "connection=close"}, {"TOKEN_HEADERS", "X Y=1"}, {"TOKEN_HEADERS", "X=%0d"},
		{"TOKEN_HEADERS", "%zz"}, {"TOKEN_PARAMETERS", "%zz"}, {"TOKEN_URL", "http://localhost/#fragment"}, {"UPSTREAM_URL", "http://localhost/?query"},
		{"TOKEN_URL", "http://id:tr0 ub@localhost"}, {"TOKEN_URL", "http://id:tr0ub@localhost"}, {"UPSTREAM_URL", "api.example.com"},
		{"ALLOWED_HOSTS", "localhost:8080"}, {"ALLOWED_HOSTS", "http://a"}, {"ALLOWED_METHODS", "GET,trace"}, {"ALLOWED_METHODS", "PRI"}, {"ALLOWED_METHODS", "get,POST"}, {"ALLOWED_METHODS", "GET POST"},
		{"ALLOWED_PATHS", "orders"}, {"ALLOWED_PATHS", "//orders"}, {"DEBUG_ADDRESS", ":6060"}, {"DEBUG_ADDRESS", "10.0.0.7:6060"}, {"DEBUG_ADDRESS", "127.0.0.1"},
		{"DEBUG_ADDRESS", "127.0.0.1:x"}, {"DEBUG_ADDRESS", "127.0.0.1:99999"}, {"DEBUG_ADDRESS", "127.0.0.1:8080"}, {"DEBUG_ADDRESS", "127.0.0.1:9090"},
		{"ALLOWED_HOSTS", ","}, {"ALLOWED_METHODS", " , "}, {"ALLOWED_PATHS", ","}, {"RESOURCE", " "}, {"RESOURCE", "https://a.test, b"},
		{"MAX_HEADER_BYTES", "0"}, {"HEADER_TIMEOUT", "0"}, {"IDLE_TIMEOUT", "0s"}, {"STALL_TIMEOUT", "-1s"}, {"HALF_CLOSE_TIMEOUT", "-1s"}, {"ADMIN_QUIT", "perhaps"},
		{"LOG_LEVEL", "fatal"}, {"CLIENT_ID", `"id"`}, {"SCOPE", "'read'"},
	} {
		environ := maps.Clone(good)
		environ[fault.name] = fault.value
		if _, err := loadConfig(environ); err == nil || !strings.Contains(err.Error(), "(1):\n  "+fault.name+": ") || strings.Contains(err.Error(), "tr0") {
			t.Errorf("%s=%q: got %v", fault.name, fault.value, err)
		}
	}
}

func TestTheProbeAsksWhereTheAdminPortListens(t *testing.T) {
	for address, want := range map[string]string{
		"": "127.0.0.1:9090", ":9091": "localhost:9091", "0.0.0.0:9091": "localhost:9091", "[::]:9091": "localhost:9091",
		"10.0.0.7:9091": "10.0.0.7:9091", "sidecar:9091": "sidecar:9091",
	} {
		if got, err := adminHost(map[string]string{"ADMIN_ADDRESS": address}); err != nil || got != want {
			t.Errorf("ADMIN_ADDRESS=%s: asked at %s, %v, want %s", address, got, err, want)
		}
	}
}
