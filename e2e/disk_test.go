package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/exeat-dev/exeat/e2e/missing"
)

// startOnDisk runs exeat with a tmpfs of its own at the directory disk, mounted with
// these options.
func (s prodSite) startOnDisk(t *testing.T, options string) *process {
	t.Helper()
	need(t, "unshare", "mount")
	if exec.Command("unshare", "--map-root-user", "--mount", "true").Run() != nil {
		missing.Skip(t, "no namespaces: unshare --map-root-user is not permitted here")
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "disk"), 0o700); err != nil {
		t.Fatal(err)
	}
	return startCommand(t, s.dir, "unshare", "--map-root-user", "--mount", "sh", "-c", `mount -t tmpfs -o "$1" none disk && exec "$0" serve`, exeat, options)
}

// denied sends a CONNECT that is not allowed, and returns the status and the ID of the
// decision.
func (p *process) denied(t *testing.T) (status int, id string) {
	t.Helper()
	conn := p.dial(t, "own")
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "CONNECT secret.example:443 HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodConnect})
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("X-Exeat-Decision")
}

// TestFullDisk fills the file system of a required sink, and makes room again.
func TestFullDisk(t *testing.T) {
	for name, sink := range map[string]string{
		"a file":                 "{name: disk, file: disk/r.jsonl}",
		"a file that is rotated": "{name: disk, file: disk/r.jsonl, rotate: {size: 1MiB, every: 1h}}",
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, 443)
			write(t, s.dir, map[string]string{
				"exeat.yaml": siteConfig + "records: {required: true, sinks: [" + sink + "]}\nadmin: {address: \"127.0.0.1:0\"}\n",
			})
			p := s.startOnDisk(t, "size=128k")
			var told []string
			if status, id := p.denied(t); status == http.StatusForbidden {
				told = append(told, id)
			} else {
				t.Fatalf("at first: %d", status)
			}
			if code, text := p.admin(t, "readyz"); code != http.StatusOK {
				t.Errorf("not ready at first: %s", text)
			}

			disk := filepath.Join("/proc", fmt.Sprint(p.PID()), "root", s.dir, "disk")
			filler := filepath.Join(disk, "filler")
			fill(t, filler)
			full := false
			for range 100 { // the last page of the file has room for a few records
				status, id := p.denied(t)
				if full = status == http.StatusServiceUnavailable; full {
					break
				}
				told = append(told, id)
			}
			if status, _ := p.denied(t); !full || status != http.StatusServiceUnavailable {
				t.Errorf("on a full disk: %d, want 503", status)
			}
			if code, text := p.admin(t, "readyz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "records: sink disk loses records") {
				t.Errorf("ready on a full disk: %d %s", code, text)
			}

			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			status, id := p.denied(t)
			if status != http.StatusForbidden {
				t.Errorf("when there is room again: %d, want 403", status)
			}
			told = append(told, id)
			eventually(t, "ready", func() bool { code, _ := p.admin(t, "readyz"); return code == http.StatusOK })
			text, err := os.ReadFile(filepath.Join(disk, "r.jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			checkTold(t, string(text), told)
		})
	}
}

// TestGatewayIsReadyAgainWhenTheDiskHasRoom checks that the gateway finds out by itself
// that the disk has room, because nobody sends a request to a gateway that is not ready.
func TestGatewayIsReadyAgainWhenTheDiskHasRoom(t *testing.T) {
	for name, row := range map[string]struct {
		records string
		status  int // of /readyz while the disk is full
	}{
		"a file":                               {"{sinks: [{name: disk, file: disk/r.jsonl}]}", http.StatusOK},
		"a required file":                      {"{required: true, sinks: [{name: disk, file: disk/r.jsonl}]}", http.StatusServiceUnavailable},
		"a required file that is rotated":      {"{required: true, sinks: [{name: disk, file: disk/r.jsonl, rotate: {size: 1MiB, every: 1h}}]}", http.StatusServiceUnavailable},
		"a file of denials beside another one": {"{sinks: [{name: stdout, file: stdout}, {name: disk, file: disk/r.jsonl, only: denials}]}", http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 443)
			write(t, s.dir, map[string]string{"exeat.yaml": siteConfig + "records: " + row.records + "\nadmin: {address: \"127.0.0.1:0\"}\n"})
			p := s.startOnDisk(t, "size=128k")
			disk := filepath.Join("/proc", fmt.Sprint(p.PID()), "root", s.dir, "disk")
			denied := 0
			deny := func() { // returns when the sink has got the record
				_, _ = p.denied(t)
				denied++
				eventually(t, "a record that the sink has got", func() bool { return p.gotByDisk(t) >= denied })
			}
			deny()
			filler := filepath.Join(disk, "filler")
			fill(t, filler)
			failing := func() bool {
				_, text := p.admin(t, "readyz")
				return strings.Contains(text, "records: sink disk loses records since ") && strings.Contains(text, "no space left on device")
			}
			eventually(t, "a record that cannot be written", func() bool { deny(); return failing() })
			if code, text := p.admin(t, "readyz"); code != row.status {
				t.Errorf("on a full disk: %d %s", code, text)
			}
			if err := os.Remove(filler); err != nil {
				t.Fatal(err)
			}
			eventually(t, "ready", func() bool { code, text := p.admin(t, "readyz"); return code == http.StatusOK && text == "ok\n" })
			if row.status != http.StatusOK {
				return // the record of the last refusal may have come through
			}
			text, err := os.ReadFile(filepath.Join(disk, "r.jsonl"))
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			if last := lines[len(lines)-1]; !strings.Contains(last, `"event":"summary"`) || !strings.Contains(last, `"detail":"the sink failed: `) {
				t.Errorf("the last line is %s", last)
			}
		})
	}
}

// gotByDisk returns how many records the sink "disk" has written or lost.
func (p *process) gotByDisk(t *testing.T) int {
	t.Helper()
	_, metrics := p.admin(t, "metrics")
	sum := 0
	for _, found := range regexp.MustCompile(`(?m)^egress_records_total\{[^}]*result="(?:written|failed)"[^}]*sink="disk"[^}]*\} (\d+)`).FindAllStringSubmatch(metrics, -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// fill writes to a file until the file system is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}

// checkTold checks that every decision of which a caller learned is recorded, and that
// at most one line is torn.
func checkTold(t *testing.T, text string, told []string) {
	t.Helper()
	recorded, torn := map[string]bool{}, 0
	for line := range strings.Lines(text) {
		var r record
		if json.Unmarshal([]byte(line), &r) != nil {
			torn++
		}
		recorded[r.ID] = true
	}
	for _, id := range told {
		if id == "" || !recorded[id] {
			t.Errorf("a caller learned of decision %q, which is not recorded", id)
		}
	}
	if torn > 1 {
		t.Errorf("%d lines are torn:\n%s", torn, text)
	}
}

// TestReadOnlyDisk checks that the gateway does not start if it cannot write its records.
func TestReadOnlyDisk(t *testing.T) {
	s := newSite(t, 443)
	write(t, s.dir, map[string]string{"exeat.yaml": siteConfig + "records: {file: disk/r.jsonl}\n"})
	p := s.startOnDisk(t, "ro")
	if code := p.exit(t); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	if text := p.stderr.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "disk/r.jsonl: read-only file system") {
		t.Errorf("standard error: %s", text)
	}
	p.checkNothingLeft(t)
}
