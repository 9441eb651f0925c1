package main

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	rotations    = 200
	rotationRate = 400 // requests a second
)

// rotation measures what an application notices of refreshes that kill the
// token in use. A token is replaced early in its life here, to fit 200 of them
// into minutes; late is whether the API checks it again after its work, when a
// second sending needs a token that lives as long again.
func rotation(late, streaming bool) func(context.Context, *bench) (result, error) {
	return func(ctx context.Context, b *bench) (r result, err error) {
		server := strict(10 * time.Second)
		server.ChecksLate = late
		p := newProvider(server)
		settings := []string{"REFRESH_WINDOW=0.05-0.07", "MIN_REFRESH_INTERVAL=500ms"}
		if late {
			settings = []string{"REFRESH_WINDOW=0.10-0.12"}
		}
		s, err := b.start(ctx, p, settings...)
		if err != nil {
			return r, err
		}
		c := newClient(s.url)
		ctx, stop := context.WithCancel(ctx)
		go func() {
			defer stop()
			poll(ctx, 100*time.Millisecond, func() bool { return p.Stats().RefreshToken >= rotations })
		}()
		c.openLoop(ctx, rotationRate, func(chance *rand.Rand) call { return mixed(chance, streaming) })

		stats := p.Stats()
		atMost(&r, "client errors", c.failed(), 0)
		atLeast(&r, "rotations", stats.RefreshToken, rotations)
		r.note("full grants", stats.ClientCredentials)
		r.note("refused upstream", stats.APIRefused)
		r.note("answers", c.answers())
		r.note("p50", c.percentile(0.50))
		r.note("p99", c.percentile(0.99))
		return r, nil
	}
}

// mixed is one call of an ordinary mixture: one in four a POST of 1 KiB, one in
// a hundred slow, and if streaming one in twenty with a large body that comes
// in pieces.
func mixed(chance *rand.Rand, streaming bool) call {
	c := call{work: time.Duration(1+chance.IntN(5)) * time.Millisecond}
	switch kind := chance.IntN(100); {
	case streaming && kind < 5:
		c.body = someBytes(chance, 256<<10)
		c.over = time.Duration(30+chance.IntN(30)) * time.Millisecond
		return c
	case kind < 30:
		c.body = someBytes(chance, 1<<10)
	}
	if chance.IntN(100) == 0 {
		c.work = 400 * time.Millisecond
	}
	return c
}
