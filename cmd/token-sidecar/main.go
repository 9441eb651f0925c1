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
	"io/fs"
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
	log := newLogger(stderr, cfg.LogLevel.Level)
	muteStandardLog(log)
	adapt := cfg.fit(environ, os.DirFS("/"))
	p, err := openPorts(cfg)
	if err != nil {
		return err
	}
	defer p.close()
	if p.debug != nil {
		defer serveDebug(cfg, log, p.debug)()
	}
	announce(log, cfg, p)
	err = newApp(cfg, log, adapt).serve(ctx, p.proxy, p.admin)
	log.Info("stopped", zap.Error(err))
	return err
}

// fit brings Go's runtime, and what is not configured, into line with the
// limits that the system sets. It returns how transports are to be adapted.
func (c *config) fit(environ map[string]string, system fs.FS) (adapt func(*http.Transport)) {
	memory := tuneRuntime(environ, memoryLimit(system))
	fitting := capacity{c.MaxInFlight, c.MaxConnections}.within(memory, descriptorLimit(system))
	c.MaxInFlight, c.MaxConnections = fitting.inFlight, fitting.connections
	if memory > 0 {
		adapt = frugal
	}
	return adapt
}

// ports are what the sidecar listens on; debug may be nil.
type ports struct{ proxy, admin, debug net.Listener }

func openPorts(cfg config) (p ports, err error) {
	for _, port := range []struct {
		variable, address string
		listener          *net.Listener
	}{
		{"LISTEN_ADDRESS", cfg.ListenAddress, &p.proxy}, {"ADMIN_ADDRESS", cfg.AdminAddress, &p.admin}, {"DEBUG_ADDRESS", cfg.DebugAddress, &p.debug},
	} {
		if port.address == "" {
			continue
		}
		if *port.listener, err = net.Listen("tcp", port.address); err != nil {
			p.close()
			return p, fmt.Errorf("%s: %w", port.variable, err)
		}
	}
	return p, nil
}

func (p ports) close() {
	for _, l := range []net.Listener{p.proxy, p.admin, p.debug} {
		if l != nil {
			_ = l.Close()
		}
	}
}

func announce(log *zap.Logger, cfg config, p ports) {
	log.Info("token-sidecar is listening", zap.String("version", runningVersion()),
		zap.Stringer("address", p.proxy.Addr()), zap.Stringer("admin_address", p.admin.Addr()),
		zap.Stringer("upstream", cfg.UpstreamURL), zap.String("token_endpoint_host", cfg.TokenURL.Host),
		zap.Int("max_in_flight", cfg.MaxInFlight), zap.Int("max_connections", cfg.MaxConnections))
	if len(cfg.unknownFiles) > 0 {
		log.Warn("files in CONFIG_DIR are named like no variable, and are not read", zap.Strings("files", cfg.unknownFiles))
	}
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
