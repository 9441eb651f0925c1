package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// What files hold in place of variables is taken up when it changes. What
// cannot be used does no harm, and is complained of once a minute.
func TestSettingsInFilesAreTakenUpWhenTheyChange(t *testing.T) {
	provider := &granttest.Server{RefreshLife: -1}
	var seen string
	watchTokenRequests(provider, nil, func(r *http.Request, body string) {
		params, _ := url.ParseQuery(body)
		seen = params.Get("account_id") + " " + r.Header.Get("X-Version")
	})
	f := folder{t, t.TempDir()}
	for name, content := range map[string]string{
		"UPSTREAM_URL": "https://api.test", "TOKEN_URL": "https://auth.test/oauth/token", "CLIENT_ID": "id", "CLIENT_SECRET": "s",
		"TOKEN_PARAMETERS": "account_id=1", "TOKEN_HEADERS": "X-Version=1",
	} {
		f.write(name, content)
	}
	withStack(t, map[string]string{"CONFIG_DIR": f.path}, provider, func(s *stack) {
		wantSeen := func(want string, tokens int) {
			t.Helper()
			s.get("/")
			if got := provider.Stats().ClientCredentials; seen != want || got != tokens {
				t.Errorf("the token endpoint saw %q last, in %d requests, want %q in %d", seen, got, want, tokens)
			}
		}
		wantSeen("1 1", 1)
		f.write("TOKEN_PARAMETERS", "account_id=2\n")
		time.Sleep(6 * time.Second)
		wantSeen("2 1", 2) // asked at once, for they may be credentials

		for _, bad := range []string{"", "%zz", "grant_type=" + canary, `"account_id=3"`} {
			f.write("TOKEN_PARAMETERS", bad)
			before := strings.Count(s.log.String(), "cannot be used")
			time.Sleep(5 * time.Minute)
			if n := strings.Count(s.log.String(), "cannot be used") - before; n != 5 {
				t.Errorf("%q was complained of %d times in 5 minutes", bad, n)
			}
			wantSeen("2 1", 2)
		}
		f.write("TOKEN_PARAMETERS", "account_id=4")
		f.write("TOKEN_HEADERS", "X-Version=4")
		time.Sleep(6 * time.Second)
		wantSeen("4 4", 3)
		for _, secret := range append(granttest.Spellings(canary), "account_id=") {
			if strings.Contains(s.log.String(), secret) {
				t.Errorf("the log holds %s", secret)
			}
		}
	})
}

// Requests take the proxy of the moment, and none that exposes credentials.
func TestProxiesInFilesAreTakenUpWhenTheyChange(t *testing.T) {
	f := folder{t, t.TempDir()}
	f.write("token", "https://127.0.0.1:1")
	f.write("upstream", "https://127.0.0.1:2")
	environ := map[string]string{
		"UPSTREAM_URL": "http://localhost", "TOKEN_URL": "http://localhost/oauth/token", "CLIENT_ID": "id", "CLIENT_AUTH_METHOD": "none",
		"TOKEN_PROXY_URL_FILE": f.file("token"), "UPSTREAM_PROXY_URL_FILE": f.file("upstream"),
	}
	withStack(t, environ, &granttest.Server{}, func(s *stack) {
		known := 0
		wantDials := func(want string) {
			t.Helper()
			time.Sleep(6 * time.Second)
			s.get("/")
			all := s.dials.String()
			if got := all[known:]; got != want {
				t.Errorf("connected to %s, want %s", got, want)
			}
			known = len(all)
		}
		wantDials("127.0.0.1:1 127.0.0.1:2 ")
		f.write("token", "https://127.0.0.1:3")
		f.write("upstream", "https://127.0.0.1:4")
		wantDials("127.0.0.1:3 127.0.0.1:4 ")
		f.write("token", "https://elsewhere.test:5") // to which plain HTTP would leave the machine
		f.write("upstream", "https://127.0.0.1:6")
		wantDials("127.0.0.1:4 ")
		f.write("token", "https://127.0.0.1:3")
		wantDials("127.0.0.1:6 ")
	})
}
