// Package e2e tests the exeat program as its users meet it: a process, real
// sockets, curl, certificates made by OpenSSL, and a standard Go client.
//
// It needs curl, openssl, gnutls-cli, certtool and dig; for other clients python3,
// wget, apt, git, cargo, node with undici, java and javac; for HTTP/2 also nghttp, h2load
// and the curl of curl.sh; for DNS also unbound, python3-dnspython, musl-gcc, ip, unshare
// and mount, the last two also for full disks.
// Where a tool is missing, the tests that need it are skipped; with CI set in the
// environment they fail. The flag -bytes is the number of bytes that TestStream sends
// each way:
//
//	go test ./e2e -bytes 1073741824
package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/e2e/missing"
	"github.com/exeat-dev/exeat/e2e/site"
)

// patience bounds every wait of these tests.
const patience = time.Minute

var (
	streamBytes = flag.Int64("bytes", 64<<20, "how many bytes TestStream sends each way")
	exeat       string // path of the program under test
)

// parallel is the number of tests that run at the same time unless -parallel is set. It
// does not depend on the number of processors, because these tests wait for timers and
// other processes most of the time.
const parallel = "4"

func TestMain(m *testing.M) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		if err := flag.Set("test.parallel", parallel); err != nil {
			panic(err) // package testing has no such flag any more
		}
	}
	dir, err := os.MkdirTemp("", "exeat-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	exeat = filepath.Join(dir, "exeat")
	if err := site.Build(context.Background(), dir, site.Program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// need skips the test if a tool is missing, or fails it if CI is set.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err == nil {
			continue
		}
		missing.Skip(t, tool+" is missing: install it to run this test")
	}
}

// process is a running exeat.
type process struct {
	*site.Process

	stdout, stderr output
	temp           string // directory for the temporary files of the process
}

// start runs exeat in a directory until the test ends.
func start(t *testing.T, dir string, args ...string) *process {
	t.Helper()
	return startCommand(t, dir, exeat, args...)
}

// startCommand runs a command that executes exeat in its place.
func startCommand(t *testing.T, dir, name string, args ...string) *process {
	t.Helper()
	return startPrepared(t, dir, func(*exec.Cmd) {}, name, args...)
}

// startPrepared runs a command that executes exeat in its place. prepare may change the
// command before it starts.
func startPrepared(t *testing.T, dir string, prepare func(*exec.Cmd), name string, args ...string) *process {
	t.Helper()
	temp, err := os.MkdirTemp("", "e2e-") //nolint:usetesting // t.TempDir is too long for a unix socket in it
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + temp}
	prepare(cmd)
	p := &process{temp: temp}
	if p.Process, err = site.Start(cmd, site.Ready{}); err != nil {
		t.Fatal(err)
	}
	p.stdout, p.stderr = output{p.Stdout}, output{p.Stderr}
	t.Cleanup(func() {
		p.Kill()
		_ = os.RemoveAll(temp)
		if t.Failed() {
			t.Logf("exeat %s\nstandard output:\n%s\nstandard error:\n%s", strings.Join(args, " "), p.stdout, p.stderr)
		}
	})
	return p
}

// exit waits until the process has ended, and returns its exit code.
func (p *process) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-p.Ended():
		return p.State().ExitCode()
	case <-time.After(patience):
		t.Fatal("the process does not end")
		return 0
	}
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// checkNothingLeft checks that the process, which has ended, removed its temporary files.
func (p *process) checkNothingLeft(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(p.temp)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
}

// dial connects to a listener. The connection has a deadline, and is closed when the
// test ends.
func (p *process) dial(t *testing.T, listener string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", p.listening(t, listener).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// listening waits until the listener of that name listens, and returns its address.
func (p *process) listening(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	line := p.stderr.line(t, regexp.MustCompile(`msg=listening listener=`+name+` address=(\S+)`))
	addr, err := netip.ParseAddrPort(line[1])
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// admin sends a GET for a path to the admin listener.
func (p *process) admin(t *testing.T, path string) (code int, text string) {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://" + p.listening(t, "admin").String() + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// run runs a program to its end and returns its standard output and error, and
// its exit code.
func run(t *testing.T, dir, name string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// output is what a process has written to standard output or standard error.
type output struct{ *site.Output }

// line waits for a whole line that matches, and returns the match and its groups.
func (o output) line(t *testing.T, pattern *regexp.Regexp) []string {
	t.Helper()
	match, err := o.Line(patience, pattern)
	if err != nil {
		t.Fatalf("a line that matches %s: %v", pattern, err)
	}
	return match
}

// until waits until good reports true for the whole lines that were written so far.
func (o output) until(t *testing.T, what string, good func(text string) bool) {
	t.Helper()
	if err := o.Until(patience, good); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// freeAddresses returns addresses on loopback that were free when it was called.
func freeAddresses(t *testing.T, n int) []netip.AddrPort {
	t.Helper()
	free, err := site.FreeAddresses(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return free
}

// write creates files in a directory, by their names.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
