package granttest_test

import (
	"context"
	"encoding/json"
	"errors"
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
	// {Requests:2 ClientCredentials:2 RefreshToken:0 Granted:1 Refused:0 MostAtOnce:1 APIServed:0 APIRefused:0}
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
	const id, secret = "my id", "s3cr:et/+&=% x"
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

func TestServeHTTPTellsTheEndpointFromTheAPI(t *testing.T) {
	srv := &granttest.Server{}
	for _, path := range []string{"/oauth/token", "/api/v3/auth/token"} {
		r := httptest.NewRequest("POST", path, strings.NewReader("grant_type=client_credentials"))
		r.Header.Set("Content-Type", formType)
		check(t, serve(srv, r), 200, "")
		check(t, serve(srv, httptest.NewRequest("GET", path, nil)), 401, "invalid_token")
	}
	check(t, serve(srv, httptest.NewRequest("POST", "/orders", nil)), 401, "invalid_token")
}

// The protected API.

func TestTheAPIEchoesTheRequestButNotTheToken(t *testing.T) {
	srv := &granttest.Server{}
	fullGrant(t, srv)
	token := fullGrant(t, srv).access()
	r := httptest.NewRequest("PUT", "http://api.example/a%2Fb?c=d;e", strings.NewReader("hello"))
	r.Header = http.Header{"Authorization": {"Bearer " + token}, "X-Many": {"1", "2"}}
	res := serve(srv.API(), r)
	if strings.Contains(res.Body.String(), token) {
		t.Error("the token is in the echo")
	}
	var got granttest.Echo
	if err := json.Unmarshal(res.Body.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	want := granttest.Echo{
		Method: "PUT", Host: "api.example", URI: "http://api.example/a%2Fb?c=d;e",
		Headers:    http.Header{"X-Many": {"1", "2"}},
		BodyLength: 5, BodySHA256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
		TokenNumber: 2,
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestTheAPIAcceptsOneLiveBearerTokenOnly(t *testing.T) {
	srv := &granttest.Server{}
	pair := fullGrant(t, srv)
	for _, tt := range []struct {
		name          string
		authorization []string
		status        int
		challenge     string
	}{
		{"live", []string{"Bearer " + pair.access()}, 200, ""},
		{"none", nil, 401, `Bearer`},
		{"unknown", []string{"Bearer access-0001"}, 401, `Bearer error="invalid_token"`},
		{"refresh token", []string{"Bearer " + pair.refresh()}, 401, `Bearer error="invalid_token"`},
		{"token_type echoed", []string{"bearer " + pair.access()}, 401, `Bearer`},
		{"twice", []string{"Bearer " + pair.access(), "Bearer " + pair.access()}, 401, `Bearer`},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header["Authorization"] = tt.authorization
		res := serve(srv.API(), r)
		if res.Code != tt.status || res.Header().Get("WWW-Authenticate") != tt.challenge {
			t.Errorf("%s: %d %q, want %d %q", tt.name, res.Code, res.Header().Get("WWW-Authenticate"), tt.status, tt.challenge)
		}
	}
	if got := srv.Stats(); got.APIServed != 1 || got.APIRefused != 5 {
		t.Errorf("served %d and refused %d, want 1 and 5", got.APIServed, got.APIRefused)
	}
}

func TestRevokeKillsBothTokens(t *testing.T) {
	srv := &granttest.Server{}
	pair := fullGrant(t, srv)
	srv.Revoke()
	if got, want := apiStatus(srv, pair.access()), 401; got != want {
		t.Errorf("status %d, want %d", got, want)
	}
	check(t, tokenRequest(srv, formType, "grant_type=refresh_token&refresh_token="+pair.refresh()), 400, "invalid_grant")
}

func TestRevokeAccessLeavesTheRefreshToken(t *testing.T) {
	srv := &granttest.Server{}
	pair := fullGrant(t, srv)
	srv.RevokeAccess()
	if srv.Valid(pair.access()) {
		t.Error("the access token is alive")
	}
	if !srv.Valid(refresh(t, srv, pair).access()) {
		t.Error("the refreshed access token is dead")
	}
}

func TestChecksLateRefusesATokenThatDiedMeanwhile(t *testing.T) {
	srv := &granttest.Server{ChecksLate: true}
	for name, work := range map[string]func(w http.ResponseWriter){
		"writes":  func(w http.ResponseWriter) { _, _ = io.WriteString(w, "done") },
		"status":  func(w http.ResponseWriter) { w.WriteHeader(201) },
		"flushes": func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() },
		"nothing": func(http.ResponseWriter) {},
	} {
		t.Run(name, func(t *testing.T) {
			revoked := srv.Protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Result", "42")
				srv.RevokeAccess()
				work(w)
			}))
			res := serve(revoked, apiRequest(fullGrant(t, srv).access()))
			check(t, res, 401, "invalid_token")
			if res.Header().Get("X-Result") != "" || strings.Contains(res.Body.String(), "done") {
				t.Errorf("something of the answer got out: %v %s", res.Header(), res.Body)
			}
		})
	}
	if got := srv.Stats(); got.APIServed != 0 || got.APIRefused != 4 {
		t.Errorf("served %d and refused %d, want 0 and 4", got.APIServed, got.APIRefused)
	}
	if got, want := apiStatus(srv, fullGrant(t, srv).access()), 200; got != want {
		t.Errorf("a token that lived: status %d, want %d", got, want)
	}
}

