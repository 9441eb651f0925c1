package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

const (
	// backOffStep is the longest pause between two tries to get a token.
	backOffStep = time.Minute
	// slack is what a busy machine may add to a time.
	slack = 2 * time.Second

	nextRefresh = "token_sidecar_token_next_refresh_timestamp_seconds"
)

// smallMix is a GET or, one time in four, a POST of 1 KiB.
func smallMix(chance *rand.Rand) call { return mixed(chance, false) }

// outage measures the last quarter of a token that lives ten minutes. It is
// made of a token that lives for two and a half, whose first refresh is due at
// once, so that the other three quarters need not be waited for. The endpoint
// comes back one back-off step before the token's end: the sidecar cannot know
// of it any sooner.
func outage(ctx context.Context, b *bench) (r result, err error) {
	const quarter = 150 * time.Second
	p := newProvider(strict(quarter))
	issued := time.Now()
	s, err := b.start(ctx, p, "REFRESH_WINDOW=0.01-0.01")
	if err != nil {
		return r, err
	}
	p.token.close()
	c := newClient(s.url)
	stop := inBackground(ctx, func(ctx context.Context) { c.openLoop(ctx, 100, smallMix) })
	defer stop()
	pause(ctx, time.Until(issued.Add(quarter-backOffStep-slack)))
	announced, err := s.comeBack(ctx, p)
	if err != nil {
		return r, err
	}
	back := time.Now()
	poll(ctx, 10*time.Millisecond, func() bool { return p.Stats().Granted >= 2 || time.Since(back) > 2*backOffStep })
	recovered := time.Since(back)
	pause(ctx, 2*time.Second)
	stop()

	atMost(&r, "client errors", c.failed(), 0)
	atMost(&r, fmt.Sprintf("recovery, announced for %s,", show(announced)), recovered, announced+slack)
	r.note("away for", back.Sub(issued))
	r.note("answers", c.answers())
	return r, nil
}

// outagePastEnd measures what an application is told when there is no token
// left, and how soon it is served again.
func outagePastEnd(ctx context.Context, b *bench) (r result, err error) {
	const life = 10 * time.Second
	p := newProvider(strict(life))
	s, err := b.start(ctx, p)
	if err != nil {
		return r, err
	}
	p.token.close()
	c := newClient(s.url)
	stop := inBackground(ctx, func(ctx context.Context) { c.openLoop(ctx, 50, smallMix) })
	defer stop()
	pause(ctx, 3*life)
	announced, err := s.comeBack(ctx, p)
	if err != nil {
		return r, err
	}
	back := time.Now()
	probe := c.another()
	poll(ctx, 10*time.Millisecond, func() bool { return probe.send(call{}) == good || time.Since(back) > 2*backOffStep })
	recovered, stats := time.Since(back), p.Stats()
	stop()

	atMost(&r, fmt.Sprintf("recovery, announced for %s,", show(announced)), recovered, announced+slack)
	exactly(&r, "token requests until then", stats.Requests, 2)
	atMost(&r, "answers other than 200, and 503 with Retry-After", c.sent()-c.count(good, shed), 0)
	r.note("answers", c.answers())
	return r, nil
}

// comeBack opens the token endpoint again, and returns in how long the
// sidecar, which cannot know, has announced to try it next.
func (s *sidecar) comeBack(ctx context.Context, p *provider) (time.Duration, error) {
	m, err := s.metrics(ctx)
	if err != nil {
		return 0, err
	}
	at := time.UnixMilli(int64(m[nextRefresh] * 1000))
	return max(0, time.Until(at)), p.token.open()
}

// lostAnswer measures a refresh whose answer does not arrive though the pair
// has changed: the connection is cut at once.
func lostAnswer(ctx context.Context, b *bench) (result, error) {
	return lost(ctx, b, granttest.LoseAnswer)
}

// silentAnswer is lostAnswer when nothing at all happens, until the sidecar
// gives up.
func silentAnswer(ctx context.Context, b *bench) (result, error) {
	return lost(ctx, b, func(w http.ResponseWriter, r *http.Request, grant http.Handler) {
		grant.ServeHTTP(httptest.NewRecorder(), r)
		granttest.Hang(w, r, grant)
	})
}

func lost(ctx context.Context, b *bench, loss granttest.Fault) (r result, err error) {
	p := newProvider(strict(time.Minute))
	s, err := b.start(ctx, p, "REFRESH_WINDOW=0.05-0.05", "TOKEN_REQUEST_TIMEOUT=4s")
	if err != nil {
		return r, err
	}
	before := p.Stats()
	p.Script(loss)
	c := newClient(s.url)
	stop := inBackground(ctx, func(ctx context.Context) { c.openLoop(ctx, 200, smallMix) })
	defer stop()
	poll(ctx, 50*time.Millisecond, func() bool { return p.Stats().RefreshToken == 2 })
	stop()

	atMost(&r, "client errors", c.failed(), 0)
	exactly(&r, "full grants", p.Stats().ClientCredentials-before.ClientCredentials, 1)
	r.note("answers", c.answers())
	r.note("slowest", c.percentile(1))
	return r, nil
}

// coldStart measures requests that are there before the first token.
func coldStart(ctx context.Context, b *bench) (r result, err error) {
	const requests = 1000
	server := strict(time.Hour)
	server.Delay = 2 * time.Second
	p := newProvider(server)
	s, err := b.launch(ctx, p)
	if err != nil {
		return r, err
	}
	c := newClient(s.url)
	c.burst(requests, smallMix)

	atMost(&r, "client errors", c.failed(), 0)
	exactly(&r, "token requests", p.Stats().Requests, 1)
	r.note("answers", c.answers())
	r.note("fastest", c.percentile(0))
	return r, nil
}

// inBackground runs f until the function returned is called, which waits for
// its end.
func inBackground(ctx context.Context, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() { f(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// pause waits for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
