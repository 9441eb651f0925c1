package grant

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

var testPair = tokencache.Token{Access: tokencache.NewSecret("acc/ess+canary="), Refresh: tokencache.NewSecret(testRefresh)}

func revoker(t *testing.T, address string, cfg Config) *Client {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	cfg.RevocationURL = u
	return clientOf(t, "http://server/oauth/token", cfg)
}

func TestAPairIsRevokedRefreshTokenFirst(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		pair tokencache.Token
		want []string
	}{
		{Config{}, testPair, []string{
			params("client_id", testID, "client_secret", testSecret, "token", testRefresh, "token_type_hint", "refresh_token"),
			params("client_id", testID, "client_secret", testSecret, "token", "acc/ess+canary=", "token_type_hint", "access_token")}},
		{Config{Auth: NoClientAuth, RefreshWithoutAuth: true}, tokencache.Token{Access: testPair.Access}, []string{
			params("client_id", testID, "token", "acc/ess+canary=", "token_type_hint", "access_token")}},
		{Config{Auth: ClientSecretBasic, Encoding: JSON, Parameters: func() url.Values { return url.Values{"tenant": {"7"}} }},
			tokencache.Token{Access: testPair.Access}, []string{`{"tenant":"7","token":"acc/ess+canary=","token_type_hint":"access_token"}`}},
		{Config{}, tokencache.Token{}, nil},
	} {
		r := &recorder{}
		if err := revoker(t, serve(t, r)+"/revoke?x=1", tt.cfg).Revoke(t.Context(), tt.pair); err != nil {
			t.Error(err)
		}
		for i, want := range tt.want {
			if i >= len(r.requests) || r.requests[i].Body != want || r.requests[i].URI != "/revoke?x=1" {
				t.Errorf("request %d: got %+v, want %s", i, r.requests, want)
			}
		}
		if len(r.requests) != len(tt.want) {
			t.Errorf("got %d requests, want %d", len(r.requests), len(tt.want))
		}
	}
	if err := clientOf(t, "http://server/", Config{}).Revoke(t.Context(), testPair); err != nil {
		t.Errorf("without an endpoint: got %v", err)
	}
}

func TestAServerForgetsWhatIsRevoked(t *testing.T) {
	srv := &granttest.Server{ClientID: testID, ClientSecret: testSecret}
	mux := http.NewServeMux()
	mux.Handle("/token", srv.TokenEndpoint())
	mux.Handle("/revoke", srv.RevocationEndpoint())
	address := serve(t, mux)
	u, _ := url.Parse(address + "/revoke")
	c := clientOf(t, address+"/token", Config{RevocationURL: u})
	pair, err := c.ClientCredentials(t.Context())
	if err != nil || !srv.Valid(pair.Access.Reveal()) {
		t.Fatalf("no token to revoke: %v", err)
	}
	if err := c.Revoke(t.Context(), pair); err != nil || srv.Valid(pair.Access.Reveal()) {
		t.Errorf("got %v, still valid: %v", err, srv.Valid(pair.Access.Reveal()))
	}
	if _, err := c.RefreshToken(t.Context(), pair.Refresh); err == nil {
		t.Error("the refresh token is still good")
	}
	if err := c.Revoke(t.Context(), pair); err != nil {
		t.Errorf("the second time: got %v", err)
	}
	c.cfg.ClientID = "stranger"
	if err := c.Revoke(t.Context(), pair); err == nil || !strings.Contains(err.Error(), "answered 401 invalid_client") {
		t.Errorf("a stranger: got %v", err)
	}
}

func TestARevocationThatFailsSaysSoAndNothingSecret(t *testing.T) {
	elsewhere := new(counter)
	for name, fault := range map[string]granttest.Fault{
		"revocation endpoint http://.*: answered 503 temporarily_unavailable: the refresh_token is not revoked: check REVOCATION_URL": granttest.Unavailable("7"),
		"answered 400 unsupported_token_type: the refresh_token":                                                                      granttest.Status(400, `{"error":"unsupported_token_type"}`),
		"answered 307: the refresh_token": granttest.Redirect(307, serve(t, elsewhere)),
		"answered 500 server_error":       granttest.EchoRequest(500),
		"the connection broke":            granttest.Cut,
	} {
		err := revoker(t, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fault(w, r, nil) })), Config{}).Revoke(t.Context(), testPair)
		if err == nil || !matches(name, err.Error()) {
			t.Errorf("got %v, want %s", err, name)
			continue
		}
		for _, canary := range granttest.Spellings("acc/ess+canary=", testRefresh, testSecret) {
			if strings.Contains(err.Error(), canary) {
				t.Errorf("the error shows %s: %v", canary, err)
			}
		}
	}
	if got := elsewhere.Load(); got != 0 {
		t.Errorf("%d redirects were followed", got)
	}
}

func TestARevocationEndsWithTheCallersPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{}
		srv.Always(granttest.Hang)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		start := time.Now()
		err := revoker(t, "http://server/oauth/token", Config{Transport: overPipe(t, srv)}).Revoke(ctx, testPair)
		if took := time.Since(start); err == nil || took != 2*time.Second {
			t.Errorf("got %v after %v, want a timeout after 2 s", err, took)
		}
	})
}
