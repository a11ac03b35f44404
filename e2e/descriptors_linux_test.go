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

// soon is how long a policy or a quarantine may take to be in force, on a machine
// that does other things as well.
const soon = 5 * time.Second

// serveWithin starts the gateway after a ulimit, by a policy in a directory that
// nobody polls. The limits are more keys of the configuration's own.
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

// inForceAfter puts a file in place by a rename, and returns how long it took
// until it was in force as that generation.
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

// obeys checks that a policy and a quarantine of the gateway itself come into force
// in time, as generations 2 and 3.
func (s reloadSite) obeys(t *testing.T, p *process) {
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

// descriptors returns the sum over the series of a metric of descriptors.
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

// connects sends CONNECTs one after the other, each on a connection of its own,
// keeps those that are answered 200 open, and counts the answers. Who is not
// answered, since the one before has not quite gone, asks again.
func (s reloadSite) connects(t *testing.T, p *process, n int) (open []net.Conn, statuses map[int]int) {
	t.Helper()
	statuses = map[int]int{}
	for range n {
		status := 0
		eventually(t, "an answer", func() bool {
			conn := p.dial(t, "own")
			if status = s.tries(conn, "allowed.example"); status == http.StatusOK {
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

// failed checks that so many decisions failed, all for the gateway's own reason
// and without an address that they blame.
func (p *process) failed(t *testing.T, want int) {
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

// lines checks that the log has a line a second at most with that text, since
// begin.
func (p *process) lines(t *testing.T, text string, begin time.Time) {
	t.Helper()
	if got, most := strings.Count(p.stderr.String(), text), 2+int(time.Since(begin).Seconds()); got > most {
		t.Errorf("%d lines of the log say %q, want at most %d", got, text, most)
	}
}

// TestFewDescriptors holds all descriptors that there are for callers. What needs
// one more is busy, and what the gateway reads itself is read at once.
func TestFewDescriptors(t *testing.T) {
	for name, row := range map[string]struct {
		limits string
		short  bool   // the descriptors are used up, and not the connections
		says   string // in the log of the start
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
			p.failed(t, statuses[503])
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
			s.obeys(t, p)
			for i := range open {
				if r := p.closed(t, i); r.CloseReason != "quarantined" {
					t.Errorf("a tunnel ends as %s", r.CloseReason)
				}
			}
			p.lines(t, "file descriptors are short", begin)
		})
	}
}

// TestIdleStrangers opens more connections than there are descriptors for, which
// say nothing. Others are served when these have gone.
func TestIdleStrangers(t *testing.T) {
	s := newReloadSite(t)
	begin := time.Now()
	p := s.serveWithin(t, "-n 2048", "connections: 16384, handshakes_per_source: 100000, ")
	const n = 2300
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = p.dial(t, "own") // which may have more slots than there are descriptors
	}
	cut := p.recorded(t, "connections that were cut", 0, func(r record) bool {
		return r.Event == "summary" && strings.Contains(r.Detail, "descriptors ")
	})
	if cut.Listener != "own" {
		t.Errorf("recorded as %+v", cut)
	}
	if code, text := p.admin(t, "readyz"); code != 200 || !strings.Contains(text, "descriptors: short, ") {
		t.Errorf("/readyz: %d %q", code, text)
	}
	if took := s.inForceAfter(t, p, "policy/policy.yaml", s.allowing("allowed.example", "example.com"), 2); took > soon {
		t.Errorf("a policy is in force after %s", took)
	}
	p.lines(t, "file descriptors are short", begin)
	p.lines(t, "accepting a connection", begin)
	for _, conn := range conns {
		_ = conn.Close()
	}
	eventually(t, "a caller is served again", func() bool {
		conn := p.dial(t, "own")
		defer func() { _ = conn.Close() }()
		return s.tries(conn, "example.com") == http.StatusOK
	})
}

// tries sends a CONNECT and returns the status; 0 means that nobody answered.
func (s reloadSite) tries(conn net.Conn, host string) int {
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

// TestTheSoftLimitIsRaised starts with a soft limit that is too low to serve
// anybody.
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

// TestALimitThatIsLowered takes the descriptors away from a gateway that serves,
// so that the system refuses what the count has room for, and gives them back.
func TestALimitThatIsLowered(t *testing.T) {
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
	lower(5) // all of which are open
	waiting := p.dial(t, "own")
	p.stderr.line(t, regexp.MustCompile(`msg="accepting a connection" listener=own error="[^"]*too many open files"`))
	p.stderr.line(t, regexp.MustCompile(`msg="the limit of open files has changed" limit=5 for_callers=0`))
	tunnel.works(t)
	lower(1024)
	p.stderr.line(t, regexp.MustCompile(`msg="the limit of open files has changed" limit=1024`))
	eventually(t, "who asks is served", func() bool {
		conn := p.dial(t, "own")
		defer func() { _ = conn.Close() }()
		return s.tries(conn, "allowed.example") == http.StatusOK
	})
	_ = waiting.Close()
	tunnel.works(t)
	p.failed(t, 0)
	p.lines(t, "accepting a connection", begin)
	p.lines(t, "file descriptors are short", begin)
	if took := s.inForceAfter(t, p, "policy/policy.yaml", s.allowing("allowed.example", "example.com"), 2); took > soon {
		t.Errorf("a policy is in force after %s", took)
	}
}

// TestTooFewDescriptors starts where nobody could be served, and checks a
// configuration that asks for too much.
func TestTooFewDescriptors(t *testing.T) {
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
