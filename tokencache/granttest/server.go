// Package granttest is an authorization server that is awkward on purpose,
// with a protected API that accepts only its live tokens. What httptest is to
// HTTP, it is to the client credentials and refresh token grants of OAuth 2.0
// (RFC 6749 sections 4.4 and 6): tests and the quickstart share it.
//
//	srv := granttest.Makini("id", "secret") // as that provider's page says
//	web := httptest.NewServer(srv)          // POST /oauth/token; the rest is the API
//
// A [Server] is told how to be awkward in two ways. Its fields say what kind
// of server it is: how long tokens live, what dies when, how expires_in is
// spelled. Its methods change its mood while it runs:
//
//	srv.Script(granttest.TooManyRequests("7"), granttest.LoseAnswer, nil)
//	srv.Always(granttest.Hang)
//	srv.Revoke()
//
// The next token request is told to come back in seven seconds; the one after
// rotates the tokens and loses the answer; the third is served; all later ones
// hang. Then every token is revoked behind the client's back. [Server.Stats]
// tells what the client made of it.
//
// All time is read from package time and nothing runs in the background, so a
// Server can live in a testing/synctest bubble, where a token of 30 days
// expires in no time. It knows nothing of users, consent, JWTs or TLS, it
// remembers every token it issued, and it must never guard anything real.
package granttest

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"sync"
	"time"
)

// Server is an authorization server and a protected API over one store of
// tokens. The zero value serves any client, by the book. It is safe for
// concurrent use; the fields are set before first use.
type Server struct {
	// ClientID and ClientSecret are what a client must present. With an empty
	// ClientID any client will do, even one that presents nothing.
	ClientID, ClientSecret string
	// Accept is the encoding that token requests must have.
	Accept Encoding
	// TokenType is what answers call the access token; default "Bearer".
	TokenType string

	// Life is how long an access token lives; default 1 h.
	Life time.Duration
	// RefreshLife is how long a refresh token lives; default twice Life.
	// Negative: none is issued.
	RefreshLife time.Duration
	// ExpiresIn gives the value of expires_in for a token that expires at
	// expiry, life from now; a nil value leaves the member out. Default
	// [Relative].
	ExpiresIn func(expiry time.Time, life time.Duration) any

	// RefreshKills makes a refresh kill the access token it replaces. The
	// refresh token is spent by use in any case, unless RefreshReusable.
	RefreshKills bool
	// RefreshReusable keeps a refresh token good until it expires; the answer
	// to a refresh carries no new one (RFC 6749 section 6 allows it).
	RefreshReusable bool
	// RefreshWithoutClient serves the refresh grant without client
	// authentication. Credentials that are sent must be right all the same.
	RefreshWithoutClient bool
	// GrantKills makes a full grant kill every earlier pair of the client, so
	// that two processes with one client id fight.
	GrantKills bool

	// RefusedClient is the status for a wrong client; default 401.
	RefusedClient int
	// RefusedRefresh is the status for a refresh token that is unknown, spent
	// or expired; default 400.
	RefusedRefresh int
	// DetailedErrors gives all errors, the API's too, as {error, message,
	// code, details} in place of {error, error_description}.
	DetailedErrors bool

	// Delay is how long the token endpoint takes for an honest answer. Tokens
	// are issued and killed half way through.
	Delay time.Duration
	// ChecksLate makes the API look at the token again when its answer
	// begins: a token that died meanwhile earns a 401 after all the work.
	ChecksLate bool

	mu      sync.Mutex // guards all below; never held while waiting or writing
	latest  *pair
	access  map[string]*pair // by access token
	refresh map[string]*pair // by refresh token, the last pair it belongs to
	script  []Fault
	always  Fault
	flying  int // token requests in flight
	stats   Stats
}

// Makini returns a server that behaves as the Makini Admin API documents.
func Makini(id, secret string) *Server {
	const day = 24 * time.Hour
	return &Server{
		ClientID: id, ClientSecret: secret,
		TokenType: "bearer",
		Life:      30 * day, RefreshLife: 31 * day,
		ExpiresIn:    Absolute,
		RefreshKills: true, RefreshWithoutClient: true,
		RefusedClient: 403, RefusedRefresh: 401,
	}
}

