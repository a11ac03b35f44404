package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	workload "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"

	ca "github.com/exeat-dev/exeat/identity/authority"
	"github.com/exeat-dev/exeat/identity/authority/workloadapi"
)

// absent is a Workload API that gives no identity.
type absent struct {
	name  string
	start func(t *testing.T, socket string)
	says  string // text that log messages and probes must contain
}

func absents() []absent {
	return []absent{
		{"no directory", func(t *testing.T, socket string) {
			t.Helper()
			remove(t, filepath.Dir(socket))
		}, "there is no directory "},
		{"no socket", func(*testing.T, string) {}, "there is no such socket"},
		{"nobody listens any more", func(t *testing.T, socket string) {
			t.Helper()
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			_ = l.Close()
		}, "nobody listens on the socket any more"},
		{"nobody is registered", denying, "check that this workload is registered"},
		{"it hangs", func(t *testing.T, socket string) {
			t.Helper()
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
		}, "it does not answer"},
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// denial is a Workload API that has no registration for any workload.
type denial struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
}

func (denial) FetchX509SVID(*workload.X509SVIDRequest, grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return status.Error(codes.PermissionDenied, "no identity issued")
}

func denying(t *testing.T, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	workload.RegisterSpiffeWorkloadAPIServer(server, denial{})
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
	})
}

// waitingSite is a directory with a configuration whose identity comes from a
// Workload API.
type waitingSite struct {
	dir, socket     string
	listener, admin netip.AddrPort
}

func newWaitingSite(t *testing.T) *waitingSite {
	t.Helper()
	dir, err := os.MkdirTemp("", "exeat") //nolint:usetesting // the name of a unix socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	free := freeAddresses(t, 2)
	s := &waitingSite{dir: dir, socket: filepath.Join(dir, "agent", "api.sock"), listener: free[0], admin: free[1]}
	if err := os.Mkdir(filepath.Dir(s.socket), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"policy.yaml": "version: 1\neveryone: {unlisted: true, allow: [{host: allowed.example}]}\n"})
	s.configure(t, "")
	return s
}

// configure writes the configuration, with more at its end.
func (s *waitingSite) configure(t *testing.T, more string) {
	t.Helper()
	write(t, s.dir, map[string]string{"exeat.yaml": `version: 1
identity: {workload_api: "unix://` + s.socket + `"}
policy: policy.yaml
listeners: [{name: mtls, address: "` + s.listener.String() + `"}]
admin: {address: "` + s.admin.String() + `"}
timeouts: {drain_delay: 0s}
` + more})
}

// probe waits until the admin listener answers for a path as it should.
func (s *waitingSite) probe(t *testing.T, path string, want int, says string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	var last string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		resp, err := client.Get("http://" + s.admin.String() + path)
		if err != nil {
			last = err.Error()
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if last = resp.Status + " " + string(body); resp.StatusCode == want && strings.Contains(string(body), says) {
			return
		}
	}
	t.Fatalf("%s: %s; want %d with %q", path, last, want, says)
}

// TestStartWithoutAnIdentityAnswersProbes checks that the process answers probes from the
// first moment, says what it waits for, takes no connections, and ends as soon as it is
// told to.
func TestStartWithoutAnIdentityAnswersProbes(t *testing.T) {
	t.Parallel()
	for i, row := range absents() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newWaitingSite(t)
			row.start(t, s.socket)
			p := start(t, s.dir, "serve")
			s.probe(t, "/livez", http.StatusOK, "ok")
			s.probe(t, "/readyz", http.StatusServiceUnavailable, "starting: the first X509-SVID of the Workload API at unix://"+s.socket)
			s.probe(t, "/readyz", http.StatusServiceUnavailable, row.says)
			s.probe(t, "/metrics", http.StatusOK, "go_goroutines")
			p.stderr.line(t, regexp.MustCompile(`msg="there is no identity yet" .*`+regexp.QuoteMeta(row.says)))
			if conn, err := net.Dial("tcp", s.listener.String()); err == nil {
				_ = conn.Close()
				t.Error("a connection is taken that nobody serves")
			}
			sig := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}[i%2]
			told := time.Now()
			p.signal(t, sig)
			if code, took := p.exit(t), time.Since(told); code != 0 || took > patience/4 {
				t.Errorf("after %s: exit code %d after %s", sig, code, took)
			}
		})
	}
}

