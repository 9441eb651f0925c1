package main

import (
	"bufio"
	"context"
	"errors"
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

// withWindow runs test with a client of HTTP/2 that has room for so much of an
// answer that it does not read, of a server with a patience of a minute.
func withWindow(t *testing.T, window int, h http.HandlerFunc, test func(t *testing.T, client *http.Client)) {
	synctest.Test(t, func(t *testing.T) {
		network := granttest.NewPipe()
		s := &http.Server{Handler: h}
		enableHTTP2(s, config{StallTimeout: time.Minute})
		served := make(chan error)
		go func() { served <- s.Serve(stallListener{network, time.Minute}) }()
		transport := speaksHTTP2(network.Dial)
		transport.HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: window}
		test(t, &http.Client{Transport: transport})
		transport.CloseIdleConnections()
		_ = s.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
}

func TestAStreamThatTakesNothingOfItsAnswerIsResetAlone(t *testing.T) {
	for name, size := range map[string]int{"a large answer": 64 << 10, "its end, which the server keeps": 100} {
		t.Run(name, func(t *testing.T) {
			give := func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/large" {
					_, _ = io.WriteString(w, strings.Repeat("x", size))
				}
			}
			withWindow(t, 10, give, func(t *testing.T, client *http.Client) {
				stalls, err := client.Get("http://app/large")
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute - time.Second)
				synctest.Wait()
				head := make([]byte, 1)
				if _, err := io.ReadFull(stalls.Body, head); err != nil {
					t.Errorf("reset too early: %v", err)
				}
				time.Sleep(2 * time.Minute)
				if _, err := io.Copy(io.Discard, stalls.Body); err == nil {
					t.Error("not reset")
				}
				_ = stalls.Body.Close()
				resp, err := client.Get("http://app/small")
				if err != nil {
					t.Fatalf("the connection: %v", err)
				}
				_ = resp.Body.Close()
			})
		})
	}
}

func TestAStreamOfHTTP2MayPause(t *testing.T) {
	events := func(w http.ResponseWriter, _ *http.Request) {
		for range 3 {
			time.Sleep(time.Hour)
			_, _ = io.WriteString(w, "event\n")
			_ = http.NewResponseController(w).Flush()
		}
	}
	withWindow(t, 1<<20, events, func(t *testing.T, client *http.Client) {
		resp, err := client.Get("http://app/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		all, err := io.ReadAll(bufio.NewReader(resp.Body))
		if got := strings.Count(string(all), "event\n"); got != 3 || err != nil {
			t.Errorf("got %d events, %v", got, err)
		}
	})
}
