package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// patience is how long the application waits for an answer.
const patience = 30 * time.Second

// A call is one request of the application.
type call struct {
	body []byte        // nil: a GET, else a POST
	over time.Duration // how long the body takes to come, as chunks; 0: at once, with its length
	work time.Duration // how long the API takes
}

// A client is the application: it sends calls, and tallies what came of them.
type client struct {
	url  string
	http *http.Client

	running sync.WaitGroup
	mu      sync.Mutex // guards what follows
	tally   map[string]int
	took    []time.Duration
}

func newClient(url string) *client {
	transport := &http.Transport{MaxIdleConnsPerHost: 8192, IdleConnTimeout: 20 * time.Second, DisableCompression: true}
	return &client{url: url, http: &http.Client{Transport: transport, Timeout: patience}, tally: map[string]int{}}
}

// another returns a client with the same connections and a tally of its own.
func (c *client) another() *client {
	return &client{url: c.url, http: c.http, tally: map[string]int{}}
}

// openLoop begins calls at a fixed rate a second, whatever becomes of those
// before, until ctx is done; then it waits for the last to end. What next
// makes of the n-th source of chance is the same in every run.
func (c *client) openLoop(ctx context.Context, rate int, next func(*rand.Rand) call) {
	start := time.Now()
	for n := 0; ; n++ {
		due := start.Add(time.Duration(n) * time.Second / time.Duration(rate))
		select {
		case <-ctx.Done():
			c.running.Wait()
			return
		case <-time.After(time.Until(due)):
			c.begin(n, next)
		}
	}
}

// burst begins n calls at once, and waits for the last to end.
func (c *client) burst(n int, next func(*rand.Rand) call) {
	for i := range n {
		c.begin(i, next)
	}
	c.running.Wait()
}

func (c *client) begin(n int, next func(*rand.Rand) call) {
	c.running.Go(func() {
		start := time.Now()
		outcome := c.send(next(rand.New(rand.NewPCG(uint64(n), 0))))
		c.mu.Lock()
		defer c.mu.Unlock()
		c.tally[outcome]++
		c.took = append(c.took, time.Since(start))
	})
}

// The outcomes of a call, beside the errors of connections: the status code,
// or one of these.
const (
	good          = "200"
	shed          = "503" // with Retry-After
	shedRudely    = "503 without Retry-After"
	bodyDifferent = "200 for another body"
)

func (c *client) send(call call) string {
	resp, err := c.http.Do(call.request(c.url))
	if err != nil {
		return cause(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	sum := sha256.Sum256(call.body)
	switch {
	case err != nil:
		return cause(err)
	case resp.StatusCode == http.StatusOK && string(answer) != hex.EncodeToString(sum[:]):
		return bodyDifferent
	case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "":
		return shedRudely
	}
	return strconv.Itoa(resp.StatusCode)
}

func (c call) request(url string) *http.Request {
	method, body := http.MethodGet, io.Reader(nil)
	if c.body != nil {
		method, body = http.MethodPost, bytes.NewReader(c.body)
	}
	if c.over > 0 {
		body = &slowReader{c.body, c.over * pieceSize / time.Duration(len(c.body))}
	}
	req, err := http.NewRequest(method, url+"/figures", body)
	if err != nil {
		panic(err) // the URL is our own
	}
	req.Header.Set(workHeader, c.work.String())
	return req
}

// pieceSize is the size of what a slowReader gives at a time.
const pieceSize = 16 << 10

// A slowReader gives its data in pieces, each after a pause.
type slowReader struct {
	data  []byte
	pause time.Duration
}

func (r *slowReader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		return 0, io.EOF
	}
	time.Sleep(r.pause)
	n := copy(p, r.data[:min(pieceSize, len(r.data))])
	r.data = r.data[n:]
	return n, nil
}

// noise is what bodies are made of.
var noise = func() []byte {
	b := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}()

// someBytes returns that many bytes, others each time.
func someBytes(chance *rand.Rand, size int) []byte {
	at := chance.IntN(len(noise) - size)
	return noise[at : at+size]
}

// cause is an error without what differs from connection to connection.
func cause(err error) string {
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return e.Op + ": " + e.Err.Error()
	}
	return err.Error()
}

// sent returns the number of calls that have ended.
func (c *client) sent() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.took)
}

// count returns the number of calls that ended with one of the outcomes.
func (c *client) count(outcomes ...string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	sum := 0
	for _, outcome := range outcomes {
		sum += c.tally[outcome]
	}
	return sum
}

// failed returns the number of calls that did not end with 200 and the right body.
func (c *client) failed() int { return c.sent() - c.count(good) }

// answers says how often each outcome came about.
func (c *client) answers() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var parts []string
	for _, outcome := range slices.Sorted(maps.Keys(c.tally)) {
		parts = append(parts, fmt.Sprintf("%d × %s", c.tally[outcome], outcome))
	}
	return strings.Join(parts, " + ")
}

// percentile returns the time that a fraction of the calls stayed below.
func (c *client) percentile(fraction float64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(c.took))
	return sorted[int(fraction*float64(len(sorted)-1))]
}
