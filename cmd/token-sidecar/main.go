// Token-sidecar adds OAuth 2.0 bearer tokens to the requests of an app that
// cannot. The app sends plain HTTP to it on localhost; it forwards each
// request to one upstream, with a token that it keeps fresh in memory.
//
// It is configured by environment variables; "token-sidecar help" lists them.
// It exits with 0 after SIGTERM or SIGINT, 2 if its configuration or its
// arguments are wrong, and 1 if it could not go on.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func main() {
	environ := environment()
	keepPrivate(os.Stderr)
	os.Exit(command(os.Args[1:], environ, os.Stdout, os.Stderr))
}

// keepPrivate guards the secrets of this process against others.
func keepPrivate(stderr io.Writer) {
	_ = eraseFromEnvironment(secretVariables()) // where it cannot be, what follows does for all but root
	if err := forbidDumps(); err != nil {
		fmt.Fprintln(stderr, "token-sidecar: other processes of this user can read its secrets:", err)
	}
}

func command(args []string, environ map[string]string, stdout, stderr io.Writer) int {
	switch strings.Join(args, " ") {
	case "":
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second signal ends the process at once
		return exitCode(run(ctx, environ, stderr), stderr)
	case "version", "-version", "--version":
		fmt.Fprintln(stdout, runningVersion())
		return 0
	case "help", "-h", "-help", "--help":
		printHelp(stdout)
		return 0
	}
	if args[0] == "probe" {
		return exitCode(probe(environ, args[1:], stdout), stderr)
	}
	name, _, _ := strings.Cut(args[0], "=") // what follows may be a secret
	fmt.Fprintf(stderr, "token-sidecar: unknown command %q: run it without arguments, or with probe, version or help\n", name)
	return 2
}

func exitCode(err error, stderr io.Writer) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "token-sidecar:", err)
	if _, ok := errors.AsType[*configError](err); ok {
		return 2
	}
	return 1
}

// run is the sidecar from its configuration to its end, which ctx brings about.
func run(ctx context.Context, environ map[string]string, stderr io.Writer) error {
	cfg, err := loadConfig(environ)
	if err != nil {
		return err
	}
	system := os.DirFS("/")
	memory := tuneRuntime(environ, memoryLimit(system))
	c := capacity{cfg.MaxInFlight, cfg.MaxConnections}.within(memory, descriptorLimit(system))
	var adapt func(*http.Transport)
	if memory > 0 {
		adapt = frugal
	}
	cfg.MaxInFlight, cfg.MaxConnections = c.inFlight, c.connections
	log := newLogger(stderr, cfg.LogLevel.Level)
	muteStandardLog(log)
	proxyListener, err := listen("LISTEN_ADDRESS", cfg.ListenAddress)
	if err != nil {
		return err
	}
	defer proxyListener.Close()
	adminListener, err := listen("ADMIN_ADDRESS", cfg.AdminAddress)
	if err != nil {
		return err
	}
	defer adminListener.Close()
	if cfg.DebugAddress != "" {
		debugListener, err := listen("DEBUG_ADDRESS", cfg.DebugAddress)
		if err != nil {
			return err
		}
		defer serveDebug(cfg, log, debugListener)()
	}
	log.Info("token-sidecar is listening", zap.String("version", runningVersion()),
		zap.Stringer("address", proxyListener.Addr()), zap.Stringer("admin_address", adminListener.Addr()),
		zap.Stringer("upstream", cfg.UpstreamURL), zap.String("token_endpoint_host", cfg.TokenURL.Host),
		zap.Int("max_in_flight", c.inFlight), zap.Int("max_connections", c.connections))
	if len(cfg.unknownFiles) > 0 {
		log.Warn("files in CONFIG_DIR are named like no variable, and are not read", zap.Strings("files", cfg.unknownFiles))
	}
	err = newApp(cfg, log, adapt).serve(ctx, proxyListener, adminListener)
	log.Info("stopped", zap.Error(err))
	return err
}

func listen(variable, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	return l, nil
}

func newLogger(w io.Writer, level zapcore.Level) *zap.Logger {
	encoding := zap.NewProductionEncoderConfig()
	encoding.TimeKey = "time"
	encoding.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoding), zapcore.Lock(zapcore.AddSync(w)), level))
}

func environment() map[string]string {
	environ := map[string]string{}
	for _, entry := range os.Environ() {
		name, value, _ := strings.Cut(entry, "=")
		environ[name] = value
	}
	return environ
}

// version is stamped by the linker: -X main.version=1.2.3.
var version = ""

// runningVersion is the one stamped at build time, or else the module's.
func runningVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}
