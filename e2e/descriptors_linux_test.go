package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// soon is the longest time until a policy or a quarantine is in force. It allows for a
// machine that is busy with other work.
const soon = 5 * time.Second

// serveWithin starts the gateway under a ulimit, with its policy in a directory that is
// watched but not polled. limits is prepended to the keys of the limits section.
func (s reloadSite) serveWithin(t *testing.T, ulimit, limits string) *process {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(s.dir, "policy"), 0o700); err != nil {
		t.Fatal(err)
	}
	config := strings.Replace(siteConfig, "policy: policy.yaml", "policy: {files: policy, poll: 0s}", 1)
	config = strings.Replace(config, "limits: {", "limits: {"+limits, 1)
	write(t, s.dir, map[string]string{
		"exeat.yaml": config + "admin: {address: \"127.0.0.1:0\"}\n", "policy/policy.yaml": s.allowing("allowed.example"),
	})
	p := startCommand(t, s.dir, "sh", "-c", "ulimit "+ulimit+` && exec "$0" serve`, exeat)
	p.generation(t, 1)
	return p
}

// inForceAfter puts a file in place by a rename, and returns the time until it is in
// force as the given generation.
func (s reloadSite) inForceAfter(t *testing.T, p *process, name, text string, generation uint64) time.Duration {
	t.Helper()
	write(t, s.dir, map[string]string{".next": text})
	begin := time.Now()
	if err := os.Rename(filepath.Join(s.dir, ".next"), filepath.Join(s.dir, name)); err != nil {
		t.Fatal(err)
	}
	p.generation(t, generation)
	return time.Since(begin)
}

// reloads checks that a policy, and then a quarantine of the gateway's identity, come
// into force in time, as generations 2 and 3.
func (s reloadSite) reloads(t *testing.T, p *process) {
	t.Helper()
	for generation, file := range map[uint64][2]string{
		2: {"policy/policy.yaml", s.allowing("allowed.example", "example.com")},
	} {
		if took := s.inForceAfter(t, p, file[0], file[1], generation); took > soon {
			t.Errorf("%s is in force after %s", file[0], took)
		}
	}
	quarantine := "version: 1\nquarantine: [{id: \"" + gateway + "\", reason: x}]\n"
	if took := s.inForceAfter(t, p, "policy/quarantine.yaml", quarantine, 3); took > soon {
		t.Errorf("a quarantine is in force after %s", took)
	}
}