// Faults.

func TestAScriptIsMetInOrderThenTheMoodThatAlwaysHolds(t *testing.T) {
	srv := &granttest.Server{}
	srv.Script(granttest.Empty(500), granttest.Empty(501))
	srv.Script(granttest.Empty(502), nil, granttest.Empty(503)) // replaces the first
	srv.Always(granttest.Empty(504))
	statuses := func(n int) (got []int) {
		for range n {
			got = append(got, tokenRequest(srv, formType, "grant_type=client_credentials").Code)
		}
		return got
	}
	if got, want := fmt.Sprint(statuses(5)), "[502 200 503 504 504]"; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	srv.Always(nil)
	if got, want := fmt.Sprint(statuses(2)), "[200 200]"; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFaultsThatAnswer(t *testing.T) {
	const request = "grant_type=client_credentials&client_secret=s3cr%2Bet"
	for _, tt := range []struct {
		name    string
		fault   granttest.Fault
		status  int
		header  string // "Name: value"
		body    string // contained in the body
		granted int
	}{
		{"Status", granttest.Status(418, "short and stout"), 418, "", "short and stout", 0},
		{"Status, JSON", granttest.Status(400, `{"error":"x"}`), 400, "Content-Type: application/json", `{"error":"x"}`, 0},
		{"TooManyRequests", granttest.TooManyRequests("7"), 429, "Retry-After: 7", `"error"`, 0},
		{"TooManyRequests, no hint", granttest.TooManyRequests(""), 429, "Retry-After: ", `"error"`, 0},
		{"Unavailable", granttest.Unavailable("Sat, 01 Jan 2000 00:00:07 GMT"), 503, "Retry-After: Sat, 01 Jan 2000 00:00:07 GMT", `"error"`, 0},
		{"OKWithError", granttest.OKWithError("bad_refresh_token"), 200, "", `{"error":"bad_refresh_token"}`, 0},
		{"Answer", granttest.Answer(map[string]any{"errcode": 40013}), 200, "", `{"errcode":40013}`, 0},
		{"HTML", granttest.HTML(502), 502, "Content-Type: text/html; charset=utf-8", "<title>502 Bad Gateway</title>", 0},
		{"Empty", granttest.Empty(400), 400, "Content-Length: 0", "", 0},
		{"Redirect", granttest.Redirect(307, "https://evil.example/"), 307, "Location: https://evil.example/", "", 0},
		{"EchoRequest", granttest.EchoRequest(500), 500, "", "cannot handle:  " + request, 0},
		{"Edited", granttest.Edited(func(a map[string]any) { delete(a, "token_type"); a["new"] = 1 }), 200, "Cache-Control: no-store", `"new":1`, 1},
		{"FormEncoded", granttest.FormEncoded, 200, "Content-Type: " + formType, "expires_in=3600&refresh_token=refresh-0001-", 1},
		{"WrongDate", granttest.WrongDate(time.Unix(0, 0)), 200, "Date: Thu, 01 Jan 1970 00:00:00 GMT", "access-0001-", 1},
		{"GzipBomb", granttest.GzipBomb(1 << 20), 200, "", strings.Repeat("a", 1<<20) + `"}`, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := &granttest.Server{}
			web := httptest.NewServer(srv)
			defer web.Close()
			srv.Script(tt.fault)
			res, err := noRedirects.Post(web.URL+"/oauth/token", formType, strings.NewReader(request))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil {
				t.Error(err)
			}
			if got, want := res.StatusCode, tt.status; got != want {
				t.Errorf("status %d, want %d", got, want)
			}
			if name, want, _ := strings.Cut(tt.header, ": "); name != "" && res.Header.Get(name) != want {
				t.Errorf("%s is %q, want %q", name, res.Header.Get(name), want)
			}
			if !strings.Contains(string(body), tt.body) {
				t.Errorf("body lacks %.80q: %.200q", tt.body, body)
			}
			if got, want := srv.Stats().Granted, tt.granted; got != want {
				t.Errorf("granted %d, want %d", got, want)
			}
		})
	}
}

func TestSameTokenAnswersTheRestOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{}
		srv.Always(srv.SameToken)
		first := fullGrant(t, srv) // honest: there is none yet
		time.Sleep(50 * time.Minute)
		second := fullGrant(t, srv)
		if got, want := second.access(), first.access(); got != want {
			t.Errorf("token %q, want %q", got, want)
		}
		if got, want := string(second.number("expires_in")), "600"; got != want {
			t.Errorf("expires_in = %s, want %s", got, want)
		}
		time.Sleep(10 * time.Minute)
		if third := fullGrant(t, srv); third.access() == first.access() {
			t.Error("answered a dead token")
		}
	})
}

func TestFaultsThatBreakTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name    string
		fault   granttest.Fault
		status  int // 0: no answer at all
		granted int
	}{
		{"Cut", granttest.Cut, 0, 0},
		{"LoseAnswer", granttest.LoseAnswer, 0, 1},
		{"Truncated", granttest.Truncated, 200, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := &granttest.Server{}
			web := httptest.NewServer(srv)
			defer web.Close()
			srv.Script(tt.fault)
			res, err := http.Post(web.URL+"/oauth/token", formType, strings.NewReader("grant_type=client_credentials"))
			if got, want := err == nil, tt.status != 0; got != want {
				t.Fatalf("answered: %v, want %v (%v)", got, want, err)
			}
			if err == nil {
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if !errors.Is(err, io.ErrUnexpectedEOF) || len(body) == 0 || res.ContentLength <= int64(len(body)) {
					t.Errorf("%d of %d bytes, then %v", len(body), res.ContentLength, err)
				}
			}
			if got, want := srv.Stats().Granted, tt.granted; got != want {
				t.Errorf("granted %d, want %d", got, want)
			}
		})
	}
}

func TestLoseAnswerRotatesTheTokens(t *testing.T) {
	srv := granttest.Makini("", "")
	pair := fullGrant(t, srv)
	web := httptest.NewServer(srv)
	defer web.Close()
	srv.Script(granttest.LoseAnswer)
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {pair.refresh()}}
	if res, err := http.PostForm(web.URL+"/oauth/token", form); err == nil {
		t.Fatalf("answered %s", res.Status)
	}
	if srv.Valid(pair.access()) {
		t.Error("the old access token is alive")
	}
	check(t, tokenRequest(srv, formType, form.Encode()), 401, "invalid_grant")
}

// Faults that last, on a fake clock over net.Pipe.

func TestFaultsThatLastEndWhenTheClientLeaves(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"Hang":     granttest.Hang,
		"Drip":     granttest.Drip(time.Second),
		"Endless":  granttest.Endless,
		"GzipBomb": granttest.GzipBomb(1 << 50),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := &granttest.Server{}
				client := overPipe(t, srv)
				srv.Script(fault)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				const enough = 1 << 20 // no time passes while bytes flow without end
				n, _ := io.CopyN(io.Discard, post(ctx, client), enough)
				if n < enough && ctx.Err() == nil {
					t.Errorf("the answer ended after %d bytes", n)
				}
			})
		})
	}
}

func TestDripGivesTheWholeAnswerInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{}
		client := overPipe(t, srv)
		srv.Script(granttest.Drip(time.Second))
		start := time.Now()
		body, err := io.ReadAll(post(t.Context(), client))
		if err != nil || !json.Valid(body) {
			t.Errorf("%q, %v", body, err)
		}
		if got, want := time.Since(start), time.Duration(len(body))*time.Second; got != want {
			t.Errorf("took %v, want %v", got, want)
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
