package main

import (
	"log"
	"strings"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// complaints passes on what a server of net/http says of itself. The rest is
// for clients and the upstream to cause, and quotes them.
type complaints struct{ log *zap.Logger }

func (c complaints) Write(line []byte) (int, error) {
	text := strings.TrimSuffix(string(line), "\n")
	switch {
	case strings.HasPrefix(text, "http: Accept error"):
		c.log.Warn("a connection cannot be accepted", zap.String("error", text))
	case strings.HasPrefix(text, "http: panic "), strings.HasPrefix(text, "http2: panic "):
		c.log.Error("a fault of the sidecar's own: please report it", zap.String("panic", text))
	}
	return len(line), nil
}

// unasked is all that is told of what a Transport prints: it has no log of its
// own, and quotes what an upstream sends after an answer, be it the token.
const unasked = "a library printed a line, not shown since it may hold bytes of a server: most likely one that sends more than its answer"

// muteStandardLog has what is printed by way of package log become a line of l
// without a word of it.
func muteStandardLog(l *zap.Logger) {
	log.SetOutput(mute{proxy.OncePerMinute(l)})
}

type mute struct{ log *zap.Logger }

func (m mute) Write(line []byte) (int, error) {
	m.log.Warn(unasked)
	return len(line), nil
}
