package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// idleRace measures POSTs on connections that one side is about to close for
// having been idle: the API after 5 s, the sidecar after its default. Nobody
// may repeat a POST that meets such an end.
func idleRace(ctx context.Context, b *bench) (r result, err error) {
	const (
		requests = 4800
		rate     = 2000 // a second, for
		together = 200 * time.Millisecond
		work     = 300 * time.Millisecond // so that all of them need a connection each
	)
	p := newProvider(strict(time.Hour))
	p.api.idleTimeout = 5 * time.Second
	s, err := b.start(ctx, p)
	if err != nil {
		return r, err
	}
	c := newClient(s.url)
	for round := 0; c.sent() < requests && ctx.Err() == nil; round++ {
		burst, cancel := context.WithTimeout(ctx, together)
		c.openLoop(burst, rate, func(chance *rand.Rand) call { return call{body: someBytes(chance, 1<<10), work: work} })
		cancel()
		// They have been idle for between 200 ms less and 200 ms more than
		// 4 s, or than 5 s, when the next burst comes.
		pause(ctx, 3800*time.Millisecond+time.Duration(round%2)*time.Second)
	}
	atMost(&r, "client errors", c.failed(), 0)
	atLeast(&r, "POSTs", c.sent(), requests)
	r.note("answers", c.answers())
	return r, nil
}

const drainTimeout = 5 * time.Second

// sigterm measures the end under load: five times with requests that end in
// time, and once with one that does not.
func sigterm(ctx context.Context, b *bench) (r result, err error) {
	var before, after endTally
	var slowest time.Duration
	for range 5 {
		took, err := terminate(ctx, b, &before, &after)
		if err != nil {
			return r, err
		}
		slowest = max(slowest, took)
	}
	stuck, err := terminateStuck(ctx, b)
	if err != nil {
		return r, err
	}
	atMost(&r, "failed in flight", before.failed, 0)
	atMost(&r, "carried out but not answered", before.unanswered+after.unanswered, 0)
	atMost(&r, "answered with an error after it", after.wrong, 0)
	atMost(&r, "exit", slowest, drainTimeout+time.Second)
	atMost(&r, "exit with a request that does not end", stuck, drainTimeout+time.Second)
	r.note("begun before", before.answers)
	r.note("begun after", after.answers)
	return r, nil
}

// neverAccepted is the outcome of a call for which there was no listener any more.
const neverAccepted = "dial: connect: connection refused"

// An endTally adds up what came of calls over several ends.
type endTally struct {
	failed, wrong, unanswered int
	answers                   string
}

// terminate ends a sidecar that is under load, which goes on for a second, and
// returns how long it took.
func terminate(ctx context.Context, b *bench, sumBefore, sumAfter *endTally) (time.Duration, error) {
	p := newProvider(strict(time.Hour))
	s, err := b.start(ctx, p, "DRAIN_TIMEOUT="+drainTimeout.String())
	if err != nil {
		return 0, err
	}
	before := newClient(s.url)
	after := before.another()
	var running sync.WaitGroup
	beginning, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	running.Go(func() { before.openLoop(beginning, rotationRate, untilHalfASecond) })
	<-beginning.Done()
	signalled := time.Now()
	if err := s.process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	rest, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	running.Go(func() { after.openLoop(rest, rotationRate, untilHalfASecond) })
	select {
	case <-s.exited:
	case <-ctx.Done():
	}
	took := time.Since(signalled)
	running.Wait()
	sumBefore.add(before)
	sumAfter.add(after)
	sumAfter.unanswered += int(p.carriedOut.Load()) - before.count(good) - after.count(good)
	return took, s.err
}

func untilHalfASecond(chance *rand.Rand) call {
	c := smallMix(chance)
	c.work = time.Duration(chance.IntN(500)) * time.Millisecond
	return c
}

func (t *endTally) add(c *client) {
	t.failed += c.failed() - c.count(neverAccepted)
	t.wrong += c.count("401", "500", "502", shed, shedRudely, "504", bodyDifferent)
	t.answers = c.answers() // of the last end, as an example
}

// terminateStuck ends a sidecar with one request that never ends.
func terminateStuck(ctx context.Context, b *bench) (time.Duration, error) {
	p := newProvider(strict(time.Hour))
	s, err := b.start(ctx, p, "DRAIN_TIMEOUT="+drainTimeout.String())
	if err != nil {
		return 0, err
	}
	c := newClient(s.url)
	stop := inBackground(ctx, func(context.Context) { c.burst(1, func(*rand.Rand) call { return call{work: time.Hour} }) })
	defer stop()
	poll(ctx, 10*time.Millisecond, func() bool { return p.Stats().APIServed == 1 })
	signalled := time.Now()
	if err := s.process.Signal(syscall.SIGTERM); err != nil {
		return 0, err
	}
	select {
	case <-s.exited:
	case <-ctx.Done():
	}
	return time.Since(signalled), s.err
}
