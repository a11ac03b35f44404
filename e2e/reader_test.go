package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/exeat-dev/exeat/e2e/missing"
	"github.com/exeat-dev/exeat/e2e/site"
)

// pipe is a pipe for an output of a process. What was read before the reader left is
// kept.
type pipe struct {
	read, write *os.File
	seen        output
	ended       chan struct{} // closed when nothing reads from the pipe any more
}

// newPipe returns a pipe that is read until leave is called.
func newPipe(t *testing.T) *pipe {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &pipe{read: r, write: w, seen: output{site.NewOutput()}, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_, _ = io.Copy(p.seen, r)
	}()
	t.Cleanup(func() { p.leave(); _ = w.Close() })
	return p
}

// unread returns the writing end of a pipe that has no reader any more.
func unread(t *testing.T) *os.File {
	t.Helper()
	p := newPipe(t)
	p.leave()
	return p.write
}

// leave closes the reading end of the pipe.
func (p *pipe) leave() {
	_ = p.read.Close()
	<-p.ended
}

// tunnel opens a tunnel through the listener own. echo shows that it is alive.
func (p *process) tunnel(t *testing.T, port int) net.Conn {
	t.Helper()
	conn := p.dial(t, "own")
	connect(t, conn, "CONNECT allowed.example:"+strconv.Itoa(port)+" HTTP/1.0\r\n\r\n")
	return conn
}

func echo(t *testing.T, tunnel net.Conn) {
	t.Helper()
	if _, err := io.WriteString(tunnel, "still"); err != nil {
		t.Fatalf("the tunnel has gone: %v", err)
	}
	if _, err := io.ReadFull(tunnel, make([]byte, 5)); err != nil {
		t.Fatalf("the tunnel has gone: %v", err)
	}
}

