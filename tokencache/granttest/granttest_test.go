package granttest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

const formType, jsonType = "application/x-www-form-urlencoded", "application/json"

func Example() {
	srv := granttest.Makini("id", "secret")
	web := httptest.NewServer(srv)
	defer web.Close()
	srv.Script(granttest.TooManyRequests("7"))

	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {"id"}, "client_secret": {"secret"}}
	for range 2 {
		res, err := http.PostForm(web.URL+"/oauth/token", form)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Printf("%s, Retry-After %q\n", res.Status, res.Header.Get("Retry-After"))
		_ = res.Body.Close()
	}
	fmt.Printf("%+v\n", srv.Stats())
	// Output:
	// 429 Too Many Requests, Retry-After "7"
	// 200 OK, Retry-After ""
	// {Requests:2 ClientCredentials:2 RefreshToken:0 Granted:1 Refused:0 MostAtOnce:1 Revoked:0 APIServed:0 APIRefused:0}
}

// The full and the refresh grant.

func TestEachGrantIssuesANewPair(t *testing.T) {
	srv := &granttest.Server{}
	first := fullGrant(t, srv)
	second := refresh(t, srv, first)
	if first.access() == second.access() || first.refresh() == second.refresh() {
		t.Errorf("a token came twice: %v, %v", first, second)
	}
	if got, want := first["token_type"], "Bearer"; got != want {
		t.Errorf("token_type = %v, want %v", got, want)
	}
	if got, want := string(first.number("expires_in")), "3600"; got != want {
		t.Errorf("expires_in = %v, want %v", got, want)
	}
	if !srv.Valid(first.access()) || !srv.Valid(second.access()) {
		t.Error("by default a refresh leaves the old access token alive")
	}
}

func TestARefreshTokenIsSpentByUse(t *testing.T) {
	srv := &granttest.Server{}
	first := fullGrant(t, srv)
	refresh(t, srv, first)
	for _, spent := range []string{first.refresh(), first.access(), "never issued"} {
		res := tokenRequest(srv, formType, "grant_type=refresh_token&refresh_token="+url.QueryEscape(spent))
		check(t, res, 400, "invalid_grant")
	}
}

func TestRefreshKillsTheAccessTokenAtOnce(t *testing.T) {
	srv := &granttest.Server{RefreshKills: true}
	first := fullGrant(t, srv)
	second := refresh(t, srv, first)
	if got, want := apiStatus(srv, first.access()), 401; got != want {
		t.Errorf("old token: status %d, want %d", got, want)
	}
	if got, want := apiStatus(srv, second.access()), 200; got != want {
		t.Errorf("new token: status %d, want %d", got, want)
	}
}

func TestAReusableRefreshTokenStaysAndIsNotAnsweredAgain(t *testing.T) {
	srv := &granttest.Server{RefreshReusable: true, RefreshKills: true}
	first := fullGrant(t, srv)
	for range 3 {
		answer := refresh(t, srv, first)
		if _, ok := answer["refresh_token"]; ok {
			t.Errorf("refresh answered a refresh token: %v", answer)
		}
	}
	if got, want := srv.Stats().Granted, 4; got != want {
		t.Errorf("granted %d, want %d", got, want)
	}
}

func TestNegativeRefreshLifeIssuesNoRefreshToken(t *testing.T) {
	srv := &granttest.Server{RefreshLife: -1}
	if answer := fullGrant(t, srv); answer["refresh_token"] != nil {
		t.Errorf("refresh token in %v", answer)
	}
	srv.Revoke() // which minds no missing refresh token
}

func TestGrantKillsMakesTwoProcessesFight(t *testing.T) {
	srv := &granttest.Server{GrantKills: true}
	here, other := fullGrant(t, srv), answerOf(t, tokenRequest(srv, formType, "grant_type=client_credentials&client_id=other"))
	fullGrant(t, srv)
	if srv.Valid(here.access()) {
		t.Error("the earlier pair of the client is still alive")
	}
	check(t, tokenRequest(srv, formType, "grant_type=refresh_token&refresh_token="+here.refresh()), 400, "invalid_grant")
	if !srv.Valid(other.access()) {
		t.Error("the pair of another client is dead")
	}
}

func TestARefreshTokenIsBoundToItsClient(t *testing.T) {
	srv := &granttest.Server{}
	mine := answerOf(t, tokenRequest(srv, formType, "grant_type=client_credentials&client_id=me"))
	theirs := "grant_type=refresh_token&client_id=you&refresh_token=" + mine.refresh()
	check(t, tokenRequest(srv, formType, theirs), 400, "invalid_grant")
}

