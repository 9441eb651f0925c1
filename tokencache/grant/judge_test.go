package grant

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// outcome is what an answer means to each grant.
type outcome struct{ full, refresh failure }

func (o outcome) of(grantType string) failure {
	if grantType == refreshToken {
		return o.refresh
	}
	return o.full
}

var (
	invalidGrant = failure{tokencache.ErrRefreshTokenRejected, "invalid_grant", 0}
	serverError  = failure{nil, "server_error", 0}

	wrongClient   = outcome{failure{tokencache.ErrClientRejected, "invalid_client", 0}, invalidGrant}
	wrongRequest  = outcome{failure{tokencache.ErrClientRejected, "invalid_request", 0}, invalidGrant}
	wrongEndpoint = outcome{failure{tokencache.ErrClientRejected, "wrong_endpoint", 0}, invalidGrant}
	redirect      = outcome{failure{tokencache.ErrClientRejected, "redirect", 0}, failure{tokencache.ErrRefreshTokenRejected, "redirect", 0}}
	failed        = outcome{serverError, serverError}
	badResponse   = outcome{failure{nil, "bad_response", 0}, failure{tokencache.ErrOutcomeUnknown, "bad_response", 0}}
	errorInside   = outcome{failure{nil, "bad_response", 0}, invalidGrant}
	otherType     = outcome{failure{tokencache.ErrClientRejected, "token_type", 0}, failure{tokencache.ErrRefreshTokenRejected, "token_type", 0}}
)

func busyFor(d time.Duration) outcome {
	f := failure{nil, "rate_limited", d}
	return outcome{f, f}
}

func unavailableFor(d time.Duration) outcome {
	f := failure{nil, "unavailable", d}
	return outcome{f, f}
}

// wantOutcome asks address with both grants for the outcome.
func wantOutcome(t *testing.T, address string, want outcome) {
	t.Helper()
	for _, grantType := range bothGrants {
		_, err := ask(t.Context(), clientOf(t, address, Config{}), grantType)
		if got := failureOf(t, err); got != want.of(grantType) {
			t.Errorf("%s grant: %v: got %v, want %v", grantType, err, got, want.of(grantType))
		}
	}
}

func TestTheStatusDecidesWhateverTheBodySays(t *testing.T) {
	srv := &granttest.Server{}
	address := serve(t, srv) + "/oauth/token"
	for status, want := range map[int]outcome{
		300: redirect, 301: redirect, 302: redirect, 303: redirect, 304: redirect, 307: redirect, 308: redirect,
		400: wrongRequest, 402: wrongRequest, 406: wrongRequest, 409: wrongRequest, 410: wrongRequest, 411: wrongRequest,
		413: wrongRequest, 415: wrongRequest, 418: wrongRequest, 422: wrongRequest, 425: wrongRequest, 451: wrongRequest, 499: wrongRequest,
		401: wrongClient, 403: wrongClient,
		404: wrongEndpoint, 405: wrongEndpoint,
		408: busyFor(time.Second), 429: busyFor(5 * time.Second), 503: unavailableFor(time.Second),
		500: failed, 501: failed, 502: failed, 504: failed, 505: failed, 520: failed, 599: failed,
	} {
		for body, fault := range map[string]granttest.Fault{
			"empty":         granttest.Empty(status),
			"HTML":          granttest.HTML(status),
			"invalid_grant": granttest.Status(status, `{"error":"invalid_grant"}`),
			"another error": granttest.Status(status, `{"errors":[{"errorType":"invalid_token"}],"success":false}`),
			"a good token":  granttest.Status(status, `{"access_token":"a","token_type":"Bearer","expires_in":3600}`),
		} {
			t.Run(fmt.Sprint(status, " ", body), func(t *testing.T) {
				srv.Always(fault)
				wantOutcome(t, address, want)
			})
		}
	}
}

func TestStatusesBelow200AreNoAnswer(t *testing.T) {
	for _, status := range []int{0, 99, 101} {
		address := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := http.NewResponseController(w).Hijack()
			_, _ = fmt.Fprintf(conn, "HTTP/1.1 %03d X\r\nContent-Length: 20\r\n\r\n{\"access_token\":\"a\"}", status)
			_ = conn.Close()
		}))
		wantOutcome(t, address, badResponse)
	}
}