// TestServeOutlivesTheReaderOfItsRecords does what `exeat serve | head -1` does.
func TestServeOutlivesTheReaderOfItsRecords(t *testing.T) {
	for name, row := range map[string]struct {
		records string
		status  int    // the answer to a denied request when records are lost
		ready   int    // the status of /readyz
		text    string // the beginning of its text
	}{
		"otherwise": {"", http.StatusForbidden, http.StatusOK, "ok\nrecords: sink stdout loses records since "},
		"required":  {"records: {required: true}\n", http.StatusServiceUnavailable, http.StatusServiceUnavailable, "records: sink stdout loses records since "},
	} {
		t.Run(name, func(t *testing.T) {
			port := newEcho(t)
			s := newSite(t, port)
			write(t, s.dir, map[string]string{"exeat.yaml": siteConfig + row.records + "admin: {address: \"127.0.0.1:0\"}\n"})
			records := newPipe(t)
			p := startPrepared(t, s.dir, func(cmd *exec.Cmd) { cmd.Stdout = records.write }, exeat, "serve")
			tunnel := p.tunnel(t, port)
			echo(t, tunnel)
			records.seen.line(t, regexp.MustCompile(`"event":"decision"[^\n]*"verdict":"allow"`))
			if code, text := p.admin(t, "readyz"); code != http.StatusOK || text != "ok\n" {
				t.Errorf("with a reader: %d %s", code, text)
			}

			records.leave()
			if status, _ := p.denied(t); status != row.status {
				t.Errorf("without a reader: answered %d, want %d", status, row.status)
			}
			echo(t, tunnel)
			var code int
			var text string
			eventually(t, "a word of it", func() bool { code, text = p.admin(t, "readyz"); return text != "ok\n" })
			if code != row.ready || !strings.HasPrefix(text, row.text) || !strings.Contains(text, "broken pipe") {
				t.Errorf("readyz: %d %s", code, text)
			}
			_, metrics := p.admin(t, "metrics")
			failed := regexp.MustCompile(`(?m)^egress_records_total\{[^}]*result="failed"[^}]*\} (\d+)`).FindStringSubmatch(metrics)
			if failed == nil || failed[1] == "0" {
				t.Errorf("nothing is counted as failed: %v", failed)
			}
			_ = tunnel.Close()
			p.signal(t, syscall.SIGTERM)
			if code := p.exit(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
}

// TestServeOutlivesTheReaderOfItsLog does what `exeat serve 2>&1 >records | head -1`
// does. A gateway that loses its log stays ready.
func TestServeOutlivesTheReaderOfItsLog(t *testing.T) {
	port := newEcho(t)
	s := newSite(t, port)
	write(t, s.dir, map[string]string{"exeat.yaml": siteConfig + "admin: {address: \"127.0.0.1:0\"}\n"})
	log := newPipe(t)
	p := startPrepared(t, s.dir, func(cmd *exec.Cmd) { cmd.Stderr = log.write }, exeat, "serve")
	p.stderr = log.seen
	tunnel := p.tunnel(t, port)
	echo(t, tunnel)

	p.listening(t, "admin") // this line comes after the one that the tunnel needed
	log.leave()
	write(t, s.dir, map[string]string{"policy.yaml": "version: 2\n"}) // this policy is an error, and so a line of the log
	p.signal(t, syscall.SIGHUP)
	eventually(t, "a note that the log is lost", func() bool {
		code, text := p.admin(t, "readyz")
		if code != http.StatusOK || !strings.HasPrefix(text, "ok\n") {
			t.Fatalf("readyz: %d %s", code, text)
		}
		return strings.HasPrefix(text, "ok\nlog: lines are lost since ") && strings.Contains(text, "broken pipe")
	})
	echo(t, tunnel)
	if status, _ := p.denied(t); status != http.StatusForbidden {
		t.Errorf("answered %d, want 403", status)
	}
	_ = tunnel.Close()
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// TestLogThatNobodyReadsDoesNotStopReloads fills the pipe at standard error. A new policy
// must still come into force, and another one after it.
func TestLogThatNobodyReadsDoesNotStopReloads(t *testing.T) {
	port := newEcho(t)
	s := newSite(t, port)
	log := newPipe(t)
	p := startPrepared(t, s.dir, func(cmd *exec.Cmd) { cmd.Stderr = log.write }, exeat, "serve")
	p.stderr = log.seen
	tunnel := p.tunnel(t, port)
	echo(t, tunnel)
	p.record(t, "policy.reload", 0)

	resume := log.stall(t)
	rename := func(text string) {
		t.Helper()
		write(t, s.dir, map[string]string{"next.yaml": text})
		if err := os.Rename(filepath.Join(s.dir, "next.yaml"), filepath.Join(s.dir, "policy.yaml")); err != nil {
			t.Fatal(err)
		}
		p.signal(t, syscall.SIGHUP)
	}
	rename(sitePolicy([]int{port, 444}))
	p.record(t, "policy.reload", 1)
	echo(t, tunnel)
	rename(sitePolicy([]int{445})) // the policy does not have the tunnel's port
	if r := p.record(t, "tunnel.close", 0); r.CloseReason != "revoked" {
		t.Errorf("the tunnel ended with %+v, want revoked", r)
	}
	resume()
	p.signal(t, syscall.SIGTERM)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// stall leaves the pipe full, with a reader that does not read until resume is called.
func (p *pipe) stall(t *testing.T) (resume func()) {
	t.Helper()
	// The ends of the pipe are opened anew, because O_NONBLOCK belongs to the open file,
	// which this process shares with the gateway.
	reader, err := os.OpenFile(descriptor(t, p.read), os.O_RDONLY, 0)
	if err != nil {
		missing.Skip(t, "the pipe cannot be opened again, as through /proc: "+err.Error())
	}
	fd, err := syscall.Open(descriptor(t, p.write), syscall.O_WRONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.leave()
	for block := make([]byte, 4096); len(block) > 0; {
		if _, err := syscall.Write(fd, block); err != nil {
			block = block[:len(block)/2] // fewer bytes may still fit
		}
	}
	_ = syscall.Close(fd)
	done := make(chan struct{})
	return func() {
		go func() {
			defer close(done)
			_, _ = io.Copy(io.Discard, reader)
		}()
		t.Cleanup(func() { _ = p.write.Close(); <-done; _ = reader.Close() })
	}
}

// descriptor returns the path of an open file in /proc. File.Fd would make the file
// blocking.
func descriptor(t *testing.T, f *os.File) (path string) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { path = fmt.Sprintf("/proc/self/fd/%d", fd) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOtherCommandsWithoutAReader checks commands whose standard output has no reader.
// Those that run until a signal stops them do so, and clean up; those that print and end
// are ended by SIGPIPE without a message, as programs usually are.
func TestOtherCommandsWithoutAReader(t *testing.T) {
	s := newSite(t, 443)
	short := t.TempDir()
	for _, row := range []struct {
		name string
		args []string
		up   string // a file that exists when it runs, below p.temp; "" if it ends by itself
		want string // how the process ends
	}{
		{"demo", []string{"demo"}, "exeat-demo-*/records.jsonl", "exit status 0"},
		{"demo --check", []string{"demo", "--check"}, "", "exit status 0"},
		{"authority serve", []string{"authority", "serve", "--dir", short, "--socket", "SOCKET", "--id", builder}, "agent.sock", "exit status 0"},
		{"policy lint", []string{"policy", "lint", "policy.yaml"}, "", "signal: broken pipe"},
		{"serve --check", []string{"serve", "--check"}, "", "signal: broken pipe"},
		{"version", []string{"version"}, "", "signal: broken pipe"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := startPrepared(t, s.dir, func(cmd *exec.Cmd) {
				cmd.Stdout = unread(t)
				for i, arg := range cmd.Args {
					if arg == "SOCKET" {
						_, temp, _ := strings.Cut(cmd.Env[1], "=")
						cmd.Args[i] = filepath.Join(temp, "agent.sock")
					}
				}
			}, exeat, row.args...)
			if row.up != "" {
				eventually(t, row.up, func() bool {
					found, err := filepath.Glob(filepath.Join(p.temp, row.up))
					return err == nil && len(found) > 0
				})
				p.signal(t, syscall.SIGTERM)
			}
			p.exit(t)
			if got := p.State().String(); got != row.want {
				t.Errorf("it ended with %q, want %q", got, row.want)
			}
			if text := p.stderr.String(); text != "" {
				t.Errorf("standard error: %s", text)
			}
			p.checkNothingLeft(t)
		})
	}
}