func TestScopeIsEchoed(t *testing.T) {
	answer := answerOf(t, tokenRequest(&granttest.Server{}, formType, "grant_type=client_credentials&scope=a+b"))
	if got, want := answer["scope"], "a b"; got != want {
		t.Errorf("scope = %v, want %v", got, want)
	}
}

func TestTokensExpireOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{Life: time.Minute}
		pair := fullGrant(t, srv)
		time.Sleep(time.Minute - 1)
		if !srv.Valid(pair.access()) {
			t.Error("expired early")
		}
		time.Sleep(time.Nanosecond)
		if srv.Valid(pair.access()) {
			t.Error("alive at its expiry")
		}
		time.Sleep(time.Minute) // twice Life
		check(t, tokenRequest(srv, formType, "grant_type=refresh_token&refresh_token="+pair.refresh()), 400, "invalid_grant")
	})
}

func TestExpiresInComesInEverySpelling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the fake clock starts at 946684800
		for _, tt := range []struct {
			form func(time.Time, time.Duration) any
			want string
		}{
			{nil, `3600`},
			{granttest.Relative, `3600`},
			{granttest.Absolute, `946688400`},
			{granttest.Quoted(granttest.Relative), `"3600"`},
			{granttest.Quoted(granttest.Absolute), `"946688400"`},
			{granttest.Omitted, `absent`},
			{func(_ time.Time, life time.Duration) any { return life.Milliseconds() }, `3600000`},
			{func(time.Time, time.Duration) any { return 3599.7 }, `3599.7`},
			{func(time.Time, time.Duration) any { return json.RawMessage("null") }, `null`},
		} {
			res := tokenRequest(&granttest.Server{ExpiresIn: tt.form}, formType, "grant_type=client_credentials")
			members := map[string]json.RawMessage{"expires_in": json.RawMessage("absent")}
			if err := json.Unmarshal(res.Body.Bytes(), &members); err != nil {
				t.Fatal(err)
			}
			if got, want := string(members["expires_in"]), tt.want; got != want {
				t.Errorf("expires_in = %s, want %s", got, want)
			}
		}
	})
}

// Who may ask, and how.

func TestClientsAuthenticateInEveryWay(t *testing.T) {
	const id, secret = "my id", "s3cr:et/+canary&=% x"
	const grant = "grant_type=client_credentials"
	inForm := grant + "&" + url.Values{"client_id": {id}, "client_secret": {secret}}.Encode()
	inJSON := fmt.Sprintf(`{"grant_type":"client_credentials","client_id":%q,"client_secret":%q}`, id, secret)
	for _, tt := range []struct {
		name, user, password, contentType, body string
		status                                  int
		code                                    string
	}{
		{"form", "", "", formType, inForm, 200, ""},
		{"form with charset", "", "", formType + "; charset=UTF-8", inForm, 200, ""},
		{"JSON", "", "", jsonType, inJSON, 200, ""},
		{"Basic, raw", id, secret, formType, grant, 200, ""},
		{"Basic, form-encoded", url.QueryEscape(id), url.QueryEscape(secret), formType, grant, 200, ""},
		{"Basic and client_id", id, secret, formType, grant + "&client_id=my+id", 200, ""},
		{"Basic and client_secret", id, secret, formType, inForm, 400, "invalid_request"},
		{"wrong secret", id, "guess", formType, grant, 401, "invalid_client"},
		{"wrong id", "you", secret, formType, grant, 401, "invalid_client"},
		{"nobody", "", "", formType, grant, 401, "invalid_client"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", strings.NewReader(tt.body))
			r.Header.Set("Content-Type", tt.contentType)
			if tt.user != "" {
				r.SetBasicAuth(tt.user, tt.password)
			}
			srv := &granttest.Server{ClientID: id, ClientSecret: secret}
			check(t, serve(srv.TokenEndpoint(), r), tt.status, tt.code)
		})
	}
}

func TestMalformedTokenRequestsAreRefused(t *testing.T) {
	const grant = "grant_type=client_credentials"
	for _, tt := range []struct {
		name, uri, contentType, body, code string
	}{
		{"no grant_type", "/", formType, "scope=a", "invalid_request"},
		{"empty grant_type", "/", formType, "grant_type=", "invalid_request"},
		{"other grant_type", "/", formType, "grant_type=password", "unsupported_grant_type"},
		{"no refresh_token", "/", formType, "grant_type=refresh_token", "invalid_request"},
		{"repeated parameter", "/", formType, grant + "&" + grant, "invalid_request"},
		{"repeated member", "/", jsonType, `{"grant_type":"client_credentials","grant_type":""}`, "invalid_request"},
		{"bad form", "/", formType, grant + "&%zz", "invalid_request"},
		{"JSON called form", "/", formType, `{"grant_type":"client_credentials"}`, "invalid_request"},
		{"form called JSON", "/", jsonType, grant, "invalid_request"},
		{"no object", "/", jsonType, `["grant_type"]`, "invalid_request"},
		{"no content type", "/", "", grant, "invalid_request"},
		{"secret in the URI", "/?client_secret=s", formType, grant, "invalid_request"},
		{"too long", "/", formType, grant + "&x=" + strings.Repeat("x", 1<<20), "invalid_request"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", tt.uri, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", tt.contentType)
			check(t, serve((&granttest.Server{}).TokenEndpoint(), r), 400, tt.code)
		})
	}
}

