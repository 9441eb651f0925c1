package granttest

import (
	"io"
	"net/http"
	"time"
)

// RevocationEndpoint returns the endpoint of RFC 7009, whatever the path.
// Clients authenticate as at the token endpoint; a refresh token takes the
// access token of its pair along.
func (s *Server) RevocationEndpoint() http.Handler { return http.HandlerFunc(s.serveRevocation) }

func (s *Server) serveRevocation(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	_, params, err := parse(r.Header.Get("Content-Type"), body)
	if err != nil || params["token"] == "" {
		s.refuse(w, malformed("token is missing"))
		return
	}
	if _, refused := s.authenticate(r, params); refused != nil {
		s.refuse(w, refused)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if p := s.refresh[params["token"]]; p != nil && p.refresh.live(now) {
		p.kill()
		s.stats.Revoked++
	}
	if p := s.access[params["token"]]; p != nil && p.access.live(now) {
		p.access.kill()
		s.stats.Revoked++
	}
	// Section 2.2: a token that is unknown is as good as revoked.
}
