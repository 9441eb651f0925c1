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
	recheck = 30 * time.Second
	// Callers wait this long for the token that takes the place of a refused one.
	replaceWait = 10 * time.Second

	// Whoever ends this process does not wait long for it.
	revokePatience = 2 * time.Second

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
	// server, unless a token's own life is too short for it; 0: 1 s.
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
	// FullGrantOnly leaves refresh tokens unused, but for Revoke.
	FullGrantOnly bool
	// Revoke, if not nil, is told by Run at its end to have the pair that is
	// held forgotten. It may take as long as revokePatience.
	Revoke func(ctx context.Context, pair Token) error
	// InvalidateInterval is the least time between two renewals asked for by
	// Invalidate, so that an upstream which refuses every token causes no
	// storm; 0: 10 s.
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
	cfg.MinInterval = cmp.Or(cfg.MinInterval, time.Second)
	cfg.InvalidateInterval = cmp.Or(cfg.InvalidateInterval, 10*time.Second)
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
	if s.valid(now) && s.hold(now) <= 0 {
		return s.access, nil
	}
	return c.await(ctx)
}

func (c *Cache) await(ctx context.Context) (string, error) {
	began := c.now()
	for {
		s, now := c.state.Load(), c.now()
		waited := now.mono - began.mono
		patience := c.cfg.Wait - waited
		switch {
		case s.valid(now):
			patience = min(s.hold(now), replaceWait-waited)
			if patience <= 0 || ctx.Err() != nil {
				return s.access, nil
			}
		case patience <= 0, ctx.Err() != nil, now.add(patience).until(s.next) > 0 && !c.unproven.Load():
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
	c.revoke(context.WithoutCancel(ctx))
	return nil
}

func (c *Cache) revoke(ctx context.Context) {
	pair := c.state.Load().token
	if c.cfg.Revoke == nil || pair.Access.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, revokePatience)
	defer cancel()
	if err := c.cfg.Revoke(ctx, pair); err != nil {
		c.cfg.Log.Warn("the tokens could not be revoked, and stay good until they expire", zap.Error(err))
		return
	}
	c.cfg.Log.Info("the tokens are revoked")
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
	why, f := c.begin(ctx)
	token, grant, err := c.renew(ctx, &f, why)
	switch {
	case ctx.Err() != nil && err != nil:
		return
	case err != nil:
		c.publish(c.failed(f, grant, err))
	default:
		c.publish(c.renewed(f, why, token, grant))
	}
}

// begin finds out why the server is to be asked, and publishes what callers
// are to do meanwhile.
func (c *Cache) begin(ctx context.Context) (cause, facts) {
	old := c.state.Load()
	changed := c.unproven.Swap(false)
	mayKill := !changed && old.valid(c.now()) && c.refreshable(&old.facts)
	if mayKill && !old.refused.Load() {
		c.quiet(ctx, min(quietPatience, c.now().until(old.goodUntil)/4))
	}
	now, f := c.now(), old.facts
	switch {
	case old.refused.Load(): // the full grant that follows proves credentials as well
		c.cfg.Log.Warn("the upstream refused the access token before its expiry: asking for another")
		f.diedEarly++
		f.forceable = now.add(c.cfg.InvalidateInterval)
		f.heldUntil = now.add(replaceWait)
		c.publish(f)
		return refused, f
	case changed:
		c.cfg.Log.Info("the client's credentials have changed: proving them")
		f.next = now
		c.publish(f)
		return unproven, f
	case mayKill:
		f.heldUntil = now.add(c.cfg.Hold)
		c.publish(f)
		c.quiet(ctx, quietHold)
	}
	return scheduled, f
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
// A refresh token that is no use any more it takes out of f.
func (c *Cache) renew(ctx context.Context, f *facts, why cause) (Token, string, error) {
	if why == scheduled && c.refreshable(f) {
		token, err := c.ask(f.access, grantRefreshToken, func() (Token, error) {
			return c.cfg.Grants.RefreshToken(ctx, f.token.Refresh)
		})
		if !errors.Is(err, ErrRefreshTokenRejected) && !errors.Is(err, ErrOutcomeUnknown) {
			return token, grantRefreshToken, err
		}
		c.cfg.Log.Info("the refresh token is no use any more: asking with the full grant",
			zap.String("reason", reason(err)))
		f.token.Refresh = Secret{}
	}
	token, err := c.ask(f.access, grantClientCredentials, func() (Token, error) {
		return c.cfg.Grants.ClientCredentials(ctx)
	})
	return token, grantClientCredentials, err
}

func (c *Cache) refreshable(f *facts) bool { return !c.cfg.FullGrantOnly && f.refreshable(c.now()) }

// ask makes one request, and records it if it was really made.
func (c *Cache) ask(held, grantType string, request func() (Token, error)) (Token, error) {
	start := time.Now()
	token, err := request()
	if !errors.Is(err, ErrNotAsked) && !errors.Is(err, context.Canceled) {
		result, why := outcome(err, token.Access.Reveal() == held)
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

// renewed makes of f what is known with a new token.
func (c *Cache) renewed(f facts, why cause, token Token, grant string) facts {
	issued := instantOf(token.Issued, c.origin)
	life := token.Expiry.Sub(token.Issued)
	token.Lifetime = cmp.Or(token.Lifetime, life)
	after := refreshIn(token, c.cfg.Window, c.random())
	floor := min(c.cfg.MinInterval, token.Lifetime/2)
	if unchanged := token.Access.Reveal() == f.access; unchanged {
		// Near its end such a token's remaining life, and so every fraction
		// of it, goes to nothing: only the whole interval prevents a hot loop.
		floor = c.cfg.MinInterval
	}
	s := facts{
		token:     token,
		access:    token.Access.Reveal(),
		goodUntil: issued.add(life - min(c.cfg.Leeway, life/10)),
		next:      issued.add(after),
		forceable: f.forceable,
	}
	if why != scheduled {
		s.diedEarly = f.diedEarly
	}
	if now := c.now(); now.until(s.next) < floor {
		s.next = now.add(floor)
	}
	c.logged = failureLog{}
	c.cfg.Log.Info("access token acquired", zap.String("grant_type", grant),
		zap.Duration("expires_in", life), zap.Duration("next_refresh_in", c.now().until(s.next)))
	return s
}

// failed makes of f what is known after the request of that grant has failed.
func (c *Cache) failed(f facts, grant string, err error) facts {
	wait := max(retryIn(err, f.failures, c.random()), c.cfg.MinInterval)
	f.next, f.heldUntil = c.now().add(wait), instant{}
	if errors.Is(err, ErrNotAsked) {
		f.err = cmp.Or(f.err, err)
	} else {
		f.err = err
		f.failures++
	}
	if grant == grantRefreshToken && retryAfter(err) == 0 { // a server that is only busy spends no try
		f.refreshTry++
	}
	c.logFailure(f, grant, wait)
	return f
}

func (c *Cache) publish(f facts) {
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
