package main

import (
	"context"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"
)

// revoked measures a storm: many requests are refused at the same moment, all
// on account of one token.
func revoked(ctx context.Context, b *bench) (r result, err error) {
	const requests = 500
	p := newProvider(strict(time.Hour))
	p.api.handler = together(requests, p.api.handler)
	s, err := b.start(ctx, p)
	if err != nil {
		return r, err
	}
	before := p.Stats()
	p.Revoke()
	c := newClient(s.url)
	c.burst(requests, func(chance *rand.Rand) call { return call{body: someBytes(chance, 1<<10)} })

	after := p.Stats()
	atMost(&r, "client errors", c.failed(), 0)
	atLeast(&r, "refused at once", after.APIRefused, requests)
	exactly(&r, "token requests", after.Requests-before.Requests, 1)
	exactly(&r, "bodies carried out, unchanged", c.count(good), int(p.carriedOut.Load()))
	r.note("answers", c.answers())
	return r, nil
}

// together keeps the first n requests until all of them are there.
func together(n int64, next http.Handler) http.Handler {
	var arrived atomic.Int64
	all := make(chan struct{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		number := arrived.Add(1)
		if number == n {
			close(all)
		}
		if number <= n {
			select {
			case <-all:
			case <-r.Context().Done():
			}
		}
		next.ServeHTTP(w, r)
	})
}

// refused measures what an API that refuses every token gets the sidecar to do.
func refused(ctx context.Context, b *bench) (r result, err error) {
	const rate, lasts = 100, time.Minute
	p := newProvider(strict(time.Hour))
	var upstream atomic.Int64
	p.api.handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		upstream.Add(1)
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		w.WriteHeader(http.StatusUnauthorized)
	})
	s, err := b.start(ctx, p)
	if err != nil {
		return r, err
	}
	before := p.Stats()
	c := newClient(s.url)
	ctx, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	c.openLoop(ctx, rate, func(chance *rand.Rand) call { return call{body: someBytes(chance, 1<<10)} })

	atMost(&r, "upstream requests per request", float64(upstream.Load())/float64(c.sent()), 1.2)
	atMost(&r, "token requests in the minute", p.Stats().Requests-before.Requests, 6)
	atMost(&r, "answers other than the API's own 401", c.sent()-c.count("401"), 0)
	r.note("answers", c.answers())
	return r, nil
}
