package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// An effect is what a setting changes of what is seen around the sidecar: a
// pattern that is not found without it.
type effect struct {
	setting, pattern string
	provider         *granttest.Server // nil: one by the book
	fault            granttest.Fault   // what token requests meet
	upstream         string            // "": https://api.test
}

const begin = 1767225600 // when a stack begins, in Unix time

func effects() []effect {
	jwt := "e30." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"exp":%d}`, begin+300)) + ".x"
	inJWT := granttest.Edited(func(answer map[string]any) { answer["access_token"] = jwt })
	return []effect{
		{setting: "REFRESH_URL=https://auth.test/api/v3/auth/token", pattern: `asked for /api/v3/auth/token .*grant_type=refresh_token`},
		{setting: "REFRESH_CLIENT_AUTH=false", pattern: `asked for /oauth/token grant_type=refresh_token`},
		{setting: "CLIENT_AUTH_METHOD=client_secret_basic_raw", pattern: `by Basic `},
		{setting: "TOKEN_REQUEST_ENCODING=json", pattern: `asked for /oauth/token \{`},
		{setting: "TOKEN_PARAMETERS=account_id=7", pattern: `account_id=7`},
		{setting: "TOKEN_HEADERS=X-Version=7", pattern: `version 7`},
		{setting: "TOKEN_WAIT=3s", pattern: `app: 503 after 3s`, fault: granttest.Hang},
		{setting: "TOKEN_REQUEST_TIMEOUT=2s", pattern: `"time":"2026-01-01T00:00:02Z","msg":"no new access token"`, fault: granttest.Hang},
		{setting: "EXPIRES_IN_FORMAT=ignore", pattern: `"expires_in":"10m0s"`},
		{setting: "DEFAULT_LIFETIME=20m", pattern: `"expires_in":"20m0s"`, provider: &granttest.Server{ExpiresIn: granttest.Omitted}},
		{setting: "MAX_LIFETIME=10m", pattern: `"expires_in":"1h0m0s","next_refresh_in":"[567]m`},
		{setting: "EXPIRY_LEEWAY=9s", pattern: `1m3[12]s app: 503`, provider: &granttest.Server{Life: 100 * time.Second, RefreshLife: -1}, fault: once()},
		{setting: "USE_JWT_EXP=false", pattern: `connections: .*\n.*"expires_in":"1h0m0s"`, fault: inJWT},
		{setting: "USE_DATE_HEADER=false", pattern: `"expires_in":"1h0m0s"`, provider: &granttest.Server{ExpiresIn: granttest.Absolute}, fault: granttest.WrongDate(time.Unix(begin+1800, 0))},
		{setting: "ROTATION=overlap", pattern: `(?s)grant_type=client_credentials.*grant_type=client_credentials`},
		{setting: "REFRESH_WINDOW=0.10-0.20", pattern: `"next_refresh_in":"([6-9]|1[01])m`},
		{setting: "MIN_REFRESH_INTERVAL=7m", pattern: `"next_try_in":"7m0s"`, fault: granttest.Empty(500)},
		{setting: "UPSTREAM_CONNECT_TIMEOUT=7s", pattern: `app: 504 after 7s`, upstream: "https://silent.test"},
		{setting: "UPSTREAM_RESPONSE_TIMEOUT=3s", pattern: `app: 504 after 3s`, upstream: "https://mute.test"},
		{setting: "UPSTREAM_IDLE_TIMEOUT=100ms", pattern: `(api.test:443 ){50}`},
	}
}

// once lets the first token request through, and no other.
func once() granttest.Fault {
	asked := false
	return func(w http.ResponseWriter, r *http.Request, grant http.Handler) {
		if asked {
			granttest.Unavailable("900")(w, r, grant)
			return
		}
		asked = true
		grant.ServeHTTP(w, r)
	}
}

func TestEverySettingHasAnEffect(t *testing.T) {
	const here = "TestEverySettingHasAnEffect"
	shown := map[string]string{}
	for test, names := range shownElsewhere {
		for name := range strings.FieldsSeq(names) {
			shown[name] = test
		}
	}
	for i, with := range effects() {
		name, value, _ := strings.Cut(with.setting, "=")
		shown[name] = here
		t.Run(with.setting, func(t *testing.T) {
			if got := seenAround(t, effects()[i], "", ""); matches(with.pattern, got) {
				t.Errorf("%s is there without it", with.pattern)
			}
			if got := seenAround(t, with, name, value); !matches(with.pattern, got) {
				t.Errorf("there is no %s:\n%s", with.pattern, got)
			}
		})
	}
	for _, v := range variables() {
		if !strings.Contains(sourceOf(t, shown[v.name]), v.name) {
			t.Errorf("no test shows what %s does: add it to effects, or to shownElsewhere", v.name)
		}
	}
}

