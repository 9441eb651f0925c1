module github.com/token-sidecar/token-sidecar

go 1.26.6

require (
	github.com/sony/gobreaker/v2 v2.4.0
	go.uber.org/zap v1.28.0
)

require go.uber.org/multierr v1.10.0 // indirect
