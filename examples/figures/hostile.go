package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// slowHeaders measures clients that never come to the end of their header,
// and what others notice of them.
func slowHeaders(ctx context.Context, b *bench) (r result, err error) {
	const slow, limit = 400, 10 * time.Second
	p := newProvider(strict(time.Hour))
	s, err := b.start(ctx, p)
	if err != nil {
		return r, err
	}
	before, during := newClient(s.url), newClient(s.url)
	before.forAWhile(ctx, 5*time.Second)
	var closed atomic.Int64
	var slowest atomic.Int64
	var running sync.WaitGroup
	for range slow {
		running.Go(func() {
			start := time.Now()
			if dripHeader(ctx, s.address(), 2*limit) {
				closed.Add(1)
			}
			for took := int64(time.Since(start)); ; {
				if most := slowest.Load(); took <= most || slowest.CompareAndSwap(most, took) {
					return
				}
			}
		})
	}
	during.forAWhile(ctx, limit)
	running.Wait()

	exactly(&r, "slow connections closed", int(closed.Load()), slow)
	atMost(&r, "the last after", time.Duration(slowest.Load()), limit+slack)
	atMost(&r, "client errors", before.failed()+during.failed(), 0)
	atMost(&r, "median of healthy requests", during.percentile(.5), 2*before.percentile(.5)+5*time.Millisecond)
	r.note("without them", before.percentile(.5))
	r.note("99th percentile", during.percentile(.99))
	r.note("without them", before.percentile(.99))
	return r, nil
}

func (s *sidecar) address() string { return strings.TrimPrefix(s.url, "http://") }

// forAWhile sends a hundred requests a second.
func (c *client) forAWhile(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	c.openLoop(ctx, 100, smallMix)
}

// dripHeader sends a header of one byte every half second, and reports whether
// the other side has closed the connection in time.
func dripHeader(ctx context.Context, address string, limit time.Duration) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	stop := inBackground(ctx, func(ctx context.Context) {
		_, _ = io.WriteString(conn, "GET /figures HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
		poll(ctx, 500*time.Millisecond, func() bool {
			_, err := io.WriteString(conn, "x")
			return err != nil
		})
	})
	defer stop()
	_ = conn.SetReadDeadline(time.Now().Add(limit))
	_, err = io.Copy(io.Discard, conn)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// largeHeaders measures what headers cost that are far too large, in a
// container of 32 MiB: where nothing limits memory, the garbage collector lets
// it grow before it works. When it works is chance, so three sidecars are
// looked at.
func largeHeaders(ctx context.Context, b *bench) (r result, err error) {
	const limit = 32 << 20
	group, err := newMemoryGroup(limit)
	if err != nil {
		r.skipped = "no control group of its own, which takes root: " + err.Error()
		return r, nil
	}
	b.atEnd(group.remove)
	b.wrap = group.enter()
	var growths []float64
	healthy := newClient("")
	refused, reached := 0, 0
	for range 3 {
		p := newProvider(strict(time.Hour))
		s, err := b.start(ctx, p)
		if err != nil {
			return r, err
		}
		healthy.url = s.url
		before := healthy.sent()
		growth, answered, err := s.refuseLarge(ctx, healthy)
		if err != nil {
			return r, err
		}
		s.stop()
		growths = append(growths, growth)
		refused += answered
		reached += p.Stats().APIServed - (healthy.sent() - before)
	}
	slices.Sort(growths)

	atMost(&r, "growth in MiB, the middle of three,", growths[1], 8)
	exactly(&r, "killed for want of memory", group.kills(), 0)
	atMost(&r, "client errors", healthy.failed(), 0)
	exactly(&r, "large headers that reached the API", reached, 0)
	r.note("the most", growths[2])
	r.note("answered 431", refused)
	r.note("99th percentile of healthy requests", healthy.percentile(.99))
	return r, nil
}

// refuseLarge sends a hundred large headers at once.
func (s *sidecar) refuseLarge(ctx context.Context, healthy *client) (growth float64, refused int, err error) {
	const clients, size = 100, 874_000
	return s.refuse(ctx, healthy, clients, "GET /figures HTTP/1.1\r\nHost: localhost\r\nX-Long: "+strings.Repeat("x", size)+"\r\n\r\n")
}

// refuse has so many clients send the same head at once to a sidecar at work,
// and returns by how many MiB its memory grew and how many were answered 431.
func (s *sidecar) refuse(ctx context.Context, healthy *client, clients int, head string) (growth float64, refused int, err error) {
	for range 20 { // until memory has the size that it has with that many at work
		healthy.burst(clients, func(chance *rand.Rand) call {
			c := smallMix(chance)
			c.work = 50 * time.Millisecond
			return c
		})
	}
	before, err := s.memory("VmRSS")
	if err != nil {
		return 0, 0, err
	}
	stop := inBackground(ctx, func(ctx context.Context) { healthy.openLoop(ctx, 100, smallMix) })
	var answered atomic.Int64
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			answered.Add(int64(count(bytes.HasPrefix(say(s.address(), []byte(head)), []byte("HTTP/1.1 431 ")))))
		})
	}
	running.Wait()
	stop()
	peak, err := s.memory("VmHWM")
	return peak - before, int(answered.Load()), err
}

