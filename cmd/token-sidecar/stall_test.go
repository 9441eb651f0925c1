package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// takeFrom runs test with a client that has asked for an answer, of a server
// with a patience of a minute, in a bubble of fake time.
func takeFrom(t *testing.T, h http.HandlerFunc, test func(t *testing.T, answer io.Reader)) {
	synctest.Test(t, func(t *testing.T) {
		network := granttest.NewPipe()
		s := &http.Server{Handler: h}
		go func() { _ = s.Serve(stallListener{network, time.Minute}) }()
		client, err := network.Dial(context.Background(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = client.Close()
			_ = s.Close()
		}()
		_, _ = io.WriteString(client, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		test(t, bufio.NewReaderSize(client, 16))
	})
}

func TestAClientThatTakesNothingOfItsAnswerIsCutOff(t *testing.T) {
	var gone atomic.Bool
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for err := error(nil); err == nil; {
			_, err = io.WriteString(w, strings.Repeat("x", 64<<10))
		}
		gone.Store(true)
	}
	takeFrom(t, endless, func(t *testing.T, _ io.Reader) {
		time.Sleep(time.Minute - time.Nanosecond)
		synctest.Wait()
		if gone.Load() {
			t.Error("cut off too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !gone.Load() {
			t.Error("not cut off")
		}
	})
}

func TestASlowReaderGetsItsAnswer(t *testing.T) {
	body := strings.Repeat("0123456789", 100)
	takeFrom(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }, func(t *testing.T, from io.Reader) {
		var got []byte
		for piece := make([]byte, 16); ; time.Sleep(50 * time.Second) { // one write of the server takes an hour
			n, err := from.Read(piece)
			if got = append(got, piece[:n]...); err != nil {
				break
			}
		}
		if !strings.HasSuffix(string(got), body) {
			t.Errorf("got %q", got)
		}
	})
}

func TestAStreamMayPause(t *testing.T) {
	events := func(w http.ResponseWriter, _ *http.Request) {
		for range 3 {
			time.Sleep(time.Hour)
			_, _ = io.WriteString(w, "event\n")
			_ = http.NewResponseController(w).Flush()
		}
	}
	takeFrom(t, events, func(t *testing.T, from io.Reader) {
		all, err := io.ReadAll(from)
		if got := strings.Count(string(all), "event\n"); got != 3 || err != nil {
			t.Errorf("got %d events, %v", got, err)
		}
	})
}
