// Package tokencache holds one pair of OAuth 2.0 tokens in memory and keeps it
// fresh: one goroutine, [Cache.Run], replaces the access token well before it
// expires, while [Cache.AccessToken] hands out the one at hand in nanoseconds.
//
//	cache := tokencache.New(tokencache.Config{Grants: client})
//	go cache.Run(ctx)
//	token, err := cache.AccessToken(ctx)
//
// What it promises: a token is never handed out after its expiry and always
// before it, whatever the authorization server does meanwhile; there is never
// more than one request to the authorization server at a time, however many
// callers wait; and no answer of the server, however odd, ends the loop.
//
// It knows nothing of HTTP; see package grant for that.
package tokencache

import (
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

const (
	grantRefreshToken      = "refresh_token"
	grantClientCredentials = "client_credentials"

	// The loop looks at the clocks this often, to notice a wall clock that
	// was set, or a machine that was suspended, when no request tells it.
	recheck       = 30 * time.Second
	quietPatience = 2 * time.Second
	quietHold     = 100 * time.Millisecond
	// A log line for a failure that goes on is repeated this often.
	repeatLog = time.Minute
)

// Recorder is told what happens, for metrics. It must not block.
type Recorder interface {
	// TokenRefreshed reports one request to the authorization server. result
	// is success, unchanged (a success that brought the token we had),
	// rejected or error; reason, one word of a fixed set, tells the last two
	// apart further.
	TokenRefreshed(grantType, result, reason string, took time.Duration)
	// TokenScheduled reports, at every change, when the token held expires
	// (zero: none is held), when the server will be asked next, and how many
	// cycles have failed in a row.
	TokenScheduled(expiry, next time.Time, failures int)
	// TokenContested reports, at every change, what Contested returns.
	TokenContested(contested bool)
}

// Config is what a Cache is made of. Only Grants is required.
type Config struct {
	Grants Grants
	// Wait bounds how long AccessToken waits for a token when none is valid;
	// 0: not at all.
	Wait time.Duration
	// Window is when tokens are refreshed; zero: DefaultWindow.
	Window Window
	// Leeway is how long before its expiry a token is given up, at most a
	// tenth of its life: servers tell whole seconds, and requests travel.
	Leeway time.Duration
	// MinInterval is the least time between two cycles of requests to the
	// server, unless a token's own life is too short for it.
	MinInterval time.Duration
	// Hold bounds how long AccessToken waits, while a refresh is on its way
	// that may kill the token at hand, before it gives that out all the same;
	// 0: not at all, for servers that let the old token live.
	Hold time.Duration
	// Quiet, if not nil, waits until no request is in flight that would be
	// lost if its token died, or until ctx is done. It is called before a
	// refresh that may kill the token: first for as long as quietPatience,
	// then, with new callers waiting already, for quietHold.
	Quiet func(ctx context.Context)
	// FullGrantOnly leaves refresh tokens unused.
	FullGrantOnly bool
	// InvalidateInterval is the least time between two renewals asked for by
	// Invalidate, so that an upstream which refuses every token causes no storm.
	InvalidateInterval time.Duration

	Log      *zap.Logger // nil: silent
	Recorder Recorder    // nil: none
}

// Cache holds the tokens. Its methods are safe for concurrent use.
type Cache struct {
	cfg    Config
	origin time.Time
	now    func() instant
	random func() float64

	state    atomic.Pointer[state] // only Run replaces it
	unproven atomic.Bool           // see Renew
	wake     chan struct{}         // asks Run to look at the state and the clocks again

	logged failureLog // Run's
}

// New returns an empty Cache. Run fills it.
func New(cfg Config) *Cache {
	if cfg.Window == (Window{}) {
		cfg.Window = DefaultWindow
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	if cfg.Recorder == nil {
		cfg.Recorder = noRecorder{}
	}
	c := &Cache{cfg: cfg, origin: time.Now(), random: rand.Float64, wake: make(chan struct{}, 1)}
	c.now = func() instant { return instantOf(time.Now(), c.origin) }
	c.state.Store(&state{facts: facts{next: c.now()}, superseded: make(chan struct{})})
	return c
}

// AccessToken returns a token that is valid now. If there is none it waits for
// the loop to bring one, for Config.Wait at most, but no longer than there is
// hope: once the loop's next try lies beyond the wait, all who wait learn at
// once why the last one failed. The error implements [Failure].
//
// It also waits while the token at hand is about to be replaced because it
// was refused, or by a refresh that may kill it, rather than give out what is
// dead on arrival.
func (c *Cache) AccessToken(ctx context.Context) (string, error) {
	s, now := c.state.Load(), c.now()
	if s.valid(now) && s.hold(now, c.cfg.Wait) <= 0 {
		return s.access, nil
	}
	return c.await(ctx)
}

func (c *Cache) await(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Wait)
	defer cancel()
	deadline := c.now().add(c.cfg.Wait)
	for {
		s, now := c.state.Load(), c.now()
		patience := c.cfg.Wait
		switch valid := s.valid(now); {
		case valid && ctx.Err() != nil:
			return s.access, nil
		case valid:
			if patience = s.hold(now, c.cfg.Wait); patience <= 0 {
				return s.access, nil
			}
		case deadline.until(s.next) > 0 && !c.unproven.Load(), ctx.Err() != nil:
			return "", c.unavailable(s)
		}
		c.nudge() // the token may have expired by a clock that Run has not seen yet
		c.sleep(ctx, s, patience)
	}
}

// sleep returns when s is superseded, ctx is done or patience is at its end.
func (c *Cache) sleep(ctx context.Context, s *state, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.superseded:
	case <-ctx.Done():
	case <-timer.C:
	}
}

