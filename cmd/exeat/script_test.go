package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes this test binary the program exeat when a script runs it.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"exeat": main})
}

// TestScripts runs the command line as a shell does: with processes, exit codes,
// standard output and standard error, files and signals. Scripts have the commands of
// package testscript and those of scriptCommands.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", Cmds: scriptCommands(), RequireExplicitExec: true, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Values["started"] = map[string]*started{}
			return nil
		},
	})
}

// started is a program that runs in the background of a script.
type started struct {
	*exec.Cmd

	ended chan struct{} // closed after the program has ended
}

func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"exits":    exits,
		"mistakes": mistakes,
		"start":    start,
		"signal":   signalTo,
		"ended":    ended,
		"await":    await,
	}
}

// exits CODE PROGRAM ARGUMENTS... runs a program, which must end with the exit code.
// The commands stdout and stderr see its output. If the code is 2, wrong use, the
// output must be one line on standard error that begins with exeat:.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	if got := exitCode(ts, ts.Exec(args[1], args[2:]...)); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if want == exitUsage && (stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "exeat: ")) {
		ts.Fatalf("want one line that begins with exeat: on standard error, and nothing else")
	}
}

// exitCode returns the exit code of a program that has ended with an error.
func exitCode(ts *testscript.TestScript, err error) int {
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		ts.Fatalf("%v", err)
	}
	return exit.ExitCode()
}

// mistakes DIRECTORY CODE PROGRAM ARGUMENTS... runs a program once for each file of a
// directory, with the file as its last argument. The file begins with comments that are
// the lines which the program must print, without the file's name. Besides these the
// program may print only lines that are about no line of the file.
func mistakes(ts *testscript.TestScript, _ bool, args []string) {
	files, err := filepath.Glob(ts.MkAbs(args[0]) + "/*")
	ts.Check(err)
	if len(files) == 0 {
		ts.Fatalf("no files in %s", args[0])
	}
	for _, file := range files {
		name := filepath.Join(args[0], filepath.Base(file))
		var want strings.Builder
		for line := range strings.Lines(ts.ReadFile(name)) {
			text, comment := strings.CutPrefix(line, "# ")
			if !comment {
				break
			}
			want.WriteString(name + ":" + text)
		}
		got := exitCode(ts, ts.Exec(args[2], append(args[3:], name)...))
		said := strings.TrimPrefix(ts.ReadFile("stdout")+ts.ReadFile("stderr"), "exeat: ")
		rest, _ := strings.CutPrefix(said, want.String())
		if fmt.Sprint(got) != args[1] || want.Len() == 0 || len(rest) == len(said) || strings.Contains(rest, name+":") && got != 0 {
			ts.Fatalf("%s: exit code %d, said\n%swant %s and\n%s", name, got, said, args[1], want.String())
		}
	}
}

// start NAME PROGRAM ARGUMENTS... starts a program in the background. Its output goes
// to NAME.out and NAME.err.
func start(ts *testscript.TestScript, _ bool, args []string) {
	s := &started{exec.Command(args[1], args[2:]...), make(chan struct{})}
	s.Dir = ts.MkAbs(".")
	files := make([]*os.File, 2)
	for i, suffix := range []string{".out", ".err"} {
		f, err := os.Create(ts.MkAbs(args[0] + suffix))
		ts.Check(err)
		files[i] = f
	}
	s.Stdout, s.Stderr = files[0], files[1]
	ts.Check(s.Start())
	go func() {
		defer close(s.ended)
		_ = s.Wait() // the command ended reads the state
		for _, f := range files {
			_ = f.Close()
		}
	}()
	ts.Defer(func() {
		_ = s.Process.Kill()
		<-s.ended
	})
	startedBy(ts)[args[0]] = s
}

func startedBy(ts *testscript.TestScript) map[string]*started {
	return ts.Value("started").(map[string]*started)
}

// signalTo NAME SIGNAL sends a signal to a program in the background.
func signalTo(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(startedBy(ts)[args[0]].Process.Signal(map[string]os.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM}[args[1]]))
}

// ended NAME CODE waits until a program in the background has ended with an exit code.
func ended(ts *testscript.TestScript, _ bool, args []string) {
	s := startedBy(ts)[args[0]]
	select {
	case <-s.ended:
	case <-time.After(time.Minute):
		ts.Fatalf("%s has not ended", args[0])
	}
	if got := strconv.Itoa(s.ProcessState.ExitCode()); got != args[1] {
		ts.Fatalf("%s: exit code %s, want %s, with\n%s", args[0], got, args[1], ts.ReadFile(args[0]+".err"))
	}
}

// await FILE PATTERN waits until a file has text that matches.
func await(ts *testscript.TestScript, _ bool, args []string) {
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for patience := time.After(time.Minute); ; {
		if pattern.MatchString(ts.ReadFile(args[0])) {
			return
		}
		select {
		case <-tick.C:
		case <-patience:
			ts.Fatalf("%s has no %s:\n%s", args[0], args[1], ts.ReadFile(args[0]))
		}
	}
}
