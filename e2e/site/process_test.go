package site_test

import (
	"context"
	"net"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/e2e/site"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script returns a command that runs a text in the shell.
func script(t *testing.T, text string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), "/bin/sh", "-c", text)
}

func TestAChildThatListensIsReady(t *testing.T) {
	p, err := site.Start(script(t,
		`echo 'msg=listening address=127.0.0.1:1' >&2; echo noise >&2; echo address=127.0.0.1:2 >&2; echo address=more >&2; exec sleep 60`), site.Ready{Announces: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if diff := cmp.Diff(p.Addresses, []string{"127.0.0.1:1", "127.0.0.1:2"}); diff != "" {
		t.Error(diff)
	}
	begin := time.Now()
	p.Stop()
	p.Stop()
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("ending it took %s", took)
	}
}

func TestErrorOfAChildThatEndsHasItsOutput(t *testing.T) {
	_, err := site.Start(script(t, "echo 'no such file' >&2; exit 2"), site.Ready{Announces: 1})
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}

func TestChildWithAConfiguredAddressIsReadyWhenItAccepts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	told := []string{l.Addr().String()} // in the place of the child's listener
	p, err := site.Start(script(t, "exec sleep 60"), site.Ready{Accepts: told})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if diff := cmp.Diff(p.Addresses, told); diff != "" {
		t.Error(diff)
	}
}

func TestAChildThatEndsBeforeItAcceptsIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // no listener is left
	ready := site.Ready{Accepts: []string{l.Addr().String()}}
	if _, err := site.Start(script(t, "echo 'no such option' >&2; exit 1"), ready); err == nil || !strings.Contains(err.Error(), "no such option") {
		t.Errorf("got %v", err)
	}
}

func TestChildInheritsNoEnvironment(t *testing.T) {
	t.Setenv("EXEAT_BENCH_TEST", "inherited")
	c := script(t, `echo "address=[$EXEAT_BENCH_TEST$OWN]" >&2`)
	c.Env = []string{"OWN=own"}
	p, err := site.Start(c, site.Ready{Announces: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if p.Addresses[0] != "[own]" {
		t.Errorf("got %s", p.Addresses[0])
	}
}

func TestUsageIsThatOfTheChild(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("no /proc: measured on Linux only")
	}
	p, err := site.Start(script(t,
		`i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo address=x >&2; exec sleep 60`), site.Ready{Announces: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if used, err := p.CPU(); used <= 0 || used > 10*time.Second || err != nil {
		t.Errorf("processor time %s, %v", used, err)
	}
	if resident, err := p.Resident(); resident < 1<<10 || resident > 1<<30 || err != nil {
		t.Errorf("%d bytes, %v", resident, err)
	}
}

func TestTheOutputIsCollected(t *testing.T) {
	p, err := site.Start(script(t, "echo said; echo half; printf 'a line' >&2; exit 3"), site.Ready{})
	if err != nil {
		t.Fatal(err)
	}
	if code := p.State().ExitCode(); code != 3 {
		t.Errorf("exit code %d", code)
	}
	if got := p.Stdout.String() + "|" + p.Stderr.String(); got != "said\nhalf\n|a line" {
		t.Errorf("got %q", got)
	}
	if match, err := p.Stdout.Line(time.Minute, regexp.MustCompile(`(?m)^h(\w+)$`)); err != nil || match[1] != "alf" {
		t.Errorf("got %q, %v", match, err)
	}
	if err := p.Stderr.Until(time.Minute, func(text string) bool { return text != "" }); err == nil {
		t.Error("half a line counts as one")
	}
}

func TestTheEndOfTheContextEndsTheChild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := site.Start(exec.CommandContext(ctx, "/bin/sh", "-c", "exec sleep 60"), site.Ready{})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if got := p.State().String(); got != "signal: terminated" {
		t.Errorf("it ended with %s", got)
	}
}
