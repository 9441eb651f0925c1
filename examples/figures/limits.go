package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// memory measures overload in a container of 32 MiB: what is too much is shed.
func memory(ctx context.Context, b *bench) (r result, err error) {
	const clients, limit, rounds = 4000, 32 << 20, 5
	group, err := newMemoryGroup(limit)
	if err != nil {
		r.skipped = "no control group of its own, which takes root: " + err.Error()
		return r, nil
	}
	b.atEnd(group.remove)
	b.wrap = group.enter()
	p := newProvider(strict(time.Minute))
	s, err := b.start(ctx, p, "REFRESH_WINDOW=0.05-0.10")
	if err != nil {
		return r, err
	}
	c := newClient(s.url)
	c.http.Transport.(*http.Transport).DisableKeepAlives = true // each client has a connection of its own
	for range rounds {
		c.burst(clients, func(chance *rand.Rand) call {
			c := smallMix(chance)
			c.work = time.Second
			return c
		})
	}
	pause(ctx, time.Second)
	alive := s.healthy(ctx, "/readyz")
	m, _ := s.metrics(ctx)

	exactly(&r, "killed for want of memory", group.kills(), 0)
	exactly(&r, "ready afterwards", count(alive), 1)
	exactly(&r, "requests", c.sent(), rounds*clients)
	atMost(&r, "answers other than 200, and 503 with Retry-After", c.sent()-c.count(good, shed), 0)
	atLeast(&r, "served", c.count(good), 1)
	r.note("answers", c.answers())
	r.note("MiB resident afterwards", m["process_resident_memory_bytes"]/(1<<20))
	r.note("slowest", c.percentile(1))
	return r, nil
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A memoryGroup is a control group, of either version, with a memory limit.
type memoryGroup struct{ path, events string }

func newMemoryGroup(limit int64) (*memoryGroup, error) {
	root, limitFile, events := "/sys/fs/cgroup", "memory.max", "memory.events"
	if _, err := os.Stat(root + "/memory"); err == nil {
		root, limitFile, events = root+"/memory", "memory.limit_in_bytes", "memory.oom_control"
	}
	path := filepath.Join(root, fmt.Sprintf("token-sidecar-figures-%d", os.Getpid()))
	g := &memoryGroup{path: path, events: filepath.Join(path, events)}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(g.path, limitFile), fmt.Append(nil, limit), 0o644); err != nil {
		g.remove()
		return nil, err
	}
	return g, nil
}

// enter is a command that runs another in the group.
func (g *memoryGroup) enter() []string {
	return []string{"sh", "-c", `echo $$ >"$0/cgroup.procs" && exec "$1"`, g.path}
}

// kills returns how many processes of the group have died for want of memory.
func (g *memoryGroup) kills() int {
	content, err := os.ReadFile(g.events)
	if err != nil {
		return -1
	}
	return int(parseSeries(content)["oom_kill"])
}

func (g *memoryGroup) remove() {
	poll(context.Background(), 20*time.Millisecond, func() bool {
		err := os.Remove(g.path)
		return err == nil || os.IsNotExist(err) || os.IsPermission(err)
	})
}

// descriptors measures the sidecar when most of its descriptors could be taken
// by connections that do nothing.
func descriptors(ctx context.Context, b *bench) (r result, err error) {
	const limit, idle, rate, lasts = 128, 300, 50, 30 * time.Second
	b.wrap = []string{"sh", "-c", fmt.Sprintf(`ulimit -n %d && exec "$0"`, limit)}
	p := newProvider(strict(time.Minute))
	s, err := b.start(ctx, p, "REFRESH_WINDOW=0.03-0.04")
	if err != nil {
		return r, err
	}
	hoard := dialIdle(ctx, s.url[len("http://"):], idle)
	defer hoard.close()
	pause(ctx, 5*time.Second) // until those that sent something have been answered, and are idle too
	before := p.Stats()
	c := newClient(s.url)
	c.http.Transport.(*http.Transport).DisableKeepAlives = true
	var probes, unready atomic.Int64
	stop := inBackground(ctx, func(ctx context.Context) {
		poll(ctx, 500*time.Millisecond, func() bool {
			probes.Add(1)
			unready.Add(int64(count(!s.healthy(context.WithoutCancel(ctx), "/readyz"))))
			return false
		})
	})
	defer stop()
	load, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	c.openLoop(load, rate, smallMix)
	stop()

	atLeast(&r, "% of requests served", 100*float64(c.count(good))/float64(c.sent()), 99)
	atMost(&r, "probes that found it not ready", int(unready.Load()), 0)
	atLeast(&r, "refreshes", p.Stats().RefreshToken-before.RefreshToken, 10)
	r.note("idle connections", len(hoard))
	r.note("answers", c.answers())
	r.note("probes", probes.Load())
	return r, nil
}

// idleConnections say nothing, or nothing any more.
type idleConnections []net.Conn

// dialIdle opens n connections to address. Every other one sends a request
// first; whether it is answered is not waited for.
func dialIdle(ctx context.Context, address string, n int) (all idleConnections) {
	dialer := net.Dialer{Timeout: time.Second}
	for i := range n {
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			continue
		}
		if i%2 == 0 {
			_, _ = io.WriteString(conn, "GET /figures HTTP/1.1\r\nHost: localhost\r\n\r\n")
		}
		all = append(all, conn)
	}
	return all
}

func (all idleConnections) close() {
	for _, conn := range all {
		_ = conn.Close()
	}
}
