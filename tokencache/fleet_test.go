package tokencache

import (
	"container/heap"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// A fleet is a simulation of many sidecars with the schedule and the back-off
// that they really have, against one token endpoint that serves so many
// requests a second and answers the rest 429. It has no other time than that
// of its events, and the same chance in every run.
type fleet struct {
	chance     *rand.Rand
	retryAfter time.Duration    // what a 429 asks for; 0: nothing
	away       [2]time.Duration // from when to when the endpoint is down

	now     time.Duration
	events  []event
	sidecar []sidecar

	room    float64 // of the endpoint, in requests
	roomAt  time.Duration
	arrived map[int]int // requests to the endpoint in each second
	served  int
	lapsed  map[int]bool // sidecars that have run out of a token
}

// An event is the next try of a sidecar.
type event struct {
	at      time.Duration
	sidecar int
}

type sidecar struct {
	expiry   time.Duration // of its token; 0: it has had none
	failures int
}

const (
	fleetSize  = 10_000
	fleetLife  = time.Hour
	fleetRate  = 50 // a second, and at once after a rest
	fleetFloor = fleetSize / fleetRate * time.Second

	// As the sidecar's defaults have it.
	fleetLeeway      = time.Second
	fleetMinInterval = time.Second
)

// newFleet returns a fleet that is rolled out within a minute.
func newFleet(retryAfter time.Duration) *fleet {
	f := &fleet{chance: rand.New(rand.NewPCG(fleetSeed, 0)), retryAfter: retryAfter,
		room: fleetRate, arrived: map[int]int{}, lapsed: map[int]bool{}}
	f.start(time.Minute)
	return f
}

// start has every sidecar start, with nothing, at some time within a span.
func (f *fleet) start(within time.Duration) {
	f.sidecar = make([]sidecar, fleetSize)
	f.events = nil
	for i := range f.sidecar {
		heap.Push(f, event{f.now + fraction(within, f.chance.Float64()), i})
	}
}

// runUntil lets time go by until done says so or the time has come. It returns
// the time.
func (f *fleet) runUntil(end time.Duration, done func() bool) time.Duration {
	for f.events[0].at < end && !done() {
		e := heap.Pop(f).(event)
		f.now = e.at
		heap.Push(f, event{f.now + f.try(e.sidecar), e.sidecar})
	}
	return f.now
}

// try asks for a token, and returns when to try next.
func (f *fleet) try(i int) time.Duration {
	s := &f.sidecar[i]
	if s.expiry > 0 && f.now > s.expiry-fleetLeeway {
		f.lapsed[i] = true
	}
	f.arrived[int(f.now/time.Second)]++
	if err := f.answer(); err != nil {
		wait := retryIn(err, s.failures, f.chance.Float64())
		s.failures++
		return max(wait, fleetMinInterval)
	}
	f.served++
	*s = sidecar{expiry: f.now + fleetLife}
	return refreshIn(Token{Lifetime: fleetLife}, DefaultWindow, f.chance.Float64())
}

// answer is the endpoint: a bucket of tokens.
func (f *fleet) answer() error {
	f.room = min(fleetRate, f.room+fleetRate*(f.now-f.roomAt).Seconds())
	f.roomAt = f.now
	if f.away[0] <= f.now && f.now < f.away[1] {
		return errors.New("unreachable")
	}
	if f.room < 1 {
		return failure{after: f.retryAfter}
	}
	f.room--
	return nil
}

// peak returns the most requests in any second of a span.
func (f *fleet) peak(from, to time.Duration) int {
	most := 0
	for second, n := range f.arrived {
		if at := time.Duration(second) * time.Second; from <= at && at < to {
			most = max(most, n)
		}
	}
	return most
}

// all is done when that many requests have been served.
func (f *fleet) all(served int) func() bool { return func() bool { return f.served >= served } }

func never() bool { return false }

// The events are a heap, the earliest first.
func (f *fleet) Len() int           { return len(f.events) }
func (f *fleet) Less(i, j int) bool { return f.events[i].at < f.events[j].at }
func (f *fleet) Swap(i, j int)      { f.events[i], f.events[j] = f.events[j], f.events[i] }
func (f *fleet) Push(e any)         { f.events = append(f.events, e.(event)) }
func (f *fleet) Pop() any {
	last := len(f.events) - 1
	e := f.events[last]
	f.events = f.events[:last]
	return e
}

const (
	fleetSeed = 1 // any other will do
	halfDay   = 12 * time.Hour
	// A first token is refreshed at half its life at the earliest: from here
	// on the endpoint sees refreshes only.
	secondGeneration = fleetLife / 4
)

func TestAFleetThatIsRolledOutIsServedNearlyAtTheEndpointsPace(t *testing.T) {
	for _, retryAfter := range []time.Duration{0, time.Second, 5 * time.Second, 30 * time.Second} {
		f := newFleet(retryAfter)
		took := f.runUntil(fleetLife, f.all(fleetSize))
		t.Logf("Retry-After %v: all %d served after %v, %.2f of the floor of %v; peak %d/s",
			retryAfter, f.served, took.Round(time.Second), took.Seconds()/fleetFloor.Seconds(), fleetFloor, f.peak(0, fleetLife))
		honest := retryAfter <= 5*time.Second // an endpoint that asks for more than it needs stands idle meanwhile
		if limit := fleetFloor * 13 / 10; honest && (took > limit || f.served < fleetSize) {
			t.Errorf("Retry-After %v: %d served after %v, want all within %v", retryAfter, f.served, took, limit)
		}
	}
}

func TestAFleetForgetsThatItStartedTogether(t *testing.T) {
	f := newFleet(5 * time.Second)
	f.runUntil(2*halfDay, never)
	second, later := f.peak(secondGeneration, 2*fleetLife), f.peak(halfDay, 2*halfDay)
	t.Logf("peak of the second generation and its next: %d/s; after 12 h: %d/s; mean %.2f/s",
		second, later, float64(f.served-fleetSize)/(2*halfDay-secondGeneration).Seconds())
	if max(second, later) > 25 {
		t.Errorf("peaks of %d/s and %d/s, want at most 25/s", second, later)
	}
}

func TestAFleetThatRestartsAtOnceIsBackSoon(t *testing.T) {
	f := newFleet(5 * time.Second)
	f.runUntil(halfDay, never)
	f.start(time.Second)
	start, before := f.now, f.served
	took := f.runUntil(halfDay+fleetLife/2, f.all(before+fleetSize)) - start
	t.Logf("the last one back after %v, %.2f of the floor of %v",
		took.Round(time.Second), took.Seconds()/fleetFloor.Seconds(), fleetFloor)
	if limit := fleetFloor * 5 / 4; took > limit || f.served < before+fleetSize {
		t.Errorf("%d back after %v, want all within %v", f.served-before, took, limit)
	}
}

func TestNoTokenOfAFleetExpiresInAnOutageOfTenMinutes(t *testing.T) {
	f := newFleet(5 * time.Second)
	f.away = [2]time.Duration{halfDay, halfDay + 10*time.Minute}
	f.runUntil(halfDay+2*fleetLife, never)
	t.Logf("%d ran out of a token; peak %d/s in the outage, %d/s in the ten minutes after it",
		len(f.lapsed), f.peak(f.away[0], f.away[1]), f.peak(f.away[1], f.away[1]+10*time.Minute))
	if len(f.lapsed) > 0 {
		t.Errorf("%d sidecars ran out of a token, want none", len(f.lapsed))
	}
}
