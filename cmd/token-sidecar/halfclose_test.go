package main

import (
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A closedSide is a connection whose client sends nothing more.
type closedSide struct{ net.Conn }

func (closedSide) Read([]byte) (int, error)    { return 0, io.EOF }
func (closedSide) Write(p []byte) (int, error) { return len(p), nil }

func TestAClientThatHasLeftIsGivenUp(t *testing.T) {
	const patience = 10 * time.Second
	for writes := range 3 {
		synctest.Test(t, func(t *testing.T) {
			c := &halfCloseConn{conn: conn{closedSide{}}, patience: patience, over: make(chan struct{})}
			for i := range writes {
				time.AfterFunc(time.Duration(i+1)*(patience-time.Second), func() { _, _ = c.Write([]byte("more")) })
			}
			start := time.Now()
			if _, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("got %v", err)
			}
			if got, want := time.Since(start), time.Duration(writes+1)*patience; got != want {
				t.Errorf("given up after %v and %d writes, want %v", got, writes, want)
			}
		})
	}
}

// slowDeadlines take their time, in which a read may begin.
type slowDeadlines struct {
	closedSide
	setting, set chan struct{}
}

func (c slowDeadlines) SetReadDeadline(time.Time) error {
	close(c.setting)
	<-c.set
	return nil
}

func TestAReadThatBeginsWhileItIsCalledBackDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := slowDeadlines{setting: make(chan struct{}), set: make(chan struct{})}
		c := &halfCloseConn{conn: conn{slow}, over: make(chan struct{})}
		calledBack := make(chan error)
		go func() { calledBack <- c.SetReadDeadline(time.Unix(1, 0)) }()
		<-slow.setting
		read := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		close(slow.set)
		if err := <-read; err != os.ErrDeadlineExceeded {
			t.Errorf("got %v", err)
		}
		if err := <-calledBack; err != nil {
			t.Error(err)
		}
	})
}