func TestOnlyTheParameterResourceMayRepeat(t *testing.T) {
	const body = "grant_type=client_credentials&resource=https://a&resource=https://b"
	check(t, tokenRequest(&granttest.Server{}, formType, body), 200, "")
}

func TestTheTokenEndpointTakesPOSTOnly(t *testing.T) {
	res := serve((&granttest.Server{}).TokenEndpoint(), httptest.NewRequest("GET", "/", nil))
	if got, want := res.Code, 405; got != want {
		t.Errorf("status %d, want %d", got, want)
	}
}

func TestAcceptNarrowsTheEncoding(t *testing.T) {
	const form, object = "grant_type=client_credentials", `{"grant_type":"client_credentials"}`
	onlyForm, onlyJSON := &granttest.Server{Accept: granttest.Form}, &granttest.Server{Accept: granttest.JSON}
	check(t, tokenRequest(onlyForm, formType, form), 200, "")
	check(t, tokenRequest(onlyForm, jsonType, object), 400, "invalid_request")
	check(t, tokenRequest(onlyJSON, jsonType, object), 200, "")
	check(t, tokenRequest(onlyJSON, formType, form), 400, "invalid_request")
}

// The two documented servers.

func TestMakini(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := granttest.Makini("id", "secret")
		const credentials = `"client_id":"id","client_secret":"secret"`
		const grant = `{"grant_type":"client_credentials",` + credentials + `}`
		pair := answerOf(t, tokenRequest(srv, jsonType, grant))
		if got, want := pair["token_type"], "bearer"; got != want {
			t.Errorf("token_type = %v, want %v", got, want)
		}
		month := time.Now().Add(30 * 24 * time.Hour)
		if got, want := string(pair.number("expires_in")), fmt.Sprint(month.Unix()); got != want {
			t.Errorf("expires_in = %s, want %s", got, want)
		}

		check(t, tokenRequest(srv, formType, "grant_type=client_credentials&client_id=id&client_secret=no"), 403, "invalid_client")
		check(t, tokenRequest(srv, formType, "grant_type=other&client_id=id&client_secret=secret"), 400, "unsupported_grant_type")
		check(t, tokenRequest(srv, jsonType, "{"), 400, "invalid_request")

		second := refresh(t, srv, pair) // without credentials
		if srv.Valid(pair.access()) {
			t.Error("a refresh left the previous access token alive")
		}
		check(t, tokenRequest(srv, jsonType, `{"grant_type":"refresh_token","refresh_token":"`+pair.refresh()+`",`+credentials+`}`), 401, "invalid_grant")
		check(t, tokenRequest(srv, formType, "grant_type=refresh_token&client_secret=no&refresh_token="+second.refresh()), 403, "invalid_client")

		time.Sleep(31 * 24 * time.Hour)
		check(t, tokenRequest(srv, formType, "grant_type=refresh_token&refresh_token="+second.refresh()), 401, "invalid_grant")
	})
}

func TestAdminV3(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := granttest.AdminV3("id", "secret")
		const grant = `{"grant_type":"client_credentials","client_id":"id","client_secret":"secret"}`
		pair := answerOf(t, tokenRequest(srv, jsonType, grant))
		if got, want := pair["token_type"], "Bearer"; got != want {
			t.Errorf("token_type = %v, want %v", got, want)
		}
		if got, want := string(pair.number("expires_in")), "3600"; got != want {
			t.Errorf("expires_in = %v, want %v", got, want)
		}
		check(t, tokenRequest(srv, formType, "grant_type=client_credentials&client_id=id&client_secret=secret"), 400, "invalid_request")
		res := tokenRequest(srv, jsonType, strings.Replace(grant, "secret\"}", "guess\"}", 1))
		if got, want := strings.TrimSpace(res.Body.String()),
			`{"code":"AUTH_INVALID_CLIENT","details":{},"error":"invalid_client","message":"client_id or client_secret is wrong."}`; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}

		time.Sleep(time.Hour)
		res = serve(srv.API(), apiRequest(pair.access()))
		if got, want := strings.TrimSpace(res.Body.String()), `{"code":"AUTH_TOKEN_EXPIRED",`+
			`"details":{"expired_at":"2000-01-01T01:00:00Z","issued_at":"2000-01-01T00:00:00Z"},`+
			`"error":"invalid_token","message":"The access token provided has expired or is malformed."}`; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

func TestDelayRotatesTheTokensHalfWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{Delay: 2 * time.Second}
		client := overPipe(t, srv)
		for timeout, granted := range map[time.Duration]int{
			1 * time.Second / 2: 0, // left before
			3 * time.Second / 2: 1, // left after, the answer is lost
			5 * time.Second / 2: 1,
		} {
			before := srv.Stats().Granted
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			_, _ = io.Copy(io.Discard, post(ctx, client))
			cancel()
			if got, want := srv.Stats().Granted-before, granted; got != want {
				t.Errorf("granted %d within %v, want %d", got, timeout, want)
			}
		}
	})
}

func TestStatsSayHowManyWereInFlightAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{Delay: time.Second}
		client := overPipe(t, srv)
		for range 2 {
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { _, _ = io.Copy(io.Discard, post(t.Context(), client)) })
			}
			wg.Wait()
		}
		want := granttest.Stats{Requests: 6, ClientCredentials: 6, Granted: 6, MostAtOnce: 3}
		if got := srv.Stats(); got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

func TestStatsTellTheGrantsApart(t *testing.T) {
	srv := &granttest.Server{}
	refresh(t, srv, fullGrant(t, srv))
	tokenRequest(srv, formType, "grant_type=refresh_token&refresh_token=none")
	tokenRequest(srv, formType, "grant_type=password")
	srv.Script(granttest.Empty(500))
	tokenRequest(srv, jsonType, `{"grant_type":"client_credentials"}`)
	want := granttest.Stats{Requests: 5, ClientCredentials: 2, RefreshToken: 2, Granted: 2, Refused: 2, MostAtOnce: 1}
	if got := srv.Stats(); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// What the tests above are written with.

var noRedirects = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// answer is the JSON object of a token answer.
type answer map[string]any

func (a answer) access() string              { return fmt.Sprint(a["access_token"]) }
func (a answer) refresh() string             { return fmt.Sprint(a["refresh_token"]) }
func (a answer) number(n string) json.Number { return a[n].(json.Number) }

func fullGrant(t *testing.T, srv *granttest.Server) answer {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {srv.ClientID}, "client_secret": {srv.ClientSecret}}
	return answerOf(t, tokenRequest(srv, formType, form.Encode()))
}

func refresh(t *testing.T, srv *granttest.Server, pair answer) answer {
	t.Helper()
	return answerOf(t, tokenRequest(srv, formType, "grant_type=refresh_token&refresh_token="+pair.refresh()))
}

func tokenRequest(srv *granttest.Server, contentType, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", "/", strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	return serve(srv.TokenEndpoint(), r)
}

func apiRequest(token string) *http.Request {
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return r
}

func apiStatus(srv *granttest.Server, token string) int {
	return serve(srv.API(), apiRequest(token)).Code
}

func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func answerOf(t *testing.T, res *httptest.ResponseRecorder) answer {
	t.Helper()
	check(t, res, 200, "")
	dec := json.NewDecoder(res.Body)
	dec.UseNumber()
	var a answer
	if err := dec.Decode(&a); err != nil {
		t.Fatal(err)
	}
	return a
}

// check checks the status and the member error.
func check(t *testing.T, res *httptest.ResponseRecorder, status int, code string) {
	t.Helper()
	var body struct{ Error string }
	if err := json.Unmarshal(res.Body.Bytes(), &body); err != nil {
		t.Errorf("%v in %q", err, res.Body)
	}
	if res.Code != status || body.Error != code {
		t.Errorf("got %d %q, want %d %q", res.Code, body.Error, status, code)
	}
}

// post asks for a full grant and returns the body of the answer, empty if none came.
func post(ctx context.Context, client *http.Client) io.Reader {
	r, _ := http.NewRequestWithContext(ctx, "POST", "http://server/oauth/token", strings.NewReader("grant_type=client_credentials"))
	r.Header.Set("Content-Type", formType)
	res, err := client.Do(r)
	if err != nil {
		return strings.NewReader("")
	}
	return res.Body // which ends by itself or by ctx
}

// overPipe serves h over net.Pipe, so that a bubble's clock can move. A test
// fails in the end if the server is still at work on a request then.
func overPipe(t *testing.T, h http.Handler) *http.Client {
	l := granttest.NewPipe()
	server := &http.Server{Handler: h}
	done := make(chan error)
	go func() { done <- server.Serve(l) }()
	transport := &http.Transport{DialContext: l.Dial}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Errorf("still serving: %v", err)
			_ = server.Close()
		}
		<-done
	})
	return &http.Client{Transport: transport}
}
