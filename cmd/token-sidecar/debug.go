package main

import (
	"net"
	"net/http"
	"net/http/pprof"

	"go.uber.org/zap"

	"github.com/token-sidecar/token-sidecar/proxy"
)

// loopbackNames are all that the debug port is called by.
var loopbackNames = proxy.Guard{Hosts: []string{}}

// serveDebug serves Go's profiles on l, until stop, and nothing else does.
func serveDebug(cfg config, log *zap.Logger, l net.Listener) (stop func()) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	s := ownServer(cfg, log, mux, loopbackNames) // a profile takes its time, and ReadTimeout would end it as WriteTimeout does
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Serve(newConnections(debugConnections, settledAdmin).limit(s, stallListener{l, ownPatience}))
	}()
	return func() {
		_ = s.Close()
		<-ended
	}
}
