// Figures measures what Token Sidecar promises for when things go wrong:
//
//	go run ./examples/figures              # all of them, about half an hour
//	go run ./examples/figures -list
//	go run ./examples/figures -soak 1m rotation soak
//
// It builds the real sidecar and runs it as a process of its own, between an
// application and a provider that live in this one, all on loopback. Each
// figure prints one line: what was measured, each number with its bar, and
// whether every bar was met. A name stands for every figure that begins with
// it. The exit code is 1 if a bar was missed.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A figure is one promise, and the measurement that shows it kept.
type figure struct {
	name, promise string
	measure       func(context.Context, *bench) (result, error)
}

// longest bounds every figure, however it goes wrong.
const longest = 12 * time.Minute

func figures(soakFor time.Duration) []figure {
	return []figure{
		{"rotation-early", "200 refreshes that kill the token in use; the API looks at it before its work", rotation(false, false)},
		{"rotation-late", "the same; the API looks again after its work", rotation(true, false)},
		{"streaming-early", "200 such refreshes, one request in twenty a large body of unknown length", rotation(false, true)},
		{"streaming-late", "the same; the API looks again after its work", rotation(true, true)},
		{"revoked", "500 POSTs are refused at once, the token having been revoked behind our back", revoked},
		{"refused", "the API refuses every token for a minute", refused},
		{"outage", "the token endpoint is away for the last quarter of a token's life, less one back-off step", outage},
		{"outage-past-end", "the token endpoint is away beyond the token's end, and comes back", outagePastEnd},
		{"lost-answer", "the answer to a refresh is lost after the pair has changed", lostAnswer},
		{"lost-answer-silent", "the same, and nobody says so", silentAnswer},
		{"cold-start", "1,000 requests before the first token, which takes 2 s", coldStart},
		{"idle-race", "POSTs on connections that the API, or the sidecar, is about to close as idle", idleRace},
		{"sigterm", "SIGTERM under load", sigterm},
		{"memory", "4,000 clients at once, in 32 MiB", memory},
		{"descriptors", "300 idle client connections, with 128 file descriptors", descriptors},
		{"slow-headers", "400 clients that never come to the end of their header", slowHeaders},
		{"large-headers", "100 headers of 874 kB at a time, in 32 MiB", largeHeaders},
		{"tiny-fields", "60 heads of 60 kB at a time, of 10,000 fields, in 32 MiB, and 400 in 128 MiB", tinyFields},
		{"series", "100,000 requests with random methods, paths and hosts", series},
		{"soak", "rotations and faults without end", soak(soakFor)},
	}
}

func main() {
	list := flag.Bool("list", false, "list the figures, and measure none")
	soakFor := flag.Duration("soak", 10*time.Minute, "how long the soak lasts")
	flag.Parse()
	chosen, err := choose(figures(*soakFor), flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(2)
	}
	if *list {
		for _, f := range chosen {
			fmt.Printf("%-18s %s\n", f.name, f.promise)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if !measureAll(ctx, os.Stdout, chosen) {
		os.Exit(1)
	}
}

// choose returns the figures whose names begin with one of those given, in
// their own order; all if none is given.
func choose(all []figure, names []string) ([]figure, error) {
	if len(names) == 0 {
		return all, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(f figure) bool { return strings.HasPrefix(f.name, name) }) {
			return nil, fmt.Errorf("no figure is called %q; -list shows them all, and flags come before names", name)
		}
	}
	return slices.DeleteFunc(all, func(f figure) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return strings.HasPrefix(f.name, name) })
	}), nil
}

// measureAll measures one figure after the other, and reports whether all
// bars were met.
func measureAll(ctx context.Context, out io.Writer, chosen []figure) bool {
	folder, err := os.MkdirTemp("", "figures")
	if err == nil {
		err = build(ctx, folder)
	}
	if err != nil {
		fmt.Fprintln(out, "figures:", err)
		return false
	}
	met := true
	for _, f := range chosen {
		met = measure(ctx, out, folder, f) && met
	}
	if met {
		_ = os.RemoveAll(folder)
		return true
	}
	fmt.Fprintln(out, "the sidecar's logs are in", folder)
	return false
}

func measure(ctx context.Context, out io.Writer, folder string, f figure) bool {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	b := &bench{folder: folder, figure: f.name}
	start := time.Now()
	r, err := f.measure(ctx, b)
	b.clear()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		r.broken = err
	}
	fmt.Fprintf(out, "%s  %-18s %s, in %s\n", r.verdict(), f.name, r, time.Since(start).Round(time.Second))
	return r.met()
}
