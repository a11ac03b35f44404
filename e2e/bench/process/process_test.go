package process_test

import (
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/exeat-dev/exeat/e2e/bench/process"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is a child that runs shell commands.
func script(text string, addresses int) process.Command {
	return process.Command{Path: "/bin/sh", Args: []string{"-c", text}, Addresses: addresses}
}

func TestAChildThatListensIsReady(t *testing.T) {
	p, err := process.Start(t.Context(), script(
		`echo 'msg=listening address=127.0.0.1:1' >&2; echo noise >&2; echo address=127.0.0.1:2 >&2; echo address=more >&2; exec sleep 60`, 2))
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

func TestAChildThatEndsIsAnErrorInItsOwnWords(t *testing.T) {
	_, err := process.Start(t.Context(), script("echo 'no such file' >&2; exit 2", 1))
	if err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("got %v", err)
	}
}

func TestAChildThatIsToldWhereToListenIsReadyWhenItAccepts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := script("exec sleep 60", 0)
	c.Listens = []string{l.Addr().String()} // as if it were the child's
	p, err := process.Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if diff := cmp.Diff(p.Addresses, c.Listens); diff != "" {
		t.Error(diff)
	}
}

func TestAChildThatEndsBeforeItAcceptsIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close() // nobody accepts
	c := script("echo 'no such option' >&2; exit 1", 0)
	c.Listens = []string{l.Addr().String()}
	if _, err := process.Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), "no such option") {
		t.Errorf("got %v", err)
	}
}

func TestNothingIsInherited(t *testing.T) {
	t.Setenv("EXEAT_BENCH_TEST", "inherited")
	c := script(`echo "address=[$EXEAT_BENCH_TEST$OWN]" >&2`, 1)
	c.Env = []string{"OWN=own"}
	p, err := process.Start(t.Context(), c)
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
	p, err := process.Start(t.Context(), script(
		`i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo address=x >&2; exec sleep 60`, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if used, err := p.CPU(); used <= 0 || used > 10*time.Second || err != nil {
		t.Errorf("processor time %s, %v", used, err)
	}
	if held, err := p.Resident(); held < 1<<10 || held > 1<<30 || err != nil {
		t.Errorf("%d bytes, %v", held, err)
	}
}
