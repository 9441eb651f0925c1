package granttest

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"time"
)

// Echo is what [Server.API] answers, as JSON: the request as it arrived.
// The token itself is left out.
type Echo struct {
	Method      string      `json:"method"`
	Host        string      `json:"host"`
	URI         string      `json:"uri"`     // as on the request line
	Headers     http.Header `json:"headers"` // without Authorization
	BodyLength  int64       `json:"body_length"`
	BodySHA256  string      `json:"body_sha256"`  // hexadecimal
	TokenNumber int         `json:"token_number"` // 1: of the first pair issued
}

// API returns a protected API that echoes each request with a live token.
func (s *Server) API() http.Handler { return s.Protect(http.HandlerFunc(s.echo)) }

// Protect returns next behind a check of the bearer token (RFC 6750 sections
// 2.1 and 3): without a live one the answer is 401. The request reaches next
// with its Authorization header.
func (s *Server) Protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := bearer(r)
		switch {
		case !s.Valid(token):
			s.refuseToken(w, token)
		case s.ChecksLate:
			late := &lateWriter{ResponseWriter: w, server: s, token: token}
			next.ServeHTTP(late, r)
			late.begin() // in case next wrote nothing
		default:
			s.count(&s.stats.APIServed)
			next.ServeHTTP(w, r)
		}
	})
}

// bearer returns the token of a request, "" if there is none. The scheme must
// be spelled as in RFC 6750: it is not the only API that insists, and a client
// that echoes a token_type of "bearer" shall find out here.
func bearer(r *http.Request) string {
	fields := r.Header["Authorization"]
	if len(fields) != 1 {
		return ""
	}
	token, ok := strings.CutPrefix(fields[0], "Bearer ")
	if !ok {
		return ""
	}
	return token
}

func (s *Server) refuseToken(w http.ResponseWriter, token string) {
	s.count(&s.stats.APIRefused)
	challenge := "Bearer" // no error for a request that does not try, RFC 6750 section 3.1
	if token != "" {
		challenge = `Bearer error="invalid_token"`
	}
	w.Header().Set("WWW-Authenticate", challenge)
	s.refuse(w, &refusal{status: http.StatusUnauthorized, code: "invalid_token",
		text: "The access token provided has expired or is malformed.", details: s.times(token)})
}

// times tells the life of an access token in RFC 3339; nil for an unknown one.
func (s *Server) times(accessToken string) map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.access[accessToken]
	if p == nil {
		return nil
	}
	return map[string]any{
		"issued_at":  p.access.issued.UTC().Format(time.RFC3339),
		"expired_at": p.access.expiry.UTC().Format(time.RFC3339),
	}
}

func (s *Server) echo(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	headers := r.Header.Clone()
	headers.Del("Authorization")
	writeJSON(w, http.StatusOK, Echo{
		Method: r.Method, Host: r.Host, URI: r.RequestURI, Headers: headers,
		BodyLength: n, BodySHA256: hex.EncodeToString(sum.Sum(nil)),
		TokenNumber: s.number(bearer(r)),
	})
}

func (s *Server) number(accessToken string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.access[accessToken].number
}

// lateWriter checks the token when the answer begins, and replaces the answer
// by a 401 if it has died.
type lateWriter struct {
	http.ResponseWriter
	server         *Server
	token          string
	begun, refused bool
}

func (w *lateWriter) begin() {
	if w.begun {
		return
	}
	w.begun = true
	if w.server.Valid(w.token) {
		w.server.count(&w.server.stats.APIServed)
		return
	}
	w.refused = true
	clear(w.Header()) // those of the answer that is not to be
	w.server.refuseToken(w.ResponseWriter, w.token)
}

func (w *lateWriter) WriteHeader(status int) {
	if status >= 200 {
		w.begin()
	}
	if !w.refused {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *lateWriter) Write(p []byte) (int, error) {
	w.begin()
	if w.refused {
		return len(p), nil
	}
	return w.ResponseWriter.Write(p)
}

func (w *lateWriter) FlushError() error {
	w.begin()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Unwrap serves [http.ResponseController].
func (w *lateWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
