package proxy

import (
	"sync"
	"time"
)

const (
	minMute = time.Minute
	maxMute = 5 * time.Minute
)

// refusals decides what a 401 is worth. Often it means that the token has
// died, and another helps. But if one that was made for the purpose is refused
// too, it is the request that the upstream does not want: from then on its
// 401s about that token are its true opinion, for a minute at first and longer
// each time that happens again.
type refusals struct {
	mu    sync.Mutex
	token string // whose refusals are believed
	until time.Time
	mute  time.Duration // what was added to until last; 0: nothing
}

// believed reports whether a refusal of token is the upstream's true opinion.
func (r *refusals) believed(token string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.token == token && now.Before(r.until)
}

// replayed takes note of what became of a request sent again with token.
func (r *refusals) replayed(token string, refused bool, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !refused:
		r.mute = 0
	case r.token != token || !now.Before(r.until):
		r.mute = min(max(minMute, 2*r.mute), maxMute)
		r.token, r.until = token, now.Add(r.mute)
	}
}