func TestRetryAfterOfEitherForm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{}
		c := clientOf(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)})
		in := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
		for value, want := range map[string]time.Duration{
			"7":                 7 * time.Second,
			" 7 ":               7 * time.Second,
			"1.9":               time.Second,
			"100000000000":      longest,
			"1e400":             5 * time.Second,
			in(2 * time.Minute): 2 * time.Minute,
			time.Now().Add(2 * time.Minute).UTC().Format(time.RFC850): 2 * time.Minute,
			in(-time.Hour):                  5 * time.Second,
			"Fri, 31 Dec 9999 23:59:59 GMT": longest,
			"0":                             5 * time.Second,
			"-7":                            5 * time.Second,
			"NaN":                           5 * time.Second,
			"soon":                          5 * time.Second,
			"":                              5 * time.Second,
		} {
			srv.Always(granttest.TooManyRequests(value))
			for _, grantType := range bothGrants {
				_, err := ask(t.Context(), c, grantType)
				if got := failureOf(t, err); got != busyFor(want).full {
					t.Errorf("%q: got %v, want %v", value, got, want)
				}
			}
		}
		for status, want := range map[int]outcome{503: unavailableFor(7 * time.Second), 408: busyFor(7 * time.Second)} {
			srv.Always(withRetryAfter(status, "7"))
			_, err := c.ClientCredentials(t.Context())
			if got := failureOf(t, err); got != want.full {
				t.Errorf("%d: got %v", status, got)
			}
		}
		srv.Always(withRetryAfter(500, "7"))
		_, err := c.ClientCredentials(t.Context())
		wantFailure(t, err, serverError)
	})
}

func withRetryAfter(status int, value string) granttest.Fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		w.Header().Set("Retry-After", value)
		w.WriteHeader(status)
	}
}

func TestADateInRetryAfterIsOfTheServersClock(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Hour, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			c := clientOf(t, "http://server/", Config{Transport: overPipe(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				now := time.Now().Add(ahead).UTC()
				w.Header().Set("Date", now.Format(http.TimeFormat))
				w.Header().Set("Retry-After", now.Add(2*time.Minute).Format(http.TimeFormat))
				w.WriteHeader(http.StatusTooManyRequests)
			}))})
			_, err := c.ClientCredentials(t.Context())
			wantFailure(t, err, busyFor(2*time.Minute).full)
		})
	}
}

func TestAnswersOf200ThatAreNone(t *testing.T) {
	r := &recorder{}
	address := serve(t, r)
	for body, want := range map[string]outcome{
		// an error in spite of it
		`{"error":"invalid_grant"}`:                       errorInside,
		`{"error":"x","access_token":"a"}`:                errorInside,
		`{"error":{"code":7},"access_token":"a"}`:         errorInside,
		`{"error":true,"access_token":"a"}`:               errorInside,
		`{"errcode":40001,"errmsg":"invalid credential"}`: errorInside,
		`{"errcode":"40001","access_token":"a"}`:          errorInside,
		`error=bad_refresh_token&error_description=x`:     errorInside,
		`{"error":"invalid_client"}`:                      wrongClient,
		`error=incorrect_client_credentials`:              wrongClient,

		// neither an object nor a form
		"  ": badResponse,
		"<!DOCTYPE html>\n<title>Sign in</title>": badResponse,
		`<a href="?access_token=a">`:              badResponse,
		`a`:                                       badResponse,
		`"a"`:                                     badResponse,
		`null`:                                    badResponse,
		`[{"access_token":"a"}]`:                  badResponse,
		`{`:                                       badResponse,
		`{"access_token":"a"`:                     badResponse,
		`{"access_token":"a`:                      badResponse,
		`{"access_token":`:                        badResponse,
		`{"access_token":"a",}`:                   badResponse,
		`{"access_token":"a"]`:                    badResponse,
		`{"access_token" "a"}`:                    badResponse,
		`{"access_token":a}`:                      badResponse,
		`{'access_token':'a'}`:                    badResponse,
		`{1:2,"access_token":"a"}`:                badResponse,
		"{\"access_token\":\"a\rb\"}":             badResponse,
		"\ufeff" + `{"access_token":"a"}`:         badResponse,
		`access_token=%zz`:                        badResponse,
		`access_token=a;b=c`:                      badResponse,
		`token=a`:                                 badResponse,

		// in two minds
		`{"access_token":"a","access_token":"b"}`:                  badResponse,
		`{"access_token":"a","access\u005ftoken":"b"}`:             badResponse,
		`{"access_token":"a","access_token":null}`:                 badResponse,
		`{"access_token":"a","expires_in":1,"expires_in":2}`:       badResponse,
		`{"access_token":"a"}{"access_token":"b"}`:                 badResponse,
		`{"access_token":"a"} trailing`:                            badResponse,
		`{"access_token":"a"}}`:                                    badResponse,
		`access_token=a&access_token=b`:                            badResponse,
		`{"access_token":"a"` + strings.Repeat(" ", maxBody) + `}`: badResponse,

		// no access token
		`{}`:                               badResponse,
		`{"ACCESS_TOKEN":"a"}`:             badResponse,
		`{"accessToken":"a"}`:              badResponse,
		`{"data":{"access_token":"a"}}`:    badResponse,
		`{"access_token":null}`:            badResponse,
		`{"access_token":""}`:              badResponse,
		`{"access_token":7}`:               badResponse,
		`{"access_token":true}`:            badResponse,
		`{"access_token":["a"]}`:           badResponse,
		`{"access_token":{"token":"a"}}`:   badResponse,
		`access_token=&token_type=bearer`:  badResponse,
		`{"access_token":"","error":""}`:   badResponse,
		`{"token":"a","errcode":0}`:        badResponse,
		`{"refresh_token":"a","error":""}`: badResponse,

		// no bearer token
		`{"access_token":"a","token_type":"DPoP"}`: otherType,
		`{"access_token":"a","token_type":"dpop"}`: otherType,
		`{"access_token":"a","token_type":"mac"}`:  otherType,
		`{"access_token":"a","token_type":"MAC"}`:  otherType,
		`{"access_token":"a","token_type":"PoP"}`:  otherType,
		`{"access_token":"a","token_type":"N_A"}`:  otherType,
	} {
		t.Run(body[:min(len(body), 60)], func(t *testing.T) {
			r.answer = body
			wantOutcome(t, address, want)
		})
	}
	t.Run("empty", func(t *testing.T) {
		srv := &granttest.Server{}
		srv.Always(granttest.Empty(200))
		wantOutcome(t, serve(t, srv)+"/oauth/token", badResponse)
	})
}

