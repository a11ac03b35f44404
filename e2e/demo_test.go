package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tryIt is a command that the demo prints, and the outcome that it promises.
type tryIt struct{ title, command, promise string }

// commands returns the commands in what the demo prints. Each stands between a
// numbered title and a comment with the promised outcome.
func commands(text string) []tryIt {
	var list []tryIt
	title := regexp.MustCompile(`^\d+\. (.*)$`)
	var now tryIt
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if match := title.FindStringSubmatch(line); match != nil {
			now = tryIt{title: match[1]}
			continue
		}
		if promise, ok := strings.CutPrefix(line, "    # "); ok && now.title != "" {
			now.promise = promise
			list = append(list, now)
			now = tryIt{}
			continue
		}
		if now.title != "" {
			now.command += line + "\n"
		}
	}
	return list
}

func TestDemo(t *testing.T) {
	need(t, "sh", "curl", "dig")
	p := start(t, t.TempDir(), "demo")
	p.stdout.line(t, regexp.MustCompile(`(?m)^Ctrl-C ends the demo`))
	list := commands(p.stdout.String())
	if len(list) != 7 {
		t.Errorf("the demo prints %d commands, want 7", len(list))
	}
	if options, _, _ := run(t, t.TempDir(), "curl", "--help", "all"); !strings.Contains(options, "--proxy-http2") {
		list = slices.DeleteFunc(list, func(c tryIt) bool { return strings.Contains(c.command, "--proxy-http2") }) // TestDemoCheck does what it does
	}
	for _, c := range list {
		stdout, stderr, code := run(t, t.TempDir(), "sh", "-c", c.command)
		if strings.HasPrefix(c.promise, "status: ") {
			checkLookup(t, c, stdout, stderr)
			continue
		}
		first, _, _ := strings.Cut(stdout, "\r\n")
		if got := regexp.MustCompile(`^HTTP/\S+ `).ReplaceAllString(first, ""); !strings.HasPrefix(got, c.promise) {
			t.Errorf("%s: %q, promised %q; curl says %s", c.title, first, c.promise, stderr)
		}
		allowed := strings.HasPrefix(c.promise, "200")
		if greeted := strings.Contains(stdout, "hello from "); greeted != allowed || (code == 0) != allowed {
			t.Errorf("%s: exit code %d, greeted: %v", c.title, code, greeted)
		}
	}
	records := regexp.MustCompile(`(?m)^ +(/\S+records\.jsonl)$`).FindStringSubmatch(p.stdout.String())
	if records == nil {
		t.Fatal("the demo does not say where the records are")
	}
	decisions := func() int {
		data, err := os.ReadFile(records[1])
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(data), `"event":"decision"`)
	}
	// A caller may get its answer before the record is written.
	for end := time.Now().Add(patience); decisions() < len(list) && time.Now().Before(end); {
		runtime.Gosched()
	}
	if n := decisions(); n != len(list) {
		t.Errorf("%d decisions in the records, want %d", n, len(list))
	}
	p.signal(t, syscall.SIGINT)
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d after Ctrl-C", code)
	}
	if text := p.stderr.String(); text != "" {
		t.Errorf("standard error: %s", text)
	}
	p.checkNothingLeft(t)
}

// checkLookup checks what dig prints: the status and, for a name that is denied, the
// extended error.
func checkLookup(t *testing.T, c tryIt, stdout, stderr string) {
	t.Helper()
	want := c.promise + "\n"
	if strings.HasSuffix(c.promise, "NXDOMAIN") {
		want += "EDE: 15 (Blocked): (r=not-on-allowlist d="
	}
	if !strings.HasPrefix(stdout, want) {
		t.Errorf("%s: %q, promised %q; dig says %s", c.title, stdout, want, stderr)
	}
}

func TestDemoCheck(t *testing.T) {
	p := start(t, t.TempDir(), "demo", "--check")
	if code := p.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := strings.Count(p.stdout.String(), "ok   "); n != 7 {
		t.Errorf("%d steps are ok, want 7", n)
	}
	p.checkNothingLeft(t)
}

// TestDemoCheckFailsUnderAnotherPolicy swaps what the two identities may do. The check
// must fail, because it tests the answers of the gateway.
func TestDemoCheckFailsUnderAnotherPolicy(t *testing.T) {
	dir, port := t.TempDir(), freeAddresses(t, 1)[0].Port()
	write(t, dir, map[string]string{"swapped.yaml": fmt.Sprintf(`version: 1
identities:
  - id: spiffe://demo.example/ns/ci/sa/builder
    allow: [{host: secret.demo.example, ports: [%[1]d], addresses: [127.0.0.1/32]}]
  - id: spiffe://demo.example/ns/ops/sa/reporter
    allow: [{host: hello.demo.example, ports: [%[1]d], addresses: [127.0.0.1/32]}]
`, port)})
	p := start(t, dir, "demo", "--check", "--policy", filepath.Join(dir, "swapped.yaml"), "--origin", fmt.Sprintf("127.0.0.1:%d", port))
	if code := p.exit(t); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	out := p.stdout.String()
	if n := strings.Count(out, "FAIL "); n != 6 || strings.Count(out, "ok   ") != 1 {
		t.Errorf("%d steps failed, want 6 and the one without a certificate to be ok", n)
	}
	p.checkNothingLeft(t)
}
