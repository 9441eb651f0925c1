package granttest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

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

func TestARevocationNeedsATokenAndItsClient(t *testing.T) {
	srv := granttest.Makini("id", "secret")
	pair := fullGrant(t, srv)
	for _, tt := range []struct {
		form url.Values
		want int
	}{
		{url.Values{"client_id": {"id"}, "client_secret": {"secret"}}, 400},
		{url.Values{"client_id": {"id"}, "client_secret": {"wrong"}, "token": {pair.access()}}, 403},
		{url.Values{"client_id": {"id"}, "client_secret": {"secret"}, "token": {"unknown"}}, 200},
		{url.Values{"client_id": {"id"}, "client_secret": {"secret"}, "token": {pair.access()}}, 200},
	} {
		if !srv.Valid(pair.access()) {
			t.Errorf("dead before %v", tt.form)
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/revoke", strings.NewReader(tt.form.Encode()))
		r.Header.Set("Content-Type", formType)
		srv.RevocationEndpoint().ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%v: got %d %s, want %d", tt.form, w.Code, w.Body, tt.want)
		}
	}
	if srv.Valid(pair.access()) || srv.Stats().Revoked != 1 {
		t.Errorf("alive: %v, revoked: %d", srv.Valid(pair.access()), srv.Stats().Revoked)
	}
}
