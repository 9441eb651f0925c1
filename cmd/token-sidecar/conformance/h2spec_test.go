package conformance_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// allowed are the cases that fail, and why. All of them are net/http's, and in
// each the client is told and nothing passes.
var allowed = map[string]string{
	"http2/3.5/2":     "what is no preface is taken for HTTP/1.1, so there is an answer 400 before the end of the connection",
	"http2/6.5.3/1":   "a setting that occurs twice ends the connection, since only attackers are known to do that",
	"http2/8.1.2.2/1": "a request with Connection is answered 400 by the server, where the stream should be reset",
	"http2/8.1.2.2/2": "a request with another TE than trailers likewise",
}

func TestTheListenerKeepsToTheSpecification(t *testing.T) {
	authority := newAuthority(t)
	upstream := httptest.NewServer(authority.Protect(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, strings.Repeat("x", 4<<10))
	})))
	t.Cleanup(upstream.Close)
	host, port, err := net.SplitHostPort(authority.start(t, "UPSTREAM_URL="+upstream.URL))
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Host: host, Port: number, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000}
	var count tally
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(c)
		count.add(t, group)
	}
	t.Logf("%d of %d cases pass, %d are skipped", count.passed, count.all, count.skipped)
	if count.all < 145 {
		t.Errorf("%d cases, want 145 at least", count.all)
	}
}

type tally struct{ all, passed, skipped int }

func (n *tally) add(t *testing.T, group *spec.TestGroup) {
	for i, c := range group.Tests {
		if c.Result == nil {
			continue // it is for the strict
		}
		n.all++
		id := fmt.Sprintf("%s/%d", group.ID(), i+1)
		reason, mayFail := allowed[id]
		switch {
		case c.Result.Failed && !mayFail:
			t.Errorf("%s fails: %s: %v", id, c.Desc, c.Result.Error)
		case c.Result.Failed:
		case c.Result.Skipped:
			n.skipped++
		default:
			n.passed++
			if mayFail {
				t.Errorf("%s passes: it need not be allowed to fail any more (%s)", id, reason)
			}
		}
	}
	for _, g := range group.Groups {
		n.add(t, g)
	}
}