// descriptors returns the sum over the two series of a metric about descriptors.
func (p *process) descriptors(t *testing.T, name string) (sum int) {
	t.Helper()
	_, text := p.admin(t, "metrics")
	found := regexp.MustCompile(`(?m)^egress_descriptors_`+name+`{purpose="\w+"} (\S+)$`).FindAllStringSubmatch(text, -1)
	for _, match := range found {
		v, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	if len(found) != 2 {
		t.Fatalf("%d series of %s, want 2", len(found), name)
	}
	return sum
}

// connects sends n CONNECTs one after the other, each on its own connection. It returns
// the connections that were answered 200, still open, and the number of answers by
// status. A CONNECT without an answer is repeated, because the gateway may not have
// released the connection before it yet.
func (s reloadSite) connects(t *testing.T, p *process, n int) (open []net.Conn, statuses map[int]int) {
	t.Helper()
	statuses = map[int]int{}
	for range n {
		status := 0
		eventually(t, "an answer", func() bool {
			conn := p.dial(t, "own")
			if status = s.connectStatus(conn, "allowed.example"); status == http.StatusOK {
				open = append(open, conn)
			} else {
				_ = conn.Close()
			}
			return status != 0
		})
		statuses[status]++
	}
	return open, statuses
}

// failedBusy checks that want decisions failed, each with the reason busy and without an
// address, since the cause is the gateway and no destination.
func (p *process) failedBusy(t *testing.T, want int) {
	t.Helper()
	p.stdout.until(t, "the decisions that failed", func(text string) bool {
		got := 0
		for _, r := range parseRecords(t, text) {
			if r.Event != "decision" || r.Verdict == "allow" {
				continue
			}
			got++
			if r.Verdict != "fail" || r.Reason != "busy" || r.Status != http.StatusServiceUnavailable || r.Address != "" {
				t.Fatalf("recorded as %+v, want busy", r)
			}
		}
		return got == want
	})
}

// logsRarely checks that the log has at most two lines with that text, and one more for
// each second since begin.
func (p *process) logsRarely(t *testing.T, text string, begin time.Time) {
	t.Helper()
	if got, most := strings.Count(p.stderr.String(), text), 2+int(time.Since(begin).Seconds()); got > most {
		t.Errorf("%d lines of the log say %q, want at most %d", got, text, most)
	}
}

// TestFewDescriptors uses up the descriptors for callers. A request that needs another
// one is answered with busy, while the gateway still reads new files at once.
func TestFewDescriptors(t *testing.T) {
	for name, row := range map[string]struct {
		limits string
		short  bool   // the descriptors are used up before the connections
		says   string // expected in the log at the start
	}{
		"connections that fit":        {"", false, "limits.connections is [0-9]+ and not 16384"},
		"more than there is room for": {"connections: 100, ", true, "there are [0-9]+ for callers"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newReloadSite(t)
			begin := time.Now()
			p := s.serveWithin(t, "-n 40", row.limits)
			p.stderr.line(t, regexp.MustCompile(row.says))
			const n = 40
			open, statuses := s.connects(t, p, n)
			if statuses[200] == 0 || statuses[503] == 0 || statuses[200]+statuses[503] != n {
				t.Fatalf("answered %v, want some 200 and the others 503", statuses)
			}
			p.failedBusy(t, statuses[503])
			code, text := p.admin(t, "readyz")
			if code != 200 || strings.Contains(text, "descriptors: short, ") != row.short {
				t.Errorf("/readyz: %d %q", code, text)
			}
			used, most := p.descriptors(t, "used"), p.descriptors(t, "limit")
			if used < 2*len(open) || used > most || most > 28 {
				t.Errorf("%v of %v descriptors are used by %d tunnels", used, most, len(open))
			}
			if missing := p.descriptors(t, "missing_total"); missing > 0 != row.short {
				t.Errorf("%v were missing", missing)
			}
			s.reloads(t, p)
			for i := range open {
				if r := p.closed(t, i); r.CloseReason != "quarantined" {
					t.Errorf("a tunnel ends as %s", r.CloseReason)
				}
			}
			p.logsRarely(t, "file descriptors are short", begin)
		})
	}
}

// TestIdleStrangers opens more connections than there are descriptors, and sends nothing
// on them. Others are served when these connections have ended.
func TestIdleStrangers(t *testing.T) {
	s := newReloadSite(t)
	begin := time.Now()
	p := s.serveWithin(t, "-n 2048", "connections: 16384, handshakes_per_source: 100000, ")
	const n = 2300
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = p.dial(t, "own") // the listener may have more slots than there are descriptors
	}
	summary := p.recorded(t, "a summary of closed connections", 0, func(r record) bool {
		return r.Event == "summary" && strings.Contains(r.Detail, "descriptors ")
	})
	if summary.Listener != "own" {
		t.Errorf("recorded as %+v", summary)
	}
	if code, text := p.admin(t, "readyz"); code != 200 || !strings.Contains(text, "descriptors: short, ") {
		t.Errorf("/readyz: %d %q", code, text)
	}
	if took := s.inForceAfter(t, p, "policy/policy.yaml", s.allowing("allowed.example", "example.com"), 2); took > soon {
		t.Errorf("a policy is in force after %s", took)
	}
	p.logsRarely(t, "file descriptors are short", begin)
	p.logsRarely(t, "accepting a connection", begin)
	for _, conn := range conns {
		_ = conn.Close()
	}
	eventually(t, "a caller is served again", func() bool {
		conn := p.dial(t, "own")
		defer func() { _ = conn.Close() }()
		return s.connectStatus(conn, "example.com") == http.StatusOK
	})
}

