package proxy

import (
	"context"
	"sync"
)

// Unrepeatable counts the requests in flight that have a token and no answer
// yet, and whose bodies are too large to be sent again: if their token is
// killed now, the app sees a 401 that no replay can mend.
type Unrepeatable struct {
	mu    sync.Mutex
	count int
	none  chan struct{} // closed when count comes to 0; nil: nobody waits
}

// Wait returns when there are none, or ctx is done.
func (u *Unrepeatable) Wait(ctx context.Context) {
	u.mu.Lock()
	if u.count == 0 {
		u.mu.Unlock()
		return
	}
	if u.none == nil {
		u.none = make(chan struct{})
	}
	none := u.none
	u.mu.Unlock()
	select {
	case <-none:
	case <-ctx.Done():
	}
}

func (u *Unrepeatable) add(n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.count += n
	if u.count == 0 && u.none != nil {
		close(u.none)
		u.none = nil
	}
}
