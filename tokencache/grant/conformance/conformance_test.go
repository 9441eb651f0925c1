// Package conformance runs the grant client and the token cache against an
// authorization server that we did not write. It is a module of its own, so
// that the server's dependencies stay out of the product's.
package conformance_test

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
	"github.com/token-sidecar/token-sidecar/tokencache/grant"
)

// eventually polls until what is true.
func eventually(t *testing.T, promise string, what func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !what() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not in 20s: %s", promise)
		}
	}
}

func forEachVariant(t *testing.T, test func(t *testing.T, v variant)) {
	for _, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			test(t, v)
		})
	}
}

func mustGrant(t *testing.T, client *grant.Client) tokencache.Token {
	t.Helper()
	token, err := client.ClientCredentials(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestClientCredentialsBringAPairThatTheAPIAccepts(t *testing.T) {
	forEachVariant(t, func(t *testing.T, v variant) {
		s := newServer(t, v, refreshLife)
		token := mustGrant(t, s.client(t, v, clientID, clientSecret))
		if !s.opens(t, token.Access.Reveal()) {
			t.Error("the API refuses the access token")
		}
		if token.Refresh.IsZero() {
			t.Error("no refresh token")
		}
		// An absolute time is told in whole seconds, by a clock that ticked meanwhile.
		if life := token.Expiry.Sub(token.Issued); life > accessLife || life < accessLife-time.Second {
			t.Errorf("life of the access token: got %s, want %s", life, accessLife)
		}
	})
}

func TestRefreshReplacesThePairAndKillsTheOldOne(t *testing.T) {
	forEachVariant(t, func(t *testing.T, v variant) {
		s := newServer(t, v, refreshLife)
		client := s.client(t, v, clientID, clientSecret)
		old := mustGrant(t, client)
		token, err := client.RefreshToken(t.Context(), old.Refresh)
		if err != nil {
			t.Fatal(err)
		}
		if token.Refresh.Reveal() == old.Refresh.Reveal() {
			t.Error("the refresh token is still the old one")
		}
		if !s.opens(t, token.Access.Reveal()) {
			t.Error("the API refuses the new access token")
		}
		if s.opens(t, old.Access.Reveal()) {
			t.Error("the API accepts the old access token")
		}
		_, err = client.RefreshToken(t.Context(), old.Refresh)
		wantError(t, err, tokencache.ErrRefreshTokenRejected, http.StatusUnauthorized, "invalid_grant")
	})
}

func TestExpiredRefreshTokenIsRefused(t *testing.T) {
	forEachVariant(t, func(t *testing.T, v variant) {
		const refreshLife = time.Second // which also ends the access token
		s := newServer(t, v, refreshLife)
		client := s.client(t, v, clientID, clientSecret)
		token := mustGrant(t, client)
		eventually(t, "the pair expires", func() bool { return !s.opens(t, token.Access.Reveal()) })
		_, err := client.RefreshToken(t.Context(), token.Refresh)
		wantError(t, err, tokencache.ErrRefreshTokenRejected, http.StatusUnauthorized, "invalid_grant")
	})
}

func TestWrongSecretIsTheClientsFault(t *testing.T) {
	forEachVariant(t, func(t *testing.T, v variant) {
		s := newServer(t, v, refreshLife)
		_, err := s.client(t, v, clientID, "wrong").ClientCredentials(t.Context())
		wantError(t, err, tokencache.ErrClientRejected, http.StatusUnauthorized, "invalid_client")
	})
}

// This server does not decode Basic credentials, against RFC 6749 section
// 2.3.1. Servers like it are why ClientSecretBasicRaw exists.
func TestBasicByTheBookIsRefused(t *testing.T) {
	v := basic
	v.auth = grant.ClientSecretBasic
	_, err := newServer(t, v, refreshLife).client(t, v, clientID, clientSecret).ClientCredentials(t.Context())
	wantError(t, err, tokencache.ErrClientRejected, http.StatusUnauthorized, "invalid_client")
}

// This server blames itself for a client that it does not know, so the answer
// cannot be told from a failure that passes.
func TestUnknownClientLooksLikeAServerError(t *testing.T) {
	forEachVariant(t, func(t *testing.T, v variant) {
		s := newServer(t, v, refreshLife)
		_, err := s.client(t, v, "unknown", clientSecret).ClientCredentials(t.Context())
		wantError(t, err, nil, http.StatusInternalServerError, "server_error")
	})
}

func wantError(t *testing.T, err, sentinel error, status int, code string) {
	t.Helper()
	for _, s := range []error{tokencache.ErrClientRejected, tokencache.ErrRefreshTokenRejected, tokencache.ErrOutcomeUnknown} {
		if got, want := errors.Is(err, s), s == sentinel; got != want {
			t.Errorf("error is %q: got %t, want %t (%v)", s, got, want, err)
		}
	}
	e, ok := errors.AsType[*grant.Error](err)
	if !ok {
		t.Fatalf("got %v, want a *grant.Error", err)
	}
	if e.Status != status || e.Code != code {
		t.Errorf("got %d %s, want %d %s", e.Status, e.Code, status, code)
	}
}

func TestCacheLivesOnRefreshesAlone(t *testing.T) {
	forEachVariant(t, func(t *testing.T, v variant) {
		s := newServer(t, v, refreshLife)
		cache, failures := runCache(t, s.client(t, v, clientID, clientSecret))
		const refreshes = 4 // longer than the first refresh token lives
		want := append([]string{"client_credentials 200"}, slices.Repeat([]string{"refresh_token 200"}, refreshes)...)
		eventually(t, "the pair is refreshed several times", func() bool { return len(s.asked()) >= len(want) })
		if got := s.asked()[:len(want)]; !slices.Equal(got, want) {
			t.Errorf("token requests: got %q, want %q", got, want)
		}
		eventually(t, "the API accepts the cache's token", func() bool { return opensFor(t, s, cache) })
		if got := failures(); got != 0 {
			t.Errorf("failed cycles: got %d, want none", got)
		}
	})
}

func TestCacheFollowsARefusedRefreshWithAFullGrantInTheSameCycle(t *testing.T) {
	cases := []struct {
		name        string
		refreshLife time.Duration
		rival       bool
	}{
		{"expired", time.Second / 2, false}, // before the earliest refresh
		{"used by somebody else", refreshLife, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t, basic, c.refreshLife)
			s.rival.Store(c.rival)
			cache, failures := runCache(t, s.client(t, basic, clientID, clientSecret))
			want := []string{"client_credentials 200", "refresh_token 401", "client_credentials 200"}
			eventually(t, "a full grant follows", func() bool { return len(s.asked()) >= len(want) })
			if got := s.asked()[:len(want)]; !slices.Equal(got, want) {
				t.Errorf("token requests: got %q, want %q", got, want)
			}
			eventually(t, "the API accepts the cache's token", func() bool { return opensFor(t, s, cache) })
			if got := failures(); got != 0 {
				t.Errorf("failed cycles: got %d, want none", got)
			}
		})
	}
}

// runCache runs a cache until the test ends. failures tells how many of its
// cycles brought no token.
func runCache(t *testing.T, grants tokencache.Grants) (c *tokencache.Cache, failures func() int64) {
	t.Helper()
	r := &recorder{}
	c = tokencache.New(tokencache.Config{Grants: grants, Wait: 5 * time.Second, Recorder: r})
	done := make(chan error)
	go func() { done <- c.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return c, r.failures.Load
}

func opensFor(t *testing.T, s *server, cache *tokencache.Cache) bool {
	t.Helper()
	token, err := cache.AccessToken(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s.opens(t, token)
}

// recorder counts the cycles that failed.
type recorder struct{ failures atomic.Int64 }

func (r *recorder) TokenRefreshed(_, _, _ string, _ time.Duration) {}

func (*recorder) TokenContested(bool) {}

func (r *recorder) TokenScheduled(_, _ time.Time, failures int) {
	if failures > 0 {
		r.failures.Add(1)
	}
}
