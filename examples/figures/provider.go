package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache/granttest"
)

const (
	clientID, clientSecret = "figures", "figures-secret"

	// roundTrip is how long the token endpoint takes, unless a figure says
	// otherwise. Tokens die half way through.
	roundTrip = 60 * time.Millisecond
	// workHeader asks the API to take so long.
	workHeader = "Figures-Work"
)

// A provider is all that is beyond the sidecar: a token endpoint, and an API
// that wants its tokens. They have a port each, so that one can be away.
type provider struct {
	*granttest.Server
	token, api site
	carriedOut atomic.Int64 // requests that the API did its work for
}

// newProvider returns a provider with s as its authorization server.
func newProvider(s *granttest.Server) *provider {
	p := &provider{Server: s}
	s.ClientID, s.ClientSecret = clientID, clientSecret
	p.token.handler = s.TokenEndpoint()
	p.api.handler = s.Protect(http.HandlerFunc(p.work))
	return p
}

// strict is a server whose every refresh kills the pair before it.
func strict(life time.Duration) *granttest.Server {
	return &granttest.Server{Life: life, RefreshLife: 24 * time.Hour, RefreshKills: true, Delay: roundTrip}
}

// work is the API: it answers with the digest of what it was sent.
func (p *provider) work(w http.ResponseWriter, r *http.Request) {
	sum := sha256.New()
	if _, err := io.Copy(sum, r.Body); err != nil {
		http.Error(w, "the body broke off", http.StatusBadRequest)
		return
	}
	work, _ := time.ParseDuration(r.Header.Get(workHeader))
	select {
	case <-time.After(work):
	case <-r.Context().Done():
		return
	}
	p.carriedOut.Add(1)
	_, _ = io.WriteString(w, hex.EncodeToString(sum.Sum(nil)))
}

func (p *provider) open() error {
	if err := p.token.open(); err != nil {
		return err
	}
	return p.api.open()
}

func (p *provider) close() {
	p.token.close()
	p.api.close()
}

// poll calls done every so often until it returns true or ctx is done.
func poll(ctx context.Context, every time.Duration, done func() bool) {
	for !done() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

// A site is a server that can go away, and come back to the same address.
type site struct {
	address     string // once it has been open
	handler     http.Handler
	idleTimeout time.Duration // 0: none
	server      *http.Server
}

func (s *site) open() error {
	address := s.address
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	s.address = listener.Addr().String()
	s.server = &http.Server{Handler: s.handler, IdleTimeout: s.idleTimeout}
	go func() { _ = s.server.Serve(listener) }()
	return nil
}

// close refuses and cuts off all connections.
func (s *site) close() { _ = s.server.Close() }
