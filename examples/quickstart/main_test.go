package main

import (
	"context"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestQuickstartShowsTheSidecarAtWork(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan error)
	go func() {
		err := show(ctx, in, 20*time.Second)
		in.Close()
		done <- err
	}()

	var shown strings.Builder
	for buf := make([]byte, 4096); !strings.Contains(shown.String(), "Ctrl-C"); {
		n, err := out.Read(buf)
		if shown.Write(buf[:n]); err != nil {
			t.Fatalf("ended early: %v\n%s", <-done, shown.String())
		}
	}
	for _, want := range []string{"HTTP/1.1 401 Unauthorized", "HTTP/1.1 200 OK", `"authorization": "Bearer access-0001`} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("did not show %q", want)
		}
	}
	if strings.Contains(shown.String(), "refresh-") {
		t.Error("showed a refresh token")
	}
	for _, url := range regexp.MustCompile(`curl (http\S+)`).FindAllStringSubmatch(shown.String(), -1) {
		if resp, err := http.Get(url[1]); err != nil || resp.StatusCode != http.StatusOK {
			t.Errorf("the suggested curl %s: %v %v", url[1], resp, err)
		}
	}

	stop()
	go func() { _, _ = io.Copy(io.Discard, out) }()
	if err := <-done; err != nil {
		t.Errorf("the end: %v", err)
	}
}
