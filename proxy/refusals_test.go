package proxy

import (
	"testing"
	"time"
)

func TestRefusalsOfFreshTokensAreBelievedForLongerAndLonger(t *testing.T) {
	var r refusals
	now := time.Now()
	for _, want := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 5 * time.Minute, 5 * time.Minute} {
		if r.believed("second", now) {
			t.Fatal("believed before another token was tried")
		}
		r.replayed("second", true, now)
		r.replayed("second", true, now.Add(time.Second)) // others that were sent again with it
		if !r.believed("second", now.Add(want-1)) || r.believed("second", now.Add(want)) {
			t.Errorf("not believed for %v", want)
		}
		if r.believed("third", now) {
			t.Error("the refusal of another token is believed")
		}
		now = now.Add(want)
	}
	r.replayed("third", false, now) // which shows that another token helps
	r.replayed("third", true, now)
	if r.believed("third", now.Add(time.Minute)) {
		t.Error("believed for longer than at first")
	}
}
