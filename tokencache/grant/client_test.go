package grant

import (
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// A secret of letters and digits would travel unharmed by any encoding.
const (
	testID      = "id/7"
	testSecret  = "s3cr:et/+canary&=% x"
	testRefresh = "old/refresh+canary="
)

var bothGrants = []string{clientCredentials, refreshToken}

// received is a request as it came off the wire.
type received struct {
	Method, URI string
	Header      http.Header
	Body        string
}

func matches(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) }

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// What goes over the wire.

func TestARequestHoldsThisAndNothingMore(t *testing.T) {
	full := Config{Scope: "read write", Audience: "https://api.test/", Resource: []string{"https://a.test", "https://b.test?x=1&y"}}
	for _, tt := range []struct {
		name        string
		cfg         Config
		grantType   string
		contentType string
		body        string
	}{
		{"form, full grant", Config{}, clientCredentials, "application/x-www-form-urlencoded",
			"client_id=id%2F7&client_secret=s3cr%3Aet%2F%2Bcanary%26%3D%25+x&grant_type=client_credentials"},
		{"form, every parameter", full, clientCredentials, "application/x-www-form-urlencoded",
			"audience=https%3A%2F%2Fapi.test%2F&client_id=id%2F7&client_secret=s3cr%3Aet%2F%2Bcanary%26%3D%25+x" +
				"&grant_type=client_credentials&resource=https%3A%2F%2Fa.test&resource=https%3A%2F%2Fb.test%3Fx%3D1%26y&scope=read+write"},
		{"form, refresh", full, refreshToken, "application/x-www-form-urlencoded",
			"client_id=id%2F7&client_secret=s3cr%3Aet%2F%2Bcanary%26%3D%25+x&grant_type=refresh_token&refresh_token=old%2Frefresh%2Bcanary%3D"},
		{"JSON, full grant", Config{Encoding: JSON}, clientCredentials, "application/json",
			`{"client_id":"id/7","client_secret":"s3cr:et/+canary\u0026=% x","grant_type":"client_credentials"}`},
		{"JSON, one resource", Config{Encoding: JSON, Resource: []string{"https://a.test"}}, clientCredentials, "application/json",
			`{"client_id":"id/7","client_secret":"s3cr:et/+canary\u0026=% x","grant_type":"client_credentials","resource":"https://a.test"}`},
		{"JSON, resources", Config{Encoding: JSON, Resource: []string{"https://a.test", "https://b.test"}}, clientCredentials, "application/json",
			`{"client_id":"id/7","client_secret":"s3cr:et/+canary\u0026=% x","grant_type":"client_credentials","resource":["https://a.test","https://b.test"]}`},
		{"JSON, refresh", Config{Encoding: JSON}, refreshToken, "application/json",
			`{"client_id":"id/7","client_secret":"s3cr:et/+canary\u0026=% x","grant_type":"refresh_token","refresh_token":"old/refresh+canary="}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := sent(t, tt.cfg, tt.grantType)
			want := received{"POST", "/token", http.Header{
				"Accept":         {"application/json"},
				"Connection":     {"close"}, // for no connection serves twice
				"Content-Length": {strconv.Itoa(len(tt.body))},
				"Content-Type":   {tt.contentType},
				"User-Agent":     {"Go-http-client/1.1"},
			}, tt.body}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %v\nwant %v", got, want)
			}
		})
	}
}

func TestEachMethodOfClientAuthentication(t *testing.T) {
	for name, want := range map[string]struct{ authorization, body string }{
		"client_secret_post": {"", params("client_id", testID, "client_secret", testSecret, "grant_type", "client_credentials")},
		"client_secret_basic": {basic("id%2F7", "s3cr%3Aet%2F%2Bcanary%26%3D%25+x"),
			params("grant_type", "client_credentials")},
		"client_secret_basic_raw": {basic(testID, testSecret), params("grant_type", "client_credentials")},
		"tls_client_auth":         {"", params("client_id", testID, "grant_type", "client_credentials")},
		"none":                    {"", params("client_id", testID, "grant_type", "client_credentials")},
	} {
		t.Run(name, func(t *testing.T) {
			var auth ClientAuth
			if err := auth.UnmarshalText([]byte(name)); err != nil {
				t.Fatal(err)
			}
			got := sent(t, Config{Auth: auth}, clientCredentials)
			if got.Header.Get("Authorization") != want.authorization || got.Body != want.body {
				t.Errorf("got %q, %q, want %q, %q", got.Header["Authorization"], got.Body, want.authorization, want.body)
			}
		})
	}
}

func TestServersUnderstandEachMethod(t *testing.T) {
	address := serve(t, &granttest.Server{ClientID: testID, ClientSecret: testSecret}) + "/oauth/token"
	for _, auth := range []ClientAuth{ClientSecretPost, ClientSecretBasic, ClientSecretBasicRaw} {
		for _, encoding := range []Encoding{Form, JSON} {
			if _, err := clientOf(t, address, Config{Auth: auth, Encoding: encoding}).ClientCredentials(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := clientOf(t, address, Config{Auth: NoClientAuth}).ClientCredentials(t.Context()); !errors.Is(err, tokencache.ErrClientRejected) {
		t.Errorf("without the secret: got %v, want %v", err, tokencache.ErrClientRejected)
	}
}

func TestAnEmptyParameterIsNotSent(t *testing.T) { // RFC 6749 section 3.2

	for name, auth := range map[string]ClientAuth{"post": ClientSecretPost, "none": NoClientAuth} {
		r := &recorder{}
		u, _ := url.Parse(serve(t, r))
		if _, err := New(Config{TokenURL: u, Auth: auth}).ClientCredentials(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, want := r.requests[0].Body, "grant_type=client_credentials"; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

func TestTheQueryOfTheTokenURLIsKept(t *testing.T) { // RFC 6749 section 3.2

	r := &recorder{}
	address := serve(t, r)
	tenant, _ := url.Parse(address + "/token?tenant=a%2Fb&x")
	refresh, _ := url.Parse(address + "/refresh?y=1")
	for _, tt := range []struct {
		cfg       Config
		grantType string
		want      string
	}{
		{Config{TokenURL: tenant}, clientCredentials, "/token?tenant=a%2Fb&x"},
		{Config{TokenURL: tenant}, refreshToken, "/token?tenant=a%2Fb&x"},
		{Config{TokenURL: tenant, RefreshURL: refresh}, clientCredentials, "/token?tenant=a%2Fb&x"},
		{Config{TokenURL: tenant, RefreshURL: refresh}, refreshToken, "/refresh?y=1"},
	} {
		if _, err := ask(t.Context(), clientOf(t, "", tt.cfg), tt.grantType); err != nil {
			t.Fatal(err)
		}
		if got := r.requests[len(r.requests)-1].URI; got != tt.want {
			t.Errorf("%s grant: got %s, want %s", tt.grantType, got, tt.want)
		}
	}
}

func TestExtraParametersAndHeadersAreInEveryRequest(t *testing.T) {
	parameters := url.Values{"account_id": {"1"}, "grant_type": {"password"}, "list": {"a", "b"}}
	header := http.Header{"x-tenant": {"one", "two"}, "content-type": {"text/plain"}, "Accept": {"*/*"}}
	cfg := Config{Parameters: func() url.Values { return parameters }, Header: func() http.Header { return header }}
	for _, grantType := range bothGrants {
		got := sent(t, cfg, grantType)
		values, _ := url.ParseQuery(got.Body)
		if account, list := values["account_id"], values["list"]; !slices.Equal(account, []string{"1"}) || !slices.Equal(list, []string{"a", "b"}) {
			t.Errorf("%s grant: account_id %q, list %q", grantType, account, list)
		}
		if got, want := values["grant_type"], []string{grantType}; !slices.Equal(got, want) {
			t.Errorf("grant_type: got %q, want %q", got, want)
		}
		for name, want := range map[string][]string{
			"X-Tenant": {"one", "two"}, "Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"application/json"},
		} {
			if got := got.Header[name]; !slices.Equal(got, want) {
				t.Errorf("%s grant: %s: got %q, want %q", grantType, name, got, want)
			}
		}
	}
	if got, want := len(header)+len(parameters), 6; got != want {
		t.Errorf("the configuration was changed: %v %v", header, parameters)
	}
}

func TestARefreshWithoutClientAuthenticationSendsTheTokenAlone(t *testing.T) {
	for name, auth := range map[string]ClientAuth{"post": ClientSecretPost, "basic": ClientSecretBasic} {
		cfg := Config{RefreshWithoutAuth: true, Auth: auth, Scope: "read"}
		got := sent(t, cfg, refreshToken)
		want := params("grant_type", "refresh_token", "refresh_token", testRefresh)
		if got.Body != want || got.Header["Authorization"] != nil {
			t.Errorf("%s: got %q, %q, want %q", name, got.Body, got.Header["Authorization"], want)
		}
		full := sent(t, cfg, clientCredentials)
		if !strings.Contains(full.Body, "client_secret") && full.Header["Authorization"] == nil {
			t.Errorf("%s: the full grant lacks the secret", name)
		}
	}
}

func TestUnknownNamesAreRefusedWithTheChoices(t *testing.T) {
	for _, tt := range []struct {
		value   interface{ UnmarshalText([]byte) error }
		choices string
	}{
		{new(ClientAuth), "client_secret_basic, client_secret_basic_raw, client_secret_post, none, tls_client_auth"},
		{new(Encoding), "form, json"},
		{new(Format), "auto, ignore, milliseconds, seconds, unix, unix_ms"},
	} {
		err := tt.value.UnmarshalText([]byte("Xyz"))
		if err == nil || err.Error() != "want one of "+tt.choices {
			t.Errorf("got %v, want %s", err, tt.choices)
		}
		for choice := range strings.SplitSeq(tt.choices, ", ") {
			if err := tt.value.UnmarshalText([]byte(choice)); err != nil {
				t.Errorf("%s: %v", choice, err)
			}
		}
	}
	var json Encoding
	_ = json.UnmarshalText([]byte("json"))
	if got, _ := json(nil); got != "application/json" {
		t.Errorf("json is %s", got)
	}
}

// What is made of the answer.

func TestATokenHoldsAllThatTheAnswerSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const answer = `{"access_token":"a","token_type":"bearer","expires_in":3600,"refresh_token":"r",
			"refresh_expires_in":7200,"refresh_in":"1800","unknown":[{}]}`
		web := overPipe(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(3 * time.Second) // of latency, which must not lengthen the token's life
			_, _ = io.WriteString(w, answer)
		}))
		start := time.Now()
		got, err := clientOf(t, "http://server/", Config{Transport: web}).ClientCredentials(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Access.Reveal() != "a" || got.Refresh.Reveal() != "r" {
			t.Errorf("tokens: got %q, %q", got.Access.Reveal(), got.Refresh.Reveal())
		}
		got.Access, got.Refresh = tokencache.Secret{}, tokencache.Secret{}
		if want := (tokencache.Token{
			Issued: start, Expiry: start.Add(time.Hour), RefreshExpiry: start.Add(2 * time.Hour),
			Lifetime: time.Hour, RefreshIn: 30 * time.Minute,
		}); got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	})
}

func TestTheOldRefreshTokenGoesOnWhenNoneComes(t *testing.T) {
	for answer, want := range map[string]string{
		`{"access_token":"a"}`:                         testRefresh,
		`{"access_token":"a","refresh_token":null}`:    testRefresh,
		`{"access_token":"a","refresh_token":""}`:      testRefresh,
		`{"access_token":"a","refresh_token":"newer"}`: "newer",
	} {
		c := clientOf(t, serve(t, &recorder{answer: answer}), Config{})
		token, err := ask(t.Context(), c, refreshToken)
		if got := token.Refresh.Reveal(); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", answer, got, err, want)
		}
		if token, _ := ask(t.Context(), c, clientCredentials); want == testRefresh && !token.Refresh.IsZero() {
			t.Errorf("%s: the full grant brought a refresh token", answer)
		}
	}
}

func TestWarningWhenTheScopeGrantedIsSmaller(t *testing.T) {
	for _, tt := range []struct {
		scope, answer string
		missing       []any
	}{
		{"read write", `"read write"`, nil},
		{"read write", `"write read admin"`, nil},
		{"read write", `"read"`, []any{"write"}},
		{"read,write", `"read,write"`, nil},
		{"read write", `["read"]`, []any{"write"}},
		{"read write", `["read","write"]`, nil},
		{"read write", `[]`, []any{"read", "write"}},
		{"read write", `null`, nil}, // RFC 6749 section 5.1: as asked for
		{"read write", `""`, nil},
		{"read write", `7`, nil},
		{"", `"read"`, nil},
	} {
		for _, grantType := range bothGrants {
			core, logs := observer.New(zap.DebugLevel)
			c := clientOf(t, serve(t, &recorder{answer: `{"access_token":"a","expires_in":60,"scope":` + tt.answer + `}`}),
				Config{Scope: tt.scope, Log: zap.New(core)})
			if _, err := ask(t.Context(), c, grantType); err != nil {
				t.Fatal(err)
			}
			want := tt.missing
			if grantType == refreshToken { // which asks for no scope
				want = nil
			}
			var got []any
			for _, entry := range logs.All() {
				got = entry.ContextMap()["missing"].([]any)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s grant, asked %q, told %s: missing %v, want %v", grantType, tt.scope, tt.answer, got, want)
			}
		}
	}
}

// The client's secret.

func TestTheSecretIsReadForEveryRequest(t *testing.T) {
	srv := &granttest.Server{ClientID: testID, ClientSecret: "second"}
	secrets := []string{"first", "second", "third"}
	c := clientOf(t, serve(t, srv)+"/oauth/token", Config{ClientSecret: func() (tokencache.Secret, error) {
		defer func() { secrets = secrets[1:] }()
		return tokencache.NewSecret(secrets[0]), nil
	}})
	for _, want := range []error{tokencache.ErrClientRejected, nil, tokencache.ErrClientRejected} {
		if _, err := c.ClientCredentials(t.Context()); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
}

func TestNoRequestIsMadeWithoutTheSecret(t *testing.T) {
	srv := &granttest.Server{}
	c := clientOf(t, serve(t, srv)+"/oauth/token", Config{ClientSecret: func() (tokencache.Secret, error) {
		return tokencache.NewSecret("half a canary"), errors.New("cannot read half a secret")
	}})
	for _, grantType := range bothGrants {
		_, err := ask(t.Context(), c, grantType)
		if got, want := failureOf(t, err), (failure{nil, "secret_unreadable", 0}); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
		if strings.Contains(err.Error(), "canary") {
			t.Errorf("the error quotes the cause: %v", err)
		}
	}
	if got := srv.Stats().Requests; got != 0 {
		t.Errorf("%d requests were made", got)
	}
	c.cfg.RefreshWithoutAuth = true
	if _, err := ask(t.Context(), c, refreshToken); !errors.Is(err, tokencache.ErrRefreshTokenRejected) {
		t.Errorf("a refresh that needs no secret: got %v", err)
	}
}

// The two documented APIs.

func TestMakini(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const day = 24 * time.Hour
		time.Sleep(time.Until(t0)) // for at the bubble's own time, 2000, a Unix time is too small to be one
		srv := granttest.Makini(testID, testSecret)
		c := clientOf(t, "http://makini/oauth/token", Config{
			Transport: overPipe(t, srv), RefreshWithoutAuth: true, Expiry: ExpiryRule{Max: day},
		})
		first, err := c.ClientCredentials(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if life := first.Expiry.Sub(first.Issued); life != 30*day || first.Lifetime != day {
			t.Errorf("lives %v, planned %v, want 30 days and one", life, first.Lifetime)
		}

		time.Sleep(29 * day)
		second, err := c.RefreshToken(t.Context(), first.Refresh)
		if err != nil || srv.Valid(first.Access.Reveal()) || !srv.Valid(second.Access.Reveal()) {
			t.Errorf("refresh: %v, old valid %v, new valid %v", err, srv.Valid(first.Access.Reveal()), srv.Valid(second.Access.Reveal()))
		}
		_, err = c.RefreshToken(t.Context(), first.Refresh)
		wantFailure(t, err, failure{tokencache.ErrRefreshTokenRejected, "invalid_grant", 0})
		time.Sleep(31 * day)
		_, err = c.RefreshToken(t.Context(), second.Refresh)
		wantFailure(t, err, failure{tokencache.ErrRefreshTokenRejected, "invalid_grant", 0})
		if _, err := c.ClientCredentials(t.Context()); err != nil {
			t.Error(err)
		}

		c.cfg.ClientID = "stranger"
		_, err = c.ClientCredentials(t.Context())
		wantFailure(t, err, failure{tokencache.ErrClientRejected, "invalid_client", 0})
		if got, want := srv.Stats().Requests, 6; got != want {
			t.Errorf("%d requests, want %d", got, want)
		}
	})
}

func TestAdminV3(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := granttest.AdminV3(testID, testSecret)
		c := clientOf(t, "http://admin/api/v3/auth/token", Config{Transport: overPipe(t, srv), Encoding: JSON})
		first, err := c.ClientCredentials(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, want := first.Expiry.Sub(first.Issued), time.Hour; got != want || first.Lifetime != want {
			t.Errorf("lives %v, planned %v, want %v", got, first.Lifetime, want)
		}
		second, err := c.RefreshToken(t.Context(), first.Refresh)
		if err != nil || second.Refresh.Reveal() == first.Refresh.Reveal() {
			t.Errorf("refresh: %v, rotated %v", err, second.Refresh.Reveal() != first.Refresh.Reveal())
		}
		_, err = c.RefreshToken(t.Context(), first.Refresh)
		wantFailure(t, err, failure{tokencache.ErrRefreshTokenRejected, "invalid_grant", 0})

		srv.Script(granttest.TooManyRequests("7"))
		_, err = c.RefreshToken(t.Context(), second.Refresh)
		wantFailure(t, err, failure{nil, "rate_limited", 7 * time.Second})

		c.cfg.Encoding = Form
		_, err = c.ClientCredentials(t.Context())
		wantFailure(t, err, failure{tokencache.ErrClientRejected, "invalid_request", 0})
	})
}

func TestAClientServesManyAtOnce(t *testing.T) {
	srv := &granttest.Server{ClientID: testID, ClientSecret: testSecret}
	parameters, header := url.Values{"resource": {"https://a.test"}}, http.Header{"X-Tenant": {"one"}}
	cfg := Config{
		Parameters: func() url.Values { return parameters }, Header: func() http.Header { return header }, Resource: []string{"https://b.test"},
	}
	c := clientOf(t, serve(t, srv)+"/oauth/token", cfg)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if token, err := c.ClientCredentials(t.Context()); err != nil || !srv.Valid(token.Access.Reveal()) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