// TestIdentityThatComesLateNeedsNoRestart checks that the gateway serves as soon as the
// Workload API gives it an identity.
func TestIdentityThatComesLateNeedsNoRestart(t *testing.T) {
	s := newWaitingSite(t)
	p := start(t, s.dir, "serve")
	s.probe(t, "/readyz", http.StatusServiceUnavailable, "there is no such socket")
	authority, err := ca.New(ca.Config{TrustDomain: spiffeid.RequireTrustDomainFromString("prod.example")})
	if err != nil {
		t.Fatal(err)
	}
	api, err := workloadapi.New(workloadapi.Config{Authority: authority, SVIDs: []ca.Options{{ID: spiffeid.RequireFromString(gateway)}}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := workloadapi.Listen(t.Context(), s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- api.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.probe(t, "/readyz", http.StatusOK, "ok")
	conn, err := net.Dial("tcp", s.listener.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestCheckWithoutAnIdentity checks that `serve --check` says in less than five seconds
// which socket gives no identity, and what to look at.
func TestCheckWithoutAnIdentity(t *testing.T) {
	t.Parallel()
	for _, row := range absents() {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newWaitingSite(t)
			row.start(t, s.socket)
			_, stderr, code := run(t, s.dir, exeat, "serve", "--check")
			if code != 2 {
				t.Errorf("exit code %d, want 2", code)
			}
			lines := strings.Split(strings.TrimSpace(stderr), "\n")
			last := lines[len(lines)-1]
			for _, want := range []string{"exeat: exeat.yaml:2:26: identity: no X509-SVID from the Workload API at unix://" + s.socket + " within 3s: ", row.says} {
				if !strings.Contains(last, want) {
					t.Errorf("it says %q, want %q", last, want)
				}
			}
		})
	}
}

// TestStartThatHangsAnswersProbes checks a start in which a record file or the
// configuration itself cannot be opened, as on a file system that hangs. Probes are
// answered at the configured address once the configuration is read, and the process ends
// as soon as it is told to.
func TestStartThatHangsAnswersProbes(t *testing.T) {
	fifo := func(t *testing.T, path string) {
		t.Helper()
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, row := range map[string]struct {
		prepare func(*testing.T, *waitingSite)
		waits   string // what /readyz says; "" if nobody can know where to listen
		names   string // the file that /readyz names, and what is wrong with it
	}{
		"records": {func(t *testing.T, s *waitingSite) {
			t.Helper()
			fifo(t, filepath.Join(s.dir, "records.jsonl"))
			s.configure(t, "records: {file: records.jsonl}\n")
		}, "starting: the sinks of records are opened", "records.jsonl is a pipe, and must have a reader"},
		"configuration": {func(t *testing.T, s *waitingSite) {
			t.Helper()
			remove(t, filepath.Join(s.dir, "exeat.yaml"))
			fifo(t, filepath.Join(s.dir, "exeat.yaml"))
		}, "", ""},
	} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			t.Run(name+", "+sig.String(), func(t *testing.T) {
				t.Parallel()
				s := newWaitingSite(t)
				row.prepare(t, s)
				p := start(t, s.dir, "serve")
				if row.waits == "" {
					// The process reads the configuration when this open returns. Nothing
					// is written.
					pipe, err := os.OpenFile(filepath.Join(s.dir, "exeat.yaml"), os.O_WRONLY, 0)
					if err != nil {
						t.Fatal(err)
					}
					defer func() { _ = pipe.Close() }()
				} else {
					s.probe(t, "/livez", http.StatusOK, "ok")
					s.probe(t, "/readyz", http.StatusServiceUnavailable, row.waits)
					s.probe(t, "/readyz", http.StatusServiceUnavailable, row.names)
				}
				told := time.Now()
				p.signal(t, sig)
				if code, took := p.exit(t), time.Since(told); code != 0 || took > patience/4 {
					t.Errorf("exit code %d after %s", code, took)
				}
			})
		}
	}
}

// TestStartReportsErrorsBeforeItWaits checks that errors are reported before the process
// waits for an identity that does not come, and that the process leaves nothing behind.
func TestStartReportsErrorsBeforeItWaits(t *testing.T) {
	for name, row := range map[string]struct {
		listener string // replaces the listener of the configuration; "" keeps it
		more     string // appended to the configuration
		take     func(*waitingSite) netip.AddrPort
		says     string
	}{
		"a listener's address is taken":     {take: func(s *waitingSite) netip.AddrPort { return s.listener }, says: "exeat: exeat.yaml:4:35: listener mtls: 127.0.0.1:"},
		"the admin address is taken":        {take: func(s *waitingSite) netip.AddrPort { return s.admin }, says: "exeat: exeat.yaml:5:18: admin: 127.0.0.1:"},
		"a record file that cannot be made": {more: "records: {file: none/records.jsonl}\n", says: "exeat: exeat.yaml:7:17: records: sink "},
		"a web certificate that is missing": {listener: `address: "127.0.0.1:0", present: {certificate: none.pem, key: none.pem}`, says: "exeat: exeat.yaml:4:73: listener mtls: "},
		"a socket without its directory":    {listener: `address: "unix:none/s", identity: self`, says: "none of the socket "},
	} {
		t.Run(name, func(t *testing.T) {
			s := newWaitingSite(t)
			s.configure(t, row.more)
			path := filepath.Join(s.dir, "exeat.yaml")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if row.listener != "" {
				text = []byte(strings.Replace(string(text), `name: mtls, address: "`+s.listener.String()+`"`, "name: mtls, "+row.listener, 1))
			}
			write(t, s.dir, map[string]string{"exeat.yaml": string(text)})
			if row.take != nil {
				l, err := net.Listen("tcp", row.take(s).String())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = l.Close() }()
			}
			p := start(t, s.dir, "serve")
			if code := p.exit(t); code != 2 || !strings.Contains(p.stderr.String(), row.says) {
				t.Errorf("exit code %d, want 2 with %q", code, row.says)
			}
			if strings.Contains(p.stderr.String(), "waiting for an identity") {
				t.Error("it has waited for an identity")
			}
		})
	}
}
