package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/proxy"
	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

const (
	streamsOfTests = 10
	getNothing     = "\x82\x86\x84\x41\x09localhost" // GET http://localhost/, by RFC 7541
)

// withStreams runs test with a server of HTTP/2 whose MAX_IN_FLIGHT is
// streamsOfTests.
func withStreams(t *testing.T, h http.HandlerFunc, test func(t *testing.T, network *granttest.Pipe)) {
	synctest.Test(t, func(t *testing.T) {
		network := granttest.NewPipe()
		s := &http.Server{Handler: h}
		enableHTTP2(s, config{MaxInFlight: streamsOfTests})
		served := make(chan error)
		go func() { served <- s.Serve(network) }()
		defer func() {
			_ = s.Close()
			<-served
		}()
		test(t, network)
	})
}

// asksForMany is a client that has so many answers coming, and takes none yet.
func asksForMany(t *testing.T, network *granttest.Pipe, n int, head string) net.Conn {
	t.Helper()
	conn, err := network.Dial(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_, err = io.WriteString(conn, preface)
	for id := range n {
		if err == nil {
			_, err = io.WriteString(conn, "\x00\x00"+string(rune(len(head)))+"\x01\x05\x00\x00\x00"+string(rune(2*id+1))+head)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return conn
}

// isOpen tells whether the server still listens to a client.
func isOpen(conn net.Conn) bool {
	_, err := io.WriteString(conn, "\x00\x00\x08\x06\x00\x00\x00\x00\x00"+"pingpong")
	synctest.Wait()
	return err == nil
}

func isServedOnce(t *testing.T, network *granttest.Pipe) {
	t.Helper()
	transport := speaksHTTP2(network.Dial)
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("http://localhost/")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %v, %v", resp, err)
	}
	_ = resp.Body.Close()
	synctest.Wait()
}

func TestWhoTakesNoneOfMostAnswersMakesRoomForOthers(t *testing.T) {
	for how, end := range map[string]http.HandlerFunc{
		"answers": func(http.ResponseWriter, *http.Request) {},
		"aborts": func(_ http.ResponseWriter, r *http.Request) {
			if r.UserAgent() == "" {
				panic(http.ErrAbortHandler)
			}
		},
	} {
		t.Run(how, func(t *testing.T) {
			withStreams(t, end, func(t *testing.T, network *granttest.Pipe) {
				isServedOnce(t, network)
				few := asksForMany(t, network, 2, getNothing)
				time.Sleep(time.Hour)
				many := asksForMany(t, network, streamsOfTests-2, getNothing)
				time.Sleep(time.Hour)
				if !isOpen(few) || !isOpen(many) {
					t.Error("a connection was closed though there was room")
				}
				isServedOnce(t, network)
				if !isOpen(few) || isOpen(many) {
					t.Errorf("the connections with few and many answers are open: %v, %v, want the first alone", isOpen(few), isOpen(many))
				}
			})
		})
	}
}

func TestAClientThatIsLateToTakeManyAnswersGetsThem(t *testing.T) {
	withStreams(t, func(http.ResponseWriter, *http.Request) {}, func(t *testing.T, network *granttest.Pipe) {
		var all []net.Conn
		for range 5 {
			all = append(all, asksForMany(t, network, streamsOfTests, getNothing))
		}
		time.Sleep(untakenAfter / 2)
		isServedOnce(t, network)
		for _, conn := range all {
			for answers := 0; answers < streamsOfTests; {
				if kind, _ := frame(t, conn); kind == 1 {
					answers++
				}
			}
		}
	})
}

func TestAnswersThatAreTakenDoNotCount(t *testing.T) {
	withStreams(t, func(http.ResponseWriter, *http.Request) {}, func(t *testing.T, network *granttest.Pipe) {
		client := &http2Visitor{}
		transport := speaksHTTP2(func(ctx context.Context, kind, address string) (net.Conn, error) {
			client.dials.Add(1)
			return network.Dial(ctx, kind, address)
		})
		defer transport.CloseIdleConnections()
		client.Client = &http.Client{Transport: transport}
		for range 3 * streamsOfTests {
			client.isServed(t)
			time.Sleep(time.Hour)
		}
		if n := client.dials.Load(); n != 1 {
			t.Errorf("the client was cut off: it made %d connections", n)
		}
	})
}

func TestNothingOfARequestIsKeptForItsAnswer(t *testing.T) {
	var seen *http.Request
	keep := func(w http.ResponseWriter, r *http.Request) {
		seen = r
		_, _ = io.WriteString(w, "a body")
	}
	head := getNothing + "\x00\x01a\x01x"
	withStreams(t, keep, func(t *testing.T, network *granttest.Pipe) {
		asksForMany(t, network, 1, head)
		if len(seen.Header) > 0 || seen.Host+seen.RequestURI+seen.Method != "" || seen.URL != nil {
			t.Errorf("kept %v", seen)
		}
	})
	withStreams(t, keep, func(t *testing.T, network *granttest.Pipe) {
		conn := asksForMany(t, network, 1, "\x02\x04HEAD"+head[1:])
		for {
			if kind, payload := frame(t, conn); kind == 1 {
				break
			} else if kind == 0 {
				t.Fatalf("a HEAD was answered %q", payload)
			}
		}
		_, _ = io.WriteString(conn, "\x00\x00\x08\x06\x00\x00\x00\x00\x00"+"pingpong")
		if kind, payload := frame(t, conn); kind == 0 {
			t.Errorf("behind the answer to a HEAD comes %q", payload)
		}
	})
}

func TestWhoAnnouncesManyTrailersInHTTP2IsCutOff(t *testing.T) {
	r := runApp(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }, "LISTEN_HTTP2=true")
	client := r.http2(t)
	for n, want := range map[int]bool{proxy.MaxTrailers: true, proxy.MaxTrailers + 1: false} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.address, strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{}
		for i := range n {
			req.Trailer.Set("A"+string(rune('a'+i%26))+string(rune('a'+i/26)), "")
		}
		resp, err := client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		if answered := err == nil && resp.StatusCode == http.StatusOK; answered != want || !want && err == nil {
			t.Errorf("%d trailers: answered %v, %v", n, resp, err)
		}
	}
	client.CloseIdleConnections()
	r.ends(t)
}
