package granttest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

func TestAScriptIsMetInOrderThenTheMoodThatAlwaysHolds(t *testing.T) {
	srv := &granttest.Server{}
	srv.Script(granttest.Empty(500), granttest.Empty(501))
	srv.Script(granttest.Empty(502), nil, granttest.Empty(503)) // replaces the first
	srv.Always(granttest.Empty(504))
	statuses := func(n int) (got []int) {
		for range n {
			got = append(got, tokenRequest(srv, formType, "grant_type=client_credentials").Code)
		}
		return got
	}
	if got, want := fmt.Sprint(statuses(5)), "[502 200 503 504 504]"; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	srv.Always(nil)
	if got, want := fmt.Sprint(statuses(2)), "[200 200]"; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFaultsThatAnswer(t *testing.T) {
	const request = "grant_type=client_credentials&client_secret=s3cr%2Bet"
	for _, tt := range []struct {
		name    string
		fault   granttest.Fault
		status  int
		header  string // "Name: value"
		body    string // contained in the body
		granted int
	}{
		{"Status", granttest.Status(418, "short and stout"), 418, "", "short and stout", 0},
		{"Status, JSON", granttest.Status(400, `{"error":"x"}`), 400, "Content-Type: application/json", `{"error":"x"}`, 0},
		{"TooManyRequests", granttest.TooManyRequests("7"), 429, "Retry-After: 7", `"error"`, 0},
		{"TooManyRequests, no hint", granttest.TooManyRequests(""), 429, "Retry-After: ", `"error"`, 0},
		{"Unavailable", granttest.Unavailable("Sat, 01 Jan 2000 00:00:07 GMT"), 503, "Retry-After: Sat, 01 Jan 2000 00:00:07 GMT", `"error"`, 0},
		{"OKWithError", granttest.OKWithError("bad_refresh_token"), 200, "", `{"error":"bad_refresh_token"}`, 0},
		{"Answer", granttest.Answer(map[string]any{"errcode": 40013}), 200, "", `{"errcode":40013}`, 0},
		{"HTML", granttest.HTML(502), 502, "Content-Type: text/html; charset=utf-8", "<title>502 Bad Gateway</title>", 0},
		{"Empty", granttest.Empty(400), 400, "Content-Length: 0", "", 0},
		{"Redirect", granttest.Redirect(307, "https://evil.example/"), 307, "Location: https://evil.example/", "", 0},
		{"EchoRequest", granttest.EchoRequest(500), 500, "", "cannot handle:  " + request, 0},
		{"Edited", granttest.Edited(func(a map[string]any) { delete(a, "token_type"); a["new"] = 1 }), 200, "Cache-Control: no-store", `"new":1`, 1},
		{"FormEncoded", granttest.FormEncoded, 200, "Content-Type: " + formType, "expires_in=3600&refresh_token=refresh-0001-", 1},
		{"WrongDate", granttest.WrongDate(time.Unix(0, 0)), 200, "Date: Thu, 01 Jan 1970 00:00:00 GMT", "access-0001-", 1},
		{"GzipBomb", granttest.GzipBomb(1 << 20), 200, "", strings.Repeat("a", 1<<20) + `"}`, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := &granttest.Server{}
			web := httptest.NewServer(srv)
			defer web.Close()
			srv.Script(tt.fault)
			res, err := noRedirects.Post(web.URL+"/oauth/token", formType, strings.NewReader(request))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if err != nil {
				t.Error(err)
			}
			if got, want := res.StatusCode, tt.status; got != want {
				t.Errorf("status %d, want %d", got, want)
			}
			if name, want, _ := strings.Cut(tt.header, ": "); name != "" && res.Header.Get(name) != want {
				t.Errorf("%s is %q, want %q", name, res.Header.Get(name), want)
			}
			if !strings.Contains(string(body), tt.body) {
				t.Errorf("body lacks %.80q: %.200q", tt.body, body)
			}
			if got, want := srv.Stats().Granted, tt.granted; got != want {
				t.Errorf("granted %d, want %d", got, want)
			}
		})
	}
}

func TestSameTokenAnswersTheRestOfItsLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{}
		srv.Always(srv.SameToken)
		first := fullGrant(t, srv) // honest: there is none yet
		time.Sleep(50 * time.Minute)
		second := fullGrant(t, srv)
		if got, want := second.access(), first.access(); got != want {
			t.Errorf("token %q, want %q", got, want)
		}
		if got, want := string(second.number("expires_in")), "600"; got != want {
			t.Errorf("expires_in = %s, want %s", got, want)
		}
		time.Sleep(10 * time.Minute)
		if third := fullGrant(t, srv); third.access() == first.access() {
			t.Error("answered a dead token")
		}
	})
}

func TestFaultsThatBreakTheConnection(t *testing.T) {
	for _, tt := range []struct {
		name    string
		fault   granttest.Fault
		status  int // 0: no answer at all
		granted int
	}{
		{"Cut", granttest.Cut, 0, 0},
		{"LoseAnswer", granttest.LoseAnswer, 0, 1},
		{"Truncated", granttest.Truncated, 200, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := &granttest.Server{}
			web := httptest.NewServer(srv)
			defer web.Close()
			srv.Script(tt.fault)
			res, err := http.Post(web.URL+"/oauth/token", formType, strings.NewReader("grant_type=client_credentials"))
			if got, want := err == nil, tt.status != 0; got != want {
				t.Fatalf("answered: %v, want %v (%v)", got, want, err)
			}
			if err == nil {
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if !errors.Is(err, io.ErrUnexpectedEOF) || len(body) == 0 || res.ContentLength <= int64(len(body)) {
					t.Errorf("%d of %d bytes, then %v", len(body), res.ContentLength, err)
				}
			}
			if got, want := srv.Stats().Granted, tt.granted; got != want {
				t.Errorf("granted %d, want %d", got, want)
			}
		})
	}
}

func TestLoseAnswerRotatesTheTokens(t *testing.T) {
	srv := granttest.Makini("", "")
	pair := fullGrant(t, srv)
	web := httptest.NewServer(srv)
	defer web.Close()
	srv.Script(granttest.LoseAnswer)
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {pair.refresh()}}
	if res, err := http.PostForm(web.URL+"/oauth/token", form); err == nil {
		t.Fatalf("answered %s", res.Status)
	}
	if srv.Valid(pair.access()) {
		t.Error("the old access token is alive")
	}
	check(t, tokenRequest(srv, formType, form.Encode()), 401, "invalid_grant")
}

// Faults that last, on a fake clock over net.Pipe.

func TestFaultsThatLastEndWhenTheClientLeaves(t *testing.T) {
	for name, fault := range map[string]granttest.Fault{
		"Hang":     granttest.Hang,
		"Drip":     granttest.Drip(time.Second),
		"Endless":  granttest.Endless,
		"GzipBomb": granttest.GzipBomb(1 << 50),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := &granttest.Server{}
				client := overPipe(t, srv)
				srv.Script(fault)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				const enough = 1 << 20 // no time passes while bytes flow without end
				n, _ := io.CopyN(io.Discard, post(ctx, client), enough)
				if n < enough && ctx.Err() == nil {
					t.Errorf("the answer ended after %d bytes", n)
				}
			})
		})
	}
}

func TestDripGivesTheWholeAnswerInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &granttest.Server{}
		client := overPipe(t, srv)
		srv.Script(granttest.Drip(time.Second))
		start := time.Now()
		body, err := io.ReadAll(post(t.Context(), client))
		if err != nil || !json.Valid(body) {
			t.Errorf("%q, %v", body, err)
		}
		if got, want := time.Since(start), time.Duration(len(body))*time.Second; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
	})
}
