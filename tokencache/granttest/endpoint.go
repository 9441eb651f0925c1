package granttest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"time"
)

// maxBody is far more than a token request needs, in bytes.
const maxBody = 1 << 20

// ServeHTTP serves POSTs on the paths that the two documented APIs give to
// their token endpoint, and has the protected API everywhere else.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost && (r.URL.Path == "/oauth/token" || r.URL.Path == "/api/v3/auth/token") {
		s.serveToken(w, r)
		return
	}
	s.API().ServeHTTP(w, r)
}

// TokenEndpoint returns the token endpoint of RFC 6749 section 3.2, whatever
// the path. Clients authenticate by HTTP Basic, form-encoded as in section
// 2.3.1 or raw, or by parameters in the body.
func (s *Server) TokenEndpoint() http.Handler { return http.HandlerFunc(s.serveToken) }

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "the token endpoint takes POST", http.StatusMethodNotAllowed)
		return
	}
	s.enter()
	defer s.leave()

	// Read to the end first: net/http notices that a client has left only
	// when nothing of its request is left to read.
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		s.refuse(w, malformed("unreadable body"))
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))

	honest := http.HandlerFunc(s.serveGrant)
	if fault := s.nextFault(grantType(r, body)); fault != nil {
		fault(w, r, honest)
		return
	}
	honest(w, r)
}

func (s *Server) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flying++
	s.stats.Requests++
	s.stats.MostAtOnce = max(s.stats.MostAtOnce, s.flying)
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flying--
}

// nextFault counts a request of the given type and says what it meets.
func (s *Server) nextFault(grantType string) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch grantType {
	case "client_credentials":
		s.stats.ClientCredentials++
	case "refresh_token":
		s.stats.RefreshToken++
	}
	if len(s.script) == 0 {
		return s.always
	}
	fault := s.script[0]
	s.script = s.script[1:]
	return fault
}

// serveGrant is the honest handler.
func (s *Server) serveGrant(w http.ResponseWriter, r *http.Request) {
	if !wait(r.Context(), s.Delay/2) {
		panic(http.ErrAbortHandler)
	}
	answer, refused := s.grant(r)
	if !wait(r.Context(), s.Delay/2) {
		panic(http.ErrAbortHandler)
	}
	if refused != nil {
		s.refuse(w, refused)
		return
	}
	writeAnswer(w, answer)
}

// grant decides on a token request.
func (s *Server) grant(r *http.Request) (answer map[string]any, refused *refusal) {
	defer func() {
		if refused != nil {
			s.count(&s.stats.Refused)
		}
	}()
	params, refused := s.params(r)
	if refused != nil {
		return nil, refused
	}
	client, refused := s.authenticate(r, params)
	if refused != nil {
		return nil, refused
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if params["grant_type"] == "refresh_token" {
		answer, refused = s.refreshLocked(client, params["refresh_token"])
	} else {
		answer = s.fullGrantLocked(client)
	}
	if refused != nil {
		return nil, refused
	}
	if params["scope"] != "" {
		answer["scope"] = params["scope"]
	}
	s.stats.Granted++
	return answer, nil
}

func (s *Server) fullGrantLocked(client string) map[string]any {
	if s.GrantKills {
		for _, p := range s.access {
			if p.client == client {
				p.kill()
			}
		}
	}
	now := time.Now()
	return s.answer(now, s.issueLocked(now, client, nil))
}

// refreshLocked takes an empty client as the one the refresh token is bound to.
func (s *Server) refreshLocked(client, refreshToken string) (map[string]any, *refusal) {
	now := time.Now()
	old := s.refresh[refreshToken]
	if old == nil || !old.refresh.live(now) || cmp.Or(client, old.client) != old.client {
		return nil, &refusal{status: cmp.Or(s.RefusedRefresh, http.StatusBadRequest),
			code: "invalid_grant", text: "The refresh token is unknown, spent or expired."}
	}
	if s.RefreshKills {
		old.access.kill()
	}
	if s.RefreshReusable {
		answer := s.answer(now, s.issueLocked(now, old.client, old.refresh))
		delete(answer, "refresh_token")
		return answer, nil
	}
	old.refresh.kill()
	return s.answer(now, s.issueLocked(now, old.client, nil)), nil
}

// answer is the answer of RFC 6749 section 5.1 that gives p away at now.
func (s *Server) answer(now time.Time, p *pair) map[string]any {
	answer := map[string]any{
		"access_token": p.access.value,
		"token_type":   cmp.Or(s.TokenType, "Bearer"),
	}
	expiresIn := s.ExpiresIn
	if expiresIn == nil {
		expiresIn = Relative
	}
	if v := expiresIn(p.access.expiry, p.access.expiry.Sub(now)); v != nil {
		answer["expires_in"] = v
	}
	if p.refresh != nil {
		answer["refresh_token"] = p.refresh.value
	}
	return answer
}

// refusal is an error answer, RFC 6749 section 5.2 and RFC 6750 section 3.1.
type refusal struct {
	status     int
	code, text string
	details    map[string]any
}

func malformed(text string) *refusal {
	return &refusal{status: http.StatusBadRequest, code: "invalid_request", text: text}
}

// refuse answers with r. A header WWW-Authenticate set before is kept.
func (s *Server) refuse(w http.ResponseWriter, r *refusal) {
	if r.status == http.StatusUnauthorized && w.Header().Get("WWW-Authenticate") == "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="token endpoint"`)
	}
	if !s.DetailedErrors {
		writeJSON(w, r.status, map[string]any{"error": r.code, "error_description": r.text})
		return
	}
	code := "AUTH_" + strings.ToUpper(r.code)
	if r.code == "invalid_token" {
		code = "AUTH_TOKEN_EXPIRED" // the one code that the document gives
	}
	details := r.details
	if details == nil {
		details = map[string]any{}
	}
	writeJSON(w, r.status, map[string]any{"error": r.code, "message": r.text, "code": code, "details": details})
}

func writeAnswer(w http.ResponseWriter, answer map[string]any) {
	w.Header().Set("Cache-Control", "no-store") // RFC 6749 section 5.1
	w.Header().Set("Pragma", "no-cache")
	writeJSON(w, http.StatusOK, answer)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}

// wait reports whether d went by before ctx was done.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
