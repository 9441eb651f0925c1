package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// soak measures whether anything grows: a rotation every two seconds or so,
// and one token request in five meets a fault, though never two in a row, so
// that there is a token all the time. Memory is compared under load,
// goroutines and descriptors at rest.
func soak(lasts time.Duration) func(context.Context, *bench) (result, error) {
	return func(ctx context.Context, b *bench) (r result, err error) {
		p := newProvider(strict(2 * time.Minute))
		s, err := b.start(ctx, p, "REFRESH_WINDOW=0.014-0.018")
		if err != nil {
			return r, err
		}
		faults := &occasional{}
		p.Always(faults.meet)
		c := newClient(s.url)
		// An application has a pool. Without one the number of connections
		// would be that of the requests that the longest fault has wait.
		c.http.Transport.(*http.Transport).MaxConnsPerHost = 64
		c.burst(1000, smallMix)
		before, err := s.atRest(ctx, c)
		if err != nil {
			return r, err
		}
		var samples []map[string]float64
		stop := inBackground(ctx, func(ctx context.Context) { samples = s.watch(ctx, lasts/600) })
		load, cancel := context.WithTimeout(ctx, lasts)
		defer cancel()
		c.openLoop(load, 500, smallMix)
		stop()
		after, err := s.atRest(ctx, c)
		if err != nil {
			return r, err
		}

		early, late := halves(samples)
		from, to := median(early, "process_resident_memory_bytes"), median(late, "process_resident_memory_bytes")
		atMost(&r, "client errors", c.failed(), 0)
		atMost(&r, fmt.Sprintf("memory from %.3g to %.3g MiB, drift in %%", from/(1<<20), to/(1<<20)), 100*(to-from)/from, 10)
		for _, series := range []string{"go_goroutines", "process_open_fds"} {
			atMost(&r, series, int(after[series]), int(before[series])+fewMore)
		}
		r.note("rotations", p.Stats().Granted)
		r.note("faults", faults.met)
		r.note("answers", c.answers())
		return r, nil
	}
}

// fewMore goroutines or descriptors may be there at rest one time and not
// another, for a connection to the token endpoint.
const fewMore = 4

// atRest returns the metrics when no connection is left of those of c and
// those to the API.
func (s *sidecar) atRest(ctx context.Context, c *client) (map[string]float64, error) {
	c.http.CloseIdleConnections()
	pause(ctx, 6*time.Second)
	return s.metrics(ctx)
}

// watch samples the metrics until ctx is done.
func (s *sidecar) watch(ctx context.Context, every time.Duration) (samples []map[string]float64) {
	poll(ctx, every, func() bool {
		if m, err := s.metrics(ctx); err == nil {
			samples = append(samples, m)
		}
		return false
	})
	return samples
}

// halves leaves out the first fifth, in which things grow to their size.
func halves(samples []map[string]float64) (early, late []map[string]float64) {
	samples = samples[len(samples)/5:]
	return samples[:len(samples)/2], samples[len(samples)/2:]
}

func median(samples []map[string]float64, series string) float64 {
	var values []float64
	for _, sample := range samples {
		values = append(values, sample[series])
	}
	slices.Sort(values)
	if len(values) == 0 {
		return 0
	}
	return values[len(values)/2]
}

// occasional is a fault that is there for one token request in five.
type occasional struct {
	mu   sync.Mutex
	last bool // the request before met one
	met  int
}

var soakFaults = []granttest.Fault{
	granttest.Cut,
	granttest.LoseAnswer,
	granttest.Truncated,
	granttest.TooManyRequests("1"),
	granttest.Unavailable(""),
	granttest.HTML(http.StatusOK),
	granttest.Status(http.StatusInternalServerError, "out of order"),
	granttest.Drip(5 * time.Millisecond),
}

func (o *occasional) meet(w http.ResponseWriter, r *http.Request, grant http.Handler) {
	if o.strikes() {
		soakFaults[rand.IntN(len(soakFaults))](w, r, grant)
		return
	}
	grant.ServeHTTP(w, r)
}

func (o *occasional) strikes() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.last = !o.last && rand.IntN(4) == 0
	o.met += count(o.last)
	return o.last
}
