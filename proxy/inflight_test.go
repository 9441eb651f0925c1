package proxy

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

func TestTheLastInFlightEndsEveryWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requests InFlight
		for range 2 { // it can be used again
			var over atomic.Int32
			requests.Add(1)
			requests.Add(1)
			for range 3 {
				go func() {
					requests.Wait(t.Context())
					over.Add(1)
				}()
			}
			for _, want := range []int32{0, 3} {
				synctest.Wait()
				requests.Add(-1)
				synctest.Wait()
				if got := over.Load(); got != want {
					t.Fatalf("%d waits are over, want %d", got, want)
				}
			}
			requests.Wait(t.Context()) // for none
		}
	})
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	var requests InFlight
	requests.Add(1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	requests.Wait(ctx)
}
