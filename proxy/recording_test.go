package proxy

import (
	"io"
	"strings"
	"sync/atomic"
	"testing"
)

func recordString(s string, length int64, budget *atomic.Int64) *recording {
	return record(&requestBody{Reader: strings.NewReader(s)}, length, budget)
}

func TestEveryByteOfTheBudgetComesBack(t *testing.T) {
	var budget atomic.Int64
	budget.Store(recordBudget)
	for _, size := range []int{0, 1, 4 << 10, 4<<10 + 1, 64 << 10, 64<<10 + 1, 1 << 20} {
		for _, length := range []int64{int64(size), -1} {
			r := recordString(strings.Repeat("x", size), length, &budget)
			if n, err := io.Copy(io.Discard, r.play()); n != int64(size) || err != nil {
				t.Errorf("played %d bytes of %d, %v", n, size, err)
			}
			if again := r.rewind(t.Context()); again != (size <= recordLimit) {
				t.Errorf("%d bytes: can be played again: %v", size, again)
			}
			r.forget()
			if got := budget.Load(); got != recordBudget {
				t.Fatalf("%d bytes of the budget are missing", recordBudget-got)
			}
		}
	}
}

func TestWithoutBudgetABodyIsStillSent(t *testing.T) {
	var budget atomic.Int64
	budget.Store(5 << 10)
	for _, length := range []int64{10_000, -1} {
		r := recordString(strings.Repeat("x", 10_000), length, &budget)
		if n, err := io.Copy(io.Discard, r.play()); n != 10_000 || err != nil {
			t.Errorf("played %d, %v", n, err)
		}
		if r.rewind(t.Context()) {
			t.Error("it was kept beyond the budget")
		}
		r.forget()
	}
	if got := budget.Load(); got != 5<<10 {
		t.Errorf("%d left of the budget", got)
	}
}

func TestABudgetServesToItsLastByte(t *testing.T) {
	var budget atomic.Int64
	budget.Store(4 << 10)
	r := recordString(strings.Repeat("x", 4<<10), 4<<10, &budget)
	first := r.play()
	piece := make([]byte, 1<<10)
	for range 4 {
		if _, err := io.ReadFull(first, piece); err != nil {
			t.Fatal(err)
		}
	}
	if !r.rewind(t.Context()) {
		t.Error("it was not kept although there was room")
	}
	r.forget()
	if got := budget.Load(); got != 4<<10 {
		t.Errorf("%d left of the budget", got)
	}
}

func TestSmallBodiesTakeLittleOfTheBudget(t *testing.T) {
	for length, want := range map[int]int64{1: 4 << 10, 4 << 10: 4 << 10, 4<<10 + 1: 16 << 10, 16 << 10: 16 << 10, 16<<10 + 1: 64 << 10, 64 << 10: 64 << 10} {
		var budget atomic.Int64
		budget.Store(recordBudget)
		r := recordString(strings.Repeat("x", length), int64(length), &budget)
		_, _ = io.Copy(io.Discard, r.play())
		if got := recordBudget - budget.Load(); got != want {
			t.Errorf("%d bytes take %d of the budget, want %d", length, got, want)
		}
	}
}

func TestABodyThatIsNotKeptTakesNothingOfTheBudget(t *testing.T) {
	var budget atomic.Int64 // none is left
	r := recordString(strings.Repeat("x", 1000), 1000, &budget)
	first := r.play()
	if _, err := io.ReadFull(first, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	budget.Store(recordBudget) // but others have ended
	if _, err := io.ReadFull(first, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if got := budget.Load(); got != recordBudget {
		t.Errorf("%d bytes of the budget are taken", recordBudget-got)
	}
}

func TestASendingThatIsOverReadsNoMore(t *testing.T) {
	var budget atomic.Int64
	budget.Store(recordBudget)
	r := recordString("0123456789", 10, &budget)
	first := r.play()
	piece := make([]byte, 4)
	if n, err := first.Read(piece); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	if !r.rewind(t.Context()) {
		t.Fatal("cannot be sent again")
	}
	second, _ := r.replay()
	if _, err := first.Read(piece); err != errClosed {
		t.Errorf("closed: got %v", err)
	}
	if whole, err := io.ReadAll(second); string(whole) != "0123456789" || err != nil {
		t.Errorf("the second got %q, %v", whole, err)
	}
	_ = second.Close()
	r.forget()
	if got := budget.Load(); got != recordBudget {
		t.Errorf("%d bytes of the budget are missing", recordBudget-got)
	}
}

func TestWhatIsStillBeingSentIsNotForgotten(t *testing.T) {
	var budget atomic.Int64
	budget.Store(recordBudget)
	r := recordString("0123456789", 10, &budget)
	_, _ = io.Copy(io.Discard, r.play())
	second, _ := r.replay()
	piece := make([]byte, 4)
	_, _ = second.Read(piece)
	r.forget() // the answer has begun
	if rest, err := io.ReadAll(second); string(rest) != "456789" || err != nil {
		t.Errorf("the rest: got %q, %v", rest, err)
	}
	if got := budget.Load(); got != recordBudget {
		t.Errorf("%d bytes of the budget are missing", recordBudget-got)
	}
}

// slow is a body whose next piece does not come until it is released.
type slow struct{ reading, released chan struct{} }

func (s slow) Read([]byte) (int, error) {
	close(s.reading)
	<-s.released
	return 0, io.EOF
}

func TestRewindWaitsNotForeverForASlowClient(t *testing.T) {
	var budget atomic.Int64
	budget.Store(recordBudget)
	client := slow{make(chan struct{}), make(chan struct{})}
	r := record(&requestBody{Reader: client}, 10, &budget)
	ended := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, r.play())
		close(ended)
	}()
	<-client.reading
	if r.rewind(t.Context()) {
		t.Error("rewound under a reader")
	}
	r.forget()
	close(client.released)
	<-ended
	if got := budget.Load(); got != recordBudget {
		t.Errorf("%d bytes of the budget are missing", recordBudget-got)
	}
}