// connectStatus sends a CONNECT and returns the status of the answer, or 0 if there is
// none.
func (s reloadSite) connectStatus(conn net.Conn, host string) int {
	if _, err := fmt.Fprintf(conn, "CONNECT %s:%d HTTP/1.0\r\n\r\n", host, s.port); err != nil {
		return 0
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestTheSoftLimitIsRaised starts the gateway with a soft limit that is too low to serve
// a caller.
func TestTheSoftLimitIsRaised(t *testing.T) {
	s := newReloadSite(t)
	p := s.serveWithin(t, "-Sn 24", "")
	if most := p.descriptors(t, "limit"); most < 100 {
		t.Errorf("there are %v descriptors for callers", most)
	}
	if status := s.status(t, p, "allowed.example"); status != http.StatusOK {
		t.Errorf("answered %d", status)
	}
}

// TestLoweredLimitOfDescriptors lowers the limit of descriptors while the gateway serves,
// so that the system refuses descriptors that the gateway counts as free, and raises it
// again.
func TestLoweredLimitOfDescriptors(t *testing.T) {
	t.Parallel() // it mostly waits
	s := newReloadSite(t)
	p := s.serveWithin(t, "-n 1024", "connections: 100, ")
	tunnel := s.open(t, p, "own", "allowed.example")
	lower := func(to uint64) {
		t.Helper()
		if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: to, Max: 1024}, nil); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	lower(5) // that many are open already
	waiting := p.dial(t, "own")
	p.stderr.line(t, regexp.MustCompile(`msg="accepting a connection" listener=own error="[^"]*too many open files"`))
	p.stderr.line(t, regexp.MustCompile(`msg="the limit of open files has changed" limit=5 for_callers=0`))
	tunnel.works(t)
	lower(1024)
	p.stderr.line(t, regexp.MustCompile(`msg="the limit of open files has changed" limit=1024`))
	eventually(t, "a new caller is served", func() bool {
		conn := p.dial(t, "own")
		defer func() { _ = conn.Close() }()
		return s.connectStatus(conn, "allowed.example") == http.StatusOK
	})
	_ = waiting.Close()
	tunnel.works(t)
	p.failedBusy(t, 0)
	p.logsRarely(t, "accepting a connection", begin)
	p.logsRarely(t, "file descriptors are short", begin)
	if took := s.inForceAfter(t, p, "policy/policy.yaml", s.allowing("allowed.example", "example.com"), 2); took > soon {
		t.Errorf("a policy is in force after %s", took)
	}
}

// TestStartWithTooFewDescriptors starts the gateway with too few descriptors for a single
// caller, and checks a configuration that may need more than the limit.
func TestStartWithTooFewDescriptors(t *testing.T) {
	s := newReloadSite(t)
	if _, stderr, code := run(t, s.dir, "sh", "-c", `ulimit -n 24 && exec "$0" serve`, exeat); code != 2 || !strings.Contains(stderr, "raise the limit (ulimit -n") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	stdout, stderr, code := run(t, s.dir, "sh", "-c", `ulimit -n 256 && exec "$0" serve --check`, exeat)
	if code != 0 || strings.Contains(stdout, "warning") {
		t.Errorf("the default: exit code %d: %s%s", code, stdout, stderr)
	}
	write(t, s.dir, map[string]string{"exeat.yaml": strings.Replace(siteConfig, "limits: {", "limits: {connections: 1000, ", 1)})
	stdout, stderr, code = run(t, s.dir, "sh", "-c", `ulimit -n 256 && exec "$0" serve --check`, exeat)
	if code != 0 || !strings.Contains(stdout, "warning: limits.connections and dns.connections may need") {
		t.Errorf("more than fits: exit code %d: %s%s", code, stdout, stderr)
	}
}