func TestAnswersThatAreGoodEnough(t *testing.T) {
	for _, body := range []string{
		`{"access_token":"a"}`,
		"\r\n\t {\"access_token\":\"a\"}\n\n",
		`{"access\u005ftoken":"\u0061"}`,
		`{"access_token":"a","token_type":null}`,
		`{"access_token":"a","token_type":7}`,
		`{"access_token":"a","token_type":"bearer"}`,
		`{"access_token":"a","token_type":"BEARER"}`,
		`{"access_token":"a","token_type":"BearerToken"}`,
		`{"access_token":"a","token_type":"Application Access Token"}`,
		`{"access_token":"a","error":null}`,
		`{"access_token":"a","error":""}`,
		`{"access_token":"a","error":false,"errcode":0}`,
		`{"access_token":"a","errcode":"0","errmsg":"ok"}`,
		`{"access_token":"a","ACCESS_TOKEN":"b","Error":"none"}`,
		`{"access_token":"a","nested":{"access_token":"b","access_token":"c"},"n":1e999,"":[]}`,
		`{"access_token":"a","expires_in":"never","scope":7,"refresh_token":7,"refresh_in":[]}`,
		`access_token=a&token_type=bearer&expires_in=3600&scope=`,
		`access%5ftoken=%61`,
	} {
		for _, grantType := range bothGrants {
			token, err := ask(t.Context(), clientOf(t, serve(t, &recorder{answer: body}), Config{}), grantType)
			if err != nil || token.Access.Reveal() != "a" {
				t.Errorf("%s: got %q, %v", body, token.Access.Reveal(), err)
			}
		}
	}
	srv := &granttest.Server{}
	srv.Script(granttest.Status(201, `{"access_token":"a"}`), granttest.FormEncoded, srv.SameToken)
	c := clientOf(t, serve(t, srv)+"/oauth/token", Config{})
	for range 3 {
		if _, err := c.ClientCredentials(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestATokenThatNoHeaderMayHoldIsRefused(t *testing.T) {
	r := &recorder{}
	address := serve(t, r)
	for token, good := range map[string]bool{
		"a":                             true,
		"-._~+/0Az=":                    true, // RFC 6750 section 2.1
		"00D!AQ4AQ|x:;<>()[]{}@#$%^&*?": true,
		strings.Repeat("a", 16<<10):     true,
		strings.Repeat("a", 16<<10+1):   false,
		strings.Repeat("a", 17<<10):     false,
		"a\r":                           false,
		"\na":                           false,
		"a\r\nX-Evil: 1":                false,
		"a\x00b":                        false,
		"a b":                           false,
		" a":                            false,
		"a ":                            false,
		"a\tb":                          false,
		"é":                             false,
		"a\u00a0":                       false,
		"a\x7f":                         false,
		"a\x1b[31m":                     false,
		"a\u200b":                       false,
		"a\ufffd":                       false,
		"a\xff":                         false,
		"a,b":                           false,
		`a"b`:                           false,
		`a\b`:                           false,
	} {
		asJSON, _ := json.Marshal(map[string]string{"access_token": token})
		for _, body := range []string{string(asJSON), url.Values{"access_token": {token}}.Encode()} {
			r.answer = body
			if !good {
				wantOutcome(t, address, badResponse)
				continue
			}
			got, err := clientOf(t, address, Config{}).ClientCredentials(t.Context())
			if err != nil || got.Access.Reveal() != token {
				t.Errorf("%.30q: got %.30q, %v", token, got.Access.Reveal(), err)
			}
		}
	}
}

func TestDPoPIsNamedAsTheTrouble(t *testing.T) {
	srv := &granttest.Server{}
	srv.Always(granttest.Status(400, `{"error":"use_dpop_nonce","error_description":"Authorization server requires nonce in DPoP proof"}`))
	address := serve(t, srv) + "/oauth/token"
	wantOutcome(t, address, otherType)
	_, err := clientOf(t, address, Config{}).ClientCredentials(t.Context())
	if !strings.Contains(err.Error(), "DPoP (RFC 9449)") {
		t.Errorf("%v does not say so", err)
	}
}

func TestATokenOfAnotherTypeIsRefusedInWords(t *testing.T) {
	r := &recorder{}
	address := serve(t, r)
	for tokenType, want := range map[string]string{"DPoP": "DPoP (RFC 9449)", "mac": "MAC token", "PoP": "bound to a key", "N_A": "not an access token"} {
		r.answer = `{"access_token":"a","token_type":"` + tokenType + `"}`
		if _, err := clientOf(t, address, Config{}).ClientCredentials(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", tokenType, err, want)
		}
	}
}

func TestOnlyKnownErrorCodesAreShown(t *testing.T) {
	srv := &granttest.Server{}
	address := serve(t, srv) + "/oauth/token"
	answered := func(status int, code string) *Error {
		body, _ := json.Marshal(map[string]string{"error": code, "error_description": "canary", "error_uri": "canary"})
		srv.Always(granttest.Status(status, string(body)))
		_, err := clientOf(t, address, Config{}).ClientCredentials(t.Context())
		return err.(*Error)
	}
	for _, status := range []int{200, 400, 429, 500} {
		for _, code := range knownCodes {
			if err := answered(status, code); err.Code != code || !strings.Contains(err.Error(), fmt.Sprintf(": answered %d %s: ", status, code)) {
				t.Errorf("%d %s: got %q in %q", status, code, err.Code, err)
			}
		}
		for _, code := range []string{"canary", "Invalid_Grant", "invalid_grant ", "invalid_grant canary", "invalid_client\n", "é"} {
			if err := answered(status, code); err.Code != "" || strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), strings.TrimSpace(code)) {
				t.Errorf("%d %q: got %q in %q", status, code, err.Code, err)
			}
		}
	}
}

func TestAnErrorReadsLikeThis(t *testing.T) {
	for want, err := range map[string]error{
		"token endpoint https://auth.test/token: client_credentials grant: answered 401 invalid_client: " +
			"the client is refused: check CLIENT_ID, the client secret and CLIENT_AUTH_METHOD": judged(t, clientCredentials, 401, `{"error":"invalid_client"}`),
		"token endpoint https://auth.test/token: refresh_token grant: answered 502: the server failed": judged(t, refreshToken, 502, ``),
		"token endpoint: refresh_token grant: not asked":                                               &Error{GrantType: refreshToken, advice: "not asked"},
	} {
		if got := err.Error(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func judged(t *testing.T, grantType string, status int, body string) error {
	t.Helper()
	_, err := location{"https://auth.test/token", grantType}.judge(answer{status, http.Header{}, []byte(body)}, t0)
	return err
}

func TestTheEndpointIsShownWithoutUserQueryAndFragment(t *testing.T) {
	u, _ := url.Parse("https://user:canary@auth.test:8443/a%2Fb/token?key=canary#canary")
	if got, want := publicURL(u), "https://auth.test:8443/a/b/token"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
