package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

// demo is the outside world: an authorization server, and an API that takes
// its tokens.
type demo struct{ url string }

// startDemo serves the demo until ctx is done. Its tokens live as long as told.
func startDemo(ctx context.Context, address string, life time.Duration) (*demo, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: demoHandler(life)}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }()
	return &demo{url: "http://" + listener.Addr().String()}, nil
}

func demoHandler(life time.Duration) http.Handler {
	provider := granttest.Makini("demo-client", "demo-secret")
	provider.Life, provider.RefreshLife = life, 3*life
	mux := http.NewServeMux()
	mux.Handle("POST /oauth/token", provider.TokenEndpoint())
	mux.Handle("/", provider.Protect(http.HandlerFunc(serveAPI)))
	mux.HandleFunc("POST /demo/revoke", func(http.ResponseWriter, *http.Request) { provider.Revoke() })
	mux.HandleFunc("POST /demo/outage", func(http.ResponseWriter, *http.Request) {
		provider.Always(granttest.Status(http.StatusInternalServerError, "out of order"))
		time.AfterFunc(30*time.Second, func() { provider.Always(nil) })
	})
	mux.HandleFunc("GET /demo/stats", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(provider.Stats())
	})
	return mux
}

// serveAPI says what it was sent, but for the secret part of the token.
func serveAPI(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"request": "%s %s", "authorization": "%.18s..."}`+"\n", r.Method, r.URL.EscapedPath(), r.Header.Get("Authorization"))
}