// AdminV3 returns a server that behaves as Admin API v3 documents. How long
// its "long-lived" refresh tokens live is not documented; here 90 days.
func AdminV3(id, secret string) *Server {
	return &Server{
		ClientID: id, ClientSecret: secret,
		Accept: JSON,
		Life:   time.Hour, RefreshLife: 90 * 24 * time.Hour,
		RefusedClient: 401, RefusedRefresh: 401,
		DetailedErrors: true,
	}
}

// Encoding is how the parameters of a token request are encoded.
type Encoding int

const (
	Any  Encoding = iota // Form or JSON
	Form                 // application/x-www-form-urlencoded, RFC 6749 section 4.4.2
	JSON                 // application/json, an object
)

// Relative is an expires_in in seconds from now, RFC 6749 section 5.1.
func Relative(_ time.Time, life time.Duration) any { return int64(life / time.Second) }

// Absolute is an expires_in that gives the Unix time of expiry, in seconds.
func Absolute(expiry time.Time, _ time.Duration) any { return expiry.Unix() }

// Omitted leaves expires_in out.
func Omitted(time.Time, time.Duration) any { return nil }

// Quoted gives the number of form as a JSON string: Quoted(Relative) is "3600".
func Quoted(form func(time.Time, time.Duration) any) func(time.Time, time.Duration) any {
	return func(expiry time.Time, life time.Duration) any {
		return fmt.Sprint(form(expiry, life))
	}
}

// Stats counts what a [Server] has seen.
type Stats struct {
	Requests          int // POSTs that reached the token endpoint
	ClientCredentials int // those of grant_type client_credentials
	RefreshToken      int // those of grant_type refresh_token

	// Granted and Refused are what the honest endpoint decided, be the answer
	// lost afterwards. A fault that never asks it counts in neither.
	Granted, Refused int
	// MostAtOnce is the most token requests ever in flight at once. One whose
	// client has left is in flight until the connection is seen to close.
	MostAtOnce int

	Revoked int // tokens that a client had revoked

	APIServed  int // API requests let through
	APIRefused int // API requests answered 401
}

// Stats returns the counts up to now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Revoke kills every live token, access and refresh, behind the client's back.
func (s *Server) Revoke() { s.revoke((*pair).kill) }

// RevokeAccess kills every live access token; refresh tokens stay good.
func (s *Server) RevokeAccess() { s.revoke(func(p *pair) { p.access.kill() }) }

func (s *Server) revoke(kill func(*pair)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.access {
		kill(p)
	}
}

// Valid reports whether the API would accept accessToken now.
func (s *Server) Valid(accessToken string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.access[accessToken]
	return p != nil && p.access.live(time.Now())
}

// pair is what one grant issued.
type pair struct {
	number  int // 1 for the first pair of the server
	client  string
	access  *token
	refresh *token // nil: none; shared between pairs if RefreshReusable
}

func (p *pair) kill() { p.access.kill(); p.refresh.kill() }

type token struct {
	value          string
	issued, expiry time.Time
	dead           bool // before its time
}

func (t *token) live(now time.Time) bool { return t != nil && !t.dead && now.Before(t.expiry) }

func (t *token) kill() {
	if t != nil {
		t.dead = true
	}
}

// issueLocked makes the next pair. It carries on with the refresh token given,
// or with a new one if that is nil.
func (s *Server) issueLocked(now time.Time, client string, refresh *token) *pair {
	if s.access == nil {
		s.access, s.refresh = map[string]*pair{}, map[string]*pair{}
	}
	p := &pair{number: len(s.access) + 1, client: client, refresh: refresh}
	mint := func(kind string, life time.Duration) *token {
		value := fmt.Sprintf("%s-%04d-%s", kind, p.number, rand.Text())
		return &token{value: value, issued: now, expiry: now.Add(life)}
	}

	life := cmp.Or(s.Life, time.Hour)
	p.access = mint("access", life)
	s.access[p.access.value] = p
	if refreshLife := cmp.Or(s.RefreshLife, 2*life); p.refresh == nil && refreshLife > 0 {
		p.refresh = mint("refresh", refreshLife)
	}
	if p.refresh != nil {
		s.refresh[p.refresh.value] = p
	}
	s.latest = p
	return p
}

func (s *Server) count(n *int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*n++
}