// Invalidate says that the upstream refused accessToken. If that is the token
// still held it is replaced by a full grant at once: its refresh token, of the
// same pair, is as doubtful. If such a renewal has just taken place, or the
// server is in trouble, the token stays in use.
func (c *Cache) Invalidate(accessToken string) {
	if s := c.state.Load(); s.access != "" && s.access == accessToken && !s.refused.Swap(true) {
		c.nudge()
	}
}

// Renew has the full grant performed now, to prove credentials that have
// changed. The tokens at hand stay in use until there are others.
func (c *Cache) Renew() {
	c.unproven.Store(true)
	c.nudge()
}

// Contested reports whether tokens keep dying before their time, as they do
// when somebody else gets tokens for the same client from a server that allows
// only one pair per client.
func (c *Cache) Contested() bool { return c.state.Load().contested() }

// Ready returns nil if a valid token is held and is not about to end, or else
// the reason in words.
func (c *Cache) Ready() error {
	s, now := c.state.Load(), c.now()
	life := s.token.Expiry.Sub(s.token.Issued)
	if s.valid(now) && now.until(s.goodUntil) >= min(time.Minute, life/10) {
		return nil
	}
	return c.unavailable(s)
}

// Run asks the server for tokens until ctx is done, and then returns nil: it
// is the only goroutine that does, and must be called once.
func (c *Cache) Run(ctx context.Context) error {
	for c.sleepUntilDue(ctx) {
		c.cycle(ctx)
	}
	return nil
}

