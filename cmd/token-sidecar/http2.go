package main

import "net/http"

const (
	// maxStreams is the most requests that a connection may carry at a time.
	// Clients queue what is more, and not all of them connect once more.
	maxStreams = 1000
	// leastFrame is the least that RFC 9113 section 6.5.2 lets a server take
	// at once. Each connection keeps room for it: net/http's default is 1 MiB.
	leastFrame = 16 << 10
	// bodyMemory is the most of a body that is held while the upstream takes
	// none of it; net/http's default is 1 MiB. A request with so much stays
	// within memoryPerRequest, unless nobody reads its answer either.
	bodyMemory = 32 << 10
)

// enableHTTP2 lets clients of s speak HTTP/2 without TLS, by prior knowledge.
func enableHTTP2(s *http.Server, cfg config) {
	streams := maxStreams
	if cfg.MaxInFlight > 0 {
		streams = min(cfg.MaxInFlight, maxStreams)
	}
	s.Protocols = &http.Protocols{}
	s.Protocols.SetHTTP1(true)
	s.Protocols.SetUnencryptedHTTP2(true)
	s.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams:      streams,
		MaxReadFrameSize:          leastFrame,
		MaxReceiveBufferPerStream: bodyMemory,
		// Room for all, or bodies that the upstream does not take would hold up
		// the others. What is not served takes none.
		MaxReceiveBufferPerConnection: streams * bodyMemory,
	}
	s.ConnContext = withConn
	s.Handler = newUntaken(cfg.MaxInFlight).limit(limitFields(stallHandler(s.Handler, cfg.StallTimeout)))
}
