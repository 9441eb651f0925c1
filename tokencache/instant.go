package tokencache

import "time"

// An instant is one reading of both clocks. The monotonic clock stands still
// while a machine is suspended and the wall clock can be set, so neither is
// trusted alone: what has passed on one of them has passed.
type instant struct {
	wall time.Time     // carries no monotonic reading
	mono time.Duration // since an origin that all instants of a cache share
}

// instantOf splits t, which must carry a monotonic reading as origin does.
func instantOf(t, origin time.Time) instant {
	return instant{wall: t.Round(0), mono: t.Sub(origin)}
}

func (i instant) add(d time.Duration) instant {
	return instant{wall: i.wall.Add(d), mono: i.mono + d}
}

// until is the time left from i to j, by the clock on which less is left.
func (i instant) until(j instant) time.Duration {
	return min(j.wall.Sub(i.wall), j.mono-i.mono)
}

// earlier returns the one of i and j that comes first by the monotonic clock.
func (i instant) earlier(j instant) instant {
	if j.mono < i.mono {
		return j
	}
	return i
}
