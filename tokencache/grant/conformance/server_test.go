package conformance_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/models"
	oauth2server "github.com/go-oauth2/oauth2/v4/server"
	"github.com/go-oauth2/oauth2/v4/store"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/grant"
)

const (
	clientID     = "conformance"
	clientSecret = "s3cret canary +/%:&=" // which every method of authentication spells differently

	accessLife  = 2 * time.Second
	refreshLife = 4 * time.Second
)

// variant is a way in which the server can be set up, and how our client
// speaks to it then.
type variant struct {
	name        string
	credentials oauth2server.ClientInfoHandler
	wrap        func(http.Handler) http.Handler
	auth        grant.ClientAuth
	encoding    grant.Encoding
}

var (
	basic = variant{
		name:        "client_secret_basic_raw",
		credentials: oauth2server.ClientBasicHandler,
		auth:        grant.ClientSecretBasicRaw,
	}
	variants = []variant{
		basic,
		{
			name:        "client_secret_post",
			credentials: oauth2server.ClientFormHandler,
			auth:        grant.ClientSecretPost,
		},
		{
			name:        "expires_in is a Unix time",
			credentials: oauth2server.ClientBasicHandler,
			wrap:        withAbsoluteExpiry,
			auth:        grant.ClientSecretBasicRaw,
		},
		{
			name:        "JSON and nothing else",
			credentials: oauth2server.ClientFormHandler,
			wrap:        withJSONRequests,
			auth:        grant.ClientSecretPost,
			encoding:    grant.JSON,
		},
	}
)

// server is a go-oauth2 authorization server on a real socket, with an API
// that its tokens open. A refresh kills the pair that it replaces.
type server struct {
	url string
	// rival makes somebody else use every refresh token before us.
	rival atomic.Bool

	mu   sync.Mutex
	seen []string // token requests, as "grant_type status"
}

func newServer(t *testing.T, v variant, refreshLife time.Duration) *server {
	t.Helper()
	oauth, tokens := newAuthorizationServer(t, refreshLife)
	oauth.ClientInfoHandler = v.credentials

	s := &server{}
	var endpoint http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.rival.Load() {
			if err := tokens.RemoveByRefresh(r.Context(), r.FormValue("refresh_token")); err != nil {
				t.Errorf("token store: %v", err)
			}
		}
		status := &statusRecorder{w, http.StatusOK}
		if err := oauth.HandleTokenRequest(status, r); err != nil {
			t.Errorf("token endpoint: %v", err)
		}
		s.note(r.FormValue("grant_type"), status.code)
	})
	if v.wrap != nil {
		endpoint = v.wrap(endpoint)
	}
	mux := http.NewServeMux()
	mux.Handle("POST /token", endpoint)
	mux.HandleFunc("GET /api", func(w http.ResponseWriter, r *http.Request) {
		if _, err := oauth.ValidationBearerToken(r); err != nil {
			http.Error(w, err.Error(), http.StatusUnauthorized)
		}
	})
	socket := httptest.NewServer(mux)
	t.Cleanup(socket.Close)
	s.url = socket.URL
	return s
}

func newAuthorizationServer(t *testing.T, refreshLife time.Duration) (*oauth2server.Server, oauth2.TokenStore) {
	t.Helper()
	tokens, err := store.NewMemoryTokenStore()
	if err != nil {
		t.Fatal(err)
	}
	clients := store.NewClientStore()
	if err := clients.Set(clientID, &models.Client{ID: clientID, Secret: clientSecret}); err != nil {
		t.Fatal(err)
	}
	manager := manage.NewDefaultManager()
	manager.MapTokenStorage(tokens)
	manager.MapClientStorage(clients)
	manager.SetClientTokenCfg(&manage.Config{
		AccessTokenExp: accessLife, RefreshTokenExp: refreshLife, IsGenerateRefresh: true,
	})
	manager.SetRefreshTokenCfg(&manage.RefreshingConfig{
		AccessTokenExp: accessLife, RefreshTokenExp: refreshLife, IsGenerateRefresh: true,
		IsResetRefreshTime: true, IsRemoveAccess: true, IsRemoveRefreshing: true,
	})
	oauth := oauth2server.NewDefaultServer(manager)
	oauth.Config.AllowedGrantTypes = []oauth2.GrantType{oauth2.ClientCredentials, oauth2.Refreshing}
	return oauth, tokens
}

func (s *server) client(t *testing.T, v variant, id, secret string) *grant.Client {
	t.Helper()
	endpoint, err := url.Parse(s.url + "/token")
	if err != nil {
		t.Fatal(err)
	}
	return grant.New(grant.Config{
		TokenURL:     endpoint,
		ClientID:     id,
		ClientSecret: func() (tokencache.Secret, error) { return tokencache.NewSecret(secret), nil },
		Auth:         v.auth,
		Encoding:     v.encoding,
	})
}

// opens reports whether the API accepts the access token.
func (s *server) opens(t *testing.T, accessToken string) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+accessToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (s *server) note(grantType string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, grantType+" "+strconv.Itoa(status))
}

// asked returns the token requests so far.
func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

type statusRecorder struct {
	http.ResponseWriter
	code int
}

func (r *statusRecorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// withAbsoluteExpiry makes expires_in the time of expiry in Unix seconds.
func withAbsoluteExpiry(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		next.ServeHTTP(answer, r)
		body := map[string]any{}
		if err := json.Unmarshal(answer.Body.Bytes(), &body); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if life, ok := body["expires_in"].(float64); ok {
			body["expires_in"] = time.Now().Unix() + int64(life)
		}
		maps.Copy(w.Header(), answer.Header())
		w.WriteHeader(answer.Code)
		_ = json.NewEncoder(w).Encode(body)
	})
}

// withJSONRequests refuses forms and takes one JSON object of strings instead.
func withJSONRequests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		params := map[string]string{}
		if r.Header.Get("Content-Type") != "application/json" || json.NewDecoder(r.Body).Decode(&params) != nil {
			http.Error(w, "want JSON", http.StatusUnsupportedMediaType)
			return
		}
		form := url.Values{}
		for name, value := range params {
			form.Set(name, value)
		}
		translated := httptest.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), strings.NewReader(form.Encode()))
		translated.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		next.ServeHTTP(w, translated)
	})
}