// shownElsewhere tells what other tests show the effect of.
var shownElsewhere = map[string]string{
	"TestEverySettingReachesTheTokenRequest":             "UPSTREAM_URL TOKEN_URL CLIENT_ID SCOPE AUDIENCE RESOURCE TOKEN_PARAMETERS_FILE TOKEN_HEADERS_FILE",
	"TestSettingsInFilesAreTakenUpWhenTheyChange":        "CONFIG_DIR CLIENT_SECRET",
	"TestProxiesInFilesAreTakenUpWhenTheyChange":         "TOKEN_PROXY_URL_FILE UPSTREAM_PROXY_URL_FILE",
	"TestRequestsTakeTheProxyOfTheirLeg":                 "TOKEN_PROXY_URL UPSTREAM_PROXY_URL",
	"TestASecretPutRightInPlaceIsUsedAtOnce":             "CLIENT_SECRET_FILE",
	"TestCertificatesOfBothLegsAreTakenUpWhenTheyChange": "TOKEN_CA_FILE TOKEN_CERT_FILE TOKEN_KEY_FILE UPSTREAM_CA_FILE UPSTREAM_CERT_FILE UPSTREAM_KEY_FILE",
	"TestTheLimitsOfAClientAreSettings":                  "ALLOWED_HOSTS ALLOWED_METHODS ALLOWED_PATHS ALLOW_CROSS_SITE ALLOW_UNDERSCORE_HEADERS MAX_HEADER_BYTES HEADER_TIMEOUT IDLE_TIMEOUT STALL_TIMEOUT",
	"TestAClientThatHasLeftIsGivenUpInTheWiredSidecar":   "HALF_CLOSE_TIMEOUT",
	"TestTheLongestIdleIsClosedInTheWiredSidecar":        "MAX_CONNECTIONS",
	"TestHTTP2IsSpokenWhereItIsAskedFor":                 "LISTEN_HTTP2 UPSTREAM_HTTP2",
	"TestWhatExposesCredentialsIsRefusedUnlessPermitted": "ALLOW_REMOTE_CLIENTS ALLOW_PLAIN_HTTP",
	"TestServesOnThroughTheShutdownDelay":                "SHUTDOWN_DELAY",
	"TestTunnelsAreCutOffAtTheDeadline":                  "DRAIN_TIMEOUT",
	"serve.txt":                                          "LISTEN_ADDRESS ADMIN_ADDRESS",
	"debug.txt":                                          "DEBUG_ADDRESS",
	"quit.txt":                                           "ADMIN_QUIT",
	"revocation.txt":                                     "REVOCATION_URL",
	"overload.txt":                                       "MAX_IN_FLIGHT",
	"secret-file.txt":                                    "LOG_LEVEL",
}

// sourceOf returns the file that a test is in, or a script.
func sourceOf(t *testing.T, test string) string {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, "testdata/script/"+test) {
		content, err := os.ReadFile(file)
		if err == nil && (strings.HasSuffix(file, ".txt") || strings.Contains(string(content), "\nfunc "+test+"(")) {
			return string(content)
		}
	}
	return ""
}

// seenAround is what the token endpoint, the app and the log of a sidecar see
// of it within an hour, and where it connects to.
func seenAround(t *testing.T, e effect, name, value string) string {
	provider := cmp.Or(e.provider, &granttest.Server{})
	var seen lockedBuffer
	watchTokenRequests(provider, e.fault, func(r *http.Request, body string) {
		fmt.Fprintf(&seen, "asked for %s %s by %s version %s\n", r.URL.Path, body, r.Header.Get("Authorization"), r.Header.Get("X-Version"))
	})
	environ := map[string]string{
		"UPSTREAM_URL": cmp.Or(e.upstream, "https://api.test"), "TOKEN_URL": "https://auth.test/oauth/token", "CLIENT_ID": "id", "CLIENT_SECRET": "s", name: value,
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "mute.test" {
			<-r.Context().Done()
			return
		}
		provider.ServeHTTP(w, r)
	}))
	withServer(t, environ, provider, server, func(s *stack) {
		start := time.Now()
		ask := func(pause time.Duration) {
			time.Sleep(pause)
			at := time.Now()
			ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://localhost/", nil)
			resp, err := s.app.Do(req)
			if err != nil {
				return
			}
			_ = resp.Body.Close()
			fmt.Fprintf(&seen, "%v app: %d after %v\n", at.Sub(start), resp.StatusCode, time.Since(at))
		}
		for range 100 {
			ask(time.Second)
		}
		ask(time.Hour)
		fmt.Fprintf(&seen, "connections: %s\n%s", s.dials, s.log)
	})
	return seen.String()
}
