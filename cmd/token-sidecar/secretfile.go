package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/token-sidecar/token-sidecar/tokencache"
)

// A secretFile holds a secret and may be replaced at any time, also by
// somebody who writes it piece by piece: while it cannot be read or is empty,
// what it held before stands.
type secretFile struct {
	path string

	mu   sync.Mutex
	last tokencache.Secret
}

// read returns what the file holds.
func (s *secretFile) read() (tokencache.Secret, error) {
	secret, err := readSecret(s.path)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && !s.last.IsZero() {
		return s.last, nil
	}
	s.last = secret
	return secret, err
}

// watch calls changed whenever the file holds another secret than before,
// until ctx is done.
func (s *secretFile) watch(ctx context.Context, changed func()) {
	before, _ := s.read()
	poll(ctx, func() {
		if now, err := s.read(); err == nil && now.Reveal() != before.Reveal() {
			before = now
			changed()
		}
	})
}

// poll calls look often enough to see a mounted file change, which Kubernetes
// does about once a minute, until ctx is done.
func poll(ctx context.Context, look func()) {
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			look()
		}
	}
}

// readSecret reads a file that holds a secret, and not nothing.
func readSecret(path string) (tokencache.Secret, error) {
	content, err := readSetting(path)
	if err == nil && content == "" {
		err = fmt.Errorf("%s is empty", path)
	}
	return tokencache.NewSecret(content), err
}