// sleepUntilDue returns true when the server is to be asked, false when ctx is done.
func (c *Cache) sleepUntilDue(ctx context.Context) bool {
	for {
		left := c.now().until(c.state.Load().due())
		if left <= 0 || c.unproven.Load() {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, recheck))
		select {
		case <-timer.C:
		case <-c.wake:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// A cause is why the server is asked.
type cause int

const (
	scheduled cause = iota
	refused         // the upstream refused the token
	unproven        // the credentials have changed
)

// cycle asks the server once, with the refresh token or in full, or with both
// in turn, and publishes what came of it.
func (c *Cache) cycle(ctx context.Context) {
	old := c.state.Load()
	why := scheduled
	if c.unproven.Swap(false) {
		why = unproven
	}
	if old.refused.Load() {
		why = refused // whose full grant proves credentials as well
	}
	old = c.prepare(ctx, old, why)
	token, grant, err := c.renew(ctx, old, why)
	switch {
	case ctx.Err() != nil && err != nil:
		return
	case err != nil:
		c.publish(c.failed(old, why, grant, err))
	default:
		c.publish(c.renewed(old, why, token, grant))
	}
}

// prepare publishes what callers are to do while the server is being asked.
func (c *Cache) prepare(ctx context.Context, old *state, why cause) *state {
	now, f := c.now(), old.facts
	switch {
	case why == refused:
		c.cfg.Log.Warn("the upstream refused the access token before its expiry: asking for another")
		f.diedEarly++
		f.forceable = now.add(c.cfg.InvalidateInterval)
		f.heldUntil = now.add(c.cfg.Wait)
	case why == unproven:
		c.cfg.Log.Info("the client's credentials have changed: proving them")
		f.next = now
	case !old.valid(now) || !old.refreshable(now):
		return old // nobody gets a token, or nothing happens to the one they get
	default:
		c.quiet(ctx, quietPatience)
		f.heldUntil = c.now().add(c.cfg.Hold)
		defer c.quiet(ctx, quietHold)
	}
	return c.publish(f)
}

func (c *Cache) quiet(ctx context.Context, patience time.Duration) {
	if c.cfg.Quiet == nil || c.cfg.Hold == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.cfg.Quiet(ctx)
}

// renew returns the new token, and the grant that brought it or failed last.
func (c *Cache) renew(ctx context.Context, old *state, why cause) (Token, string, error) {
	if why == scheduled && old.refreshable(c.now()) {
		token, err := c.ask(old, grantRefreshToken, func() (Token, error) {
			return c.cfg.Grants.RefreshToken(ctx, old.token.Refresh)
		})
		if !errors.Is(err, ErrRefreshTokenRejected) && !errors.Is(err, ErrOutcomeUnknown) {
			return token, grantRefreshToken, err
		}
		c.cfg.Log.Info("the refresh token is no use any more: asking with the full grant",
			zap.String("reason", reason(err)))
	}
	token, err := c.ask(old, grantClientCredentials, func() (Token, error) {
		return c.cfg.Grants.ClientCredentials(ctx)
	})
	return token, grantClientCredentials, err
}

func (c *Cache) ask(old *state, grantType string, request func() (Token, error)) (Token, error) {
	start := time.Now()
	token, err := request()
	if !errors.Is(err, ErrNotAsked) {
		result, why := outcome(err, token.Access.Reveal() == old.access)
		c.cfg.Recorder.TokenRefreshed(grantType, result, why, time.Since(start))
	}
	return token, err
}

func outcome(err error, same bool) (result, why string) {
	switch {
	case errors.Is(err, ErrRefreshTokenRejected), errors.Is(err, ErrClientRejected):
		return "rejected", reason(err)
	case err != nil:
		return "error", reason(err)
	case same:
		return "unchanged", ""
	}
	return "success", ""
}

func (c *Cache) renewed(old *state, why cause, token Token, grant string) facts {
	issued := instantOf(token.Issued, c.origin)
	life := token.Expiry.Sub(token.Issued)
	token.Lifetime = cmp.Or(token.Lifetime, life)
	after := refreshIn(token, c.cfg.Window, c.random())
	floor := min(c.cfg.MinInterval, token.Lifetime/2)
	if unchanged := token.Access.Reveal() == old.access; unchanged {
		// Near its end such a token's remaining life, and so every fraction
		// of it, goes to nothing: only the whole interval prevents a hot loop.
		floor = c.cfg.MinInterval
	}
	if c.cfg.FullGrantOnly {
		token.Refresh = Secret{}
	}
	s := facts{
		token:     token,
		access:    token.Access.Reveal(),
		goodUntil: issued.add(life - min(c.cfg.Leeway, life/10)),
		next:      issued.add(after),
		forceable: old.forceable,
	}
	if why != scheduled {
		s.diedEarly = old.diedEarly
	}
	if now := c.now(); now.until(s.next) < floor {
		s.next = now.add(floor)
	}
	c.logged = failureLog{}
	c.cfg.Log.Info("access token acquired", zap.String("grant_type", grant),
		zap.Duration("expires_in", life), zap.Duration("next_refresh_in", c.now().until(s.next)))
	return s
}

func (c *Cache) failed(old *state, why cause, grant string, err error) facts {
	s := old.facts
	s.err, s.failures, s.heldUntil = err, old.failures+1, instant{}
	if errors.Is(err, ErrNotAsked) {
		s.err, s.failures = cmp.Or(old.err, err), old.failures
	}
	switch {
	case why == unproven: // which says nothing about the refresh token
	case grant == grantClientCredentials:
		s.token.Refresh = Secret{} // it was refused, lost, or failed twice
	case retryAfter(err) == 0: // a server that is only busy spends no try
		s.refreshTry++
	}
	wait := max(retryIn(err, old.failures, c.random()), c.cfg.MinInterval)
	s.next = c.now().add(wait)
	c.logFailure(s, grant, wait)
	return s
}

func (c *Cache) publish(f facts) *state {
	s := &state{facts: f, superseded: make(chan struct{})}
	old := c.state.Swap(s)
	close(old.superseded)
	c.cfg.Recorder.TokenScheduled(s.token.Expiry, s.next.wall, s.failures)
	if s.contested() != old.contested() {
		c.cfg.Recorder.TokenContested(s.contested())
	}
	if s.contested() && !old.contested() {
		c.cfg.Log.Warn("tokens keep dying before their time: another process, replica or person may be using the same client, and the server may allow one pair of tokens per client; give each a client of its own")
	}
	return s
}

func (c *Cache) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

type noRecorder struct{}

func (noRecorder) TokenRefreshed(_, _, _ string, _ time.Duration) {}
func (noRecorder) TokenScheduled(_, _ time.Time, _ int)           {}
func (noRecorder) TokenContested(bool)                            {}
