package main

import (
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// malformed are answers of 200 that are none.
var malformed = []string{
	"", " ", "null", "true", "7", `"token"`, "[]", "{}", "{", "}", "{]", "{,}", `{"access_token"}`, `{"access_token":}`, `{"access_token":"a"`, `{"access_token":"a`,
	`{"access_token":"a",}`, `{"access_token":"a"}}`, `{"access_token":"a"} {"access_token":"b"}`, `[{"access_token":"a"}]`,
	`{"access_token":null}`, `{"access_token":""}`, `{"access_token":7}`, `{"access_token":["a"]}`, `{"access_token":{"a":"b"}}`, `{"ACCESS_TOKEN":"a"}`,
	`{"access_token":"a","access_token":"b"}`, `{"access_token":"a b"}`, `{"access_token":"a\r\nX: y"}`, `{"access_token":"\u0000"}`, `{"access_token":"é"}`,
	"{\"access_token\":\"\xff\"}", "\ufeff{\"access_token\":\"a\"}", "<!DOCTYPE html><title>Sign in</title>", "access_token=", "access_token=a&access_token=b", "access_token=%zz",
	"token=a", `{"error":"invalid_request"}`, `{"access_token":"a","error":{"code":1}}`, `{'access_token':'a'}`, "\x1f\x8b\x08\x00",
}

// TestMalformedAnswersLeaveTheTokenInUse has the token endpoint answer in
// every wrong way there is, one after the other: the token at hand serves all
// the time, and no request takes longer than it may.
// What such an answer costs in memory TestAnAnswerWithoutEndIsCutOff tells.
func TestMalformedAnswersLeaveTheTokenInUse(t *testing.T) {
	goodAnswer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"access_token":"never whole","token_type":"bearer"}`)
	})
	faults := []granttest.Fault{
		granttest.GzipBomb(1 << 20), granttest.Drip(time.Second), granttest.Drip(time.Minute), granttest.Endless, granttest.Hang, granttest.Truncated,
	}
	for _, body := range malformed {
		faults = append(faults, granttest.Status(http.StatusOK, body))
	}
	provider := granttest.Makini("your_client_id", "your_client_secret")
	var mu sync.Mutex
	met, longest := 0, time.Duration(0)
	spoil := func(w http.ResponseWriter, r *http.Request, grant http.Handler) {
		mu.Lock()
		fault := faults[met%len(faults)]
		met++
		mu.Unlock()
		start := time.Now()
		defer func() {
			mu.Lock()
			defer mu.Unlock()
			longest = max(longest, time.Since(start))
		}()
		fault(w, r, goodAnswer)
	}
	withStack(t, exampleEnv(t, "makini.env"), provider, func(s *stack) {
		s.get("/")
		provider.Always(spoil)
		for range 48 {
			if n := s.get("/").TokenNumber; n != 1 {
				t.Fatalf("token %d is in use", n)
			}
			time.Sleep(time.Hour)
			mu.Lock()
			done := met >= len(faults)
			mu.Unlock()
			if done {
				break
			}
		}
		mu.Lock()
		if met < len(faults) || len(malformed) < 40 {
			t.Errorf("%d of %d faults were met", met, len(faults))
		}
		if longest > 10*time.Second {
			t.Errorf("a request took %v, want 10 s at most", longest)
		}
		mu.Unlock()
		provider.Always(nil)
		time.Sleep(2 * time.Minute)
		if n := s.get("/").TokenNumber; n != 2 {
			t.Errorf("got token %d when answers are good again, want 2", n)
		}
	})
}