// tinyFields measures heads within the limit of bytes that are made of fields
// as short as they can be: to keep those takes thirty times as much memory. It
// must not matter whether the heads come to an end.
func tinyFields(ctx context.Context, b *bench) (r result, err error) {
	const size = 60_000
	var fields strings.Builder
	for name := 0; fields.Len() < size; name++ {
		fmt.Fprintf(&fields, "%c%c%c:\r\n", 'a'+name/26/26%26, 'a'+name/26%26, 'a'+name%26)
	}
	unfinished := "GET /figures HTTP/1.1\r\nHost: localhost\r\n" + fields.String()
	healthy := newClient("")
	most, refused, killed := 0.0, 0, 0
	for _, container := range []struct {
		limit   int64
		clients int
	}{{32 << 20, 60}, {128 << 20, 400}} {
		for _, head := range []string{unfinished, unfinished + "\r\n"} {
			group, err := newMemoryGroup(container.limit)
			if err != nil {
				r.skipped = "no control group of its own, which takes root: " + err.Error()
				return r, nil
			}
			b.wrap = group.enter()
			growth, answered, err := b.refuseOnce(ctx, healthy, container.clients, head)
			killed += group.kills()
			b.clear()
			group.remove()
			if err != nil && killed == 0 {
				return r, err
			}
			r.note(fmt.Sprintf("%d clients in %d MiB", container.clients, container.limit>>20), growth)
			most = max(most, growth)
			refused += answered
		}
	}

	exactly(&r, "killed for want of memory", killed, 0)
	atMost(&r, "growth in MiB", most, 8)
	exactly(&r, "answered 431", refused, 2*(60+400))
	atMost(&r, "client errors", healthy.failed(), 0)
	return r, nil
}

func (b *bench) refuseOnce(ctx context.Context, healthy *client, clients int, head string) (growth float64, refused int, err error) {
	s, err := b.start(ctx, newProvider(strict(time.Hour)))
	if err != nil {
		return 0, 0, err
	}
	healthy.url = s.url
	return s.refuse(ctx, healthy, clients, head)
}

// say sends these bytes for as long as somebody takes them, and returns the answer.
func say(address string, text []byte) (answer []byte) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	go func() { _, _ = conn.Write(text) }()
	answer, _ = io.ReadAll(conn)
	return answer
}

// memory returns a line of the process's status, in MiB: VmRSS is what it has
// in memory, VmHWM the most that it has had.
func (s *sidecar) memory(line string) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Pid))
	if err != nil {
		return 0, err
	}
	var kib float64
	for text := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(text, line+":"); ok {
			_, err = fmt.Sscanf(value, "%f kB", &kib)
		}
	}
	return kib / 1024, err
}

// series measures whether strangers can fill the metrics.
func series(ctx context.Context, b *bench) (r result, err error) {
	const requests, workers = 100_000, 64
	p := newProvider(strict(time.Hour))
	s, err := b.start(ctx, p)
	if err != nil {
		return r, err
	}
	c := newClient(s.url)
	var number, answered atomic.Int64
	var running sync.WaitGroup
	for range workers {
		running.Go(func() {
			for n := number.Add(1); n <= requests && ctx.Err() == nil; n = number.Add(1) {
				if c.askAnything(rand.New(rand.NewPCG(uint64(n), 0))) {
					answered.Add(1)
				}
			}
		})
	}
	running.Wait()
	m, err := s.metrics(ctx)
	if err != nil {
		return r, err
	}
	count := 0
	for name := range m {
		if !strings.HasPrefix(name, "#") {
			count++
		}
	}
	atMost(&r, "series", count, 200)
	exactly(&r, "requests answered", int(answered.Load()), requests)
	r.note("of the API", p.Stats().APIServed)
	return r, nil
}

// askAnything sends a request with a random method, path and host.
func (c *client) askAnything(chance *rand.Rand) (answered bool) {
	word := func() string {
		letters := make([]byte, 1+chance.IntN(20))
		for i := range letters {
			letters[i] = byte('A' + chance.IntN(26))
		}
		return string(letters)
	}
	req, err := http.NewRequest(word(), c.url+"/"+word()+"/"+word()+"?"+word(), nil)
	if err != nil {
		panic(err) // all of it is letters
	}
	if chance.IntN(2) == 0 {
		req.Method = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodTrace}[chance.IntN(4)]
	}
	if chance.IntN(2) == 0 {
		req.Host = word() + ".test"
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close() == nil
}
