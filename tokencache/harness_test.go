package tokencache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
)

// server is an authorization server within the process. Its answers can be
// changed while it runs.
type server struct {
	mu       sync.Mutex
	life     time.Duration
	took     time.Duration // every request
	noPair   bool          // issue no refresh tokens
	grant    error         // what client_credentials fails with
	refresh  error         // what refresh_token fails with
	same     bool          // answer with the token issued last
	issued   int
	requests []string
	inFlight int
}

func (s *server) ClientCredentials(ctx context.Context) (Token, error) {
	return s.answer(ctx, "client_credentials", func() error { return s.grant })
}

func (s *server) RefreshToken(ctx context.Context, _ Secret) (Token, error) {
	return s.answer(ctx, "refresh_token", func() error { return s.refresh })
}

func (s *server) answer(ctx context.Context, grant string, failure func() error) (Token, error) {
	s.change(func() {
		s.requests = append(s.requests, grant)
		if s.inFlight++; s.inFlight > 1 {
			panic("two requests in flight")
		}
	})
	defer s.change(func() { s.inFlight-- })
	sent := time.Now()
	select {
	case <-time.After(s.took):
	case <-ctx.Done():
		return Token{}, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := failure(); err != nil {
		return Token{}, err
	}
	if !s.same {
		s.issued++
	}
	token := Token{Access: NewSecret(fmt.Sprintf("access-%d", s.issued)), Issued: sent, Expiry: sent.Add(s.life)}
	if !s.noPair {
		token.Refresh = NewSecret(fmt.Sprintf("refresh-%d", s.issued))
	}
	return token, nil
}

func (s *server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// asked returns the requests since it was last called.
func (s *server) asked() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.requests = nil }()
	return strings.Join(s.requests, " ")
}

// run starts a cache before the server, in a bubble of fake time.
func run(t *testing.T, s *server, cfg Config, test func(t *testing.T, c *Cache)) {
	synctest.Test(t, func(t *testing.T) {
		if s.life == 0 {
			s.life = time.Hour
		}
		cfg.Grants = s
		cfg.Log = printed(t, cfg.Log)
		c := New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		test(t, c)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v after its context was done", err)
		}
	})
}

// printed has the test print as well what is logged by l, if that is not nil.
func printed(t *testing.T, l *zap.Logger) *zap.Logger {
	core := zaptest.NewLogger(t).Core()
	if l != nil {
		core = zapcore.NewTee(core, l.Core())
	}
	return zap.New(core)
}

func wantToken(t *testing.T, c *Cache, want string) {
	t.Helper()
	if got, err := c.AccessToken(t.Context()); got != want || err != nil {
		t.Errorf("AccessToken: got %q, %v, want %q", got, err, want)
	}
}

func wantAsked(t *testing.T, s *server, want string) {
	t.Helper()
	if got := s.asked(); got != want {
		t.Errorf("requests to the server: got %q, want %q", got, want)
	}
}

var errDown = errors.New("down")

type recorder struct {
	mu           sync.Mutex
	results      map[string]int
	expiry, next time.Time
	failures     int
	contested    []bool // each change
}

func (r *recorder) TokenRefreshed(grantType, result, reason string, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.results == nil {
		r.results = map[string]int{}
	}
	r.results[grantType+" "+result+" "+reason]++
}

func (r *recorder) TokenScheduled(expiry, next time.Time, failures int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expiry, r.next, r.failures = expiry, next, failures
}

func (r *recorder) TokenContested(contested bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.contested = append(r.contested, contested)
}
