package site

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

const (
	startTime = 30 * time.Second // until a process is ready
	stopTime  = 10 * time.Second // until a process ends after SIGTERM
	tailLines = 10               // lines of standard error in an error
)

// Ready says when a process is ready. The zero value means at once.
type Ready struct {
	// Announces is the number of listeners that the process logs, as address=HOST:PORT on
	// its standard error, in the form of slog's text handler.
	Announces int
	// Accepts are the configured addresses of listeners that the process does not log.
	// Each is tested with a connection on which nothing is sent.
	Accepts []string
}

// A Process is a running program. It is safe for concurrent use, except Stop.
type Process struct {
	// Addresses are the addresses that the process logged, in this order, and then those
	// of Ready.Accepts.
	Addresses []string
	// Stdout and Stderr are the outputs of the process, unless the command has writers
	// for them.
	Stdout, Stderr *Output

	cmd   *exec.Cmd
	ended chan struct{}
}

// Start starts a process, and returns when it is ready. A process that does not become
// ready is ended, and the error has its last lines.
//
// Its environment is that of the command; if that is empty, nothing is inherited. If the
// command has a context, the end of the context ends the process as Stop does, and Ctrl-C
// in a terminal does not reach the process. CPU and Resident work on Linux only.
func Start(cmd *exec.Cmd, ready Ready) (*Process, error) {
	p := &Process{Stdout: NewOutput(), Stderr: NewOutput(), cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.Stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.Stderr
	}
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would mean the environment of this process
	}
	if cmd.Cancel != nil { // the command has a context
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopTime
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // State has the exit code
		p.Stdout.end()
		p.Stderr.end()
	}()
	if err := p.await(ready); err != nil {
		p.Stop()
		return nil, fmt.Errorf("starting %s: %w: %s", p.name(), err, p.Stderr.tail(tailLines))
	}
	return p, nil
}

func (p *Process) name() string { return filepath.Base(p.cmd.Path) }

func (p *Process) await(ready Ready) error {
	announced := regexp.MustCompile(`\baddress=(\S+)`)
	var found [][]string
	if err := p.Stderr.Until(startTime, func(text string) bool {
		found = announced.FindAllStringSubmatch(text, ready.Announces)
		return len(found) == ready.Announces
	}); err != nil {
		return fmt.Errorf("it logs no address: %w", err)
	}
	for _, match := range found {
		p.Addresses = append(p.Addresses, match[1])
	}
	for _, address := range ready.Accepts {
		if err := p.reach(address); err != nil {
			return err
		}
		p.Addresses = append(p.Addresses, address)
	}
	return nil
}

// reach connects to the address until it accepts.
func (p *Process) reach(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-retry.C:
		case <-p.ended:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("it does not accept: %w", err)
		}
	}
}

// Stop ends the process with SIGTERM, and returns when it has ended. After ten seconds
// the process is killed. The process may have ended before.
func (p *Process) Stop() {
	_ = p.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(stopTime, func() { _ = p.Signal(os.Kill) })
	defer kill.Stop()
	<-p.ended
}

// Kill ends the process with SIGKILL, as a crash would, and returns when it has ended.
func (p *Process) Kill() {
	_ = p.Signal(os.Kill)
	<-p.ended
}

// Signal sends a signal to the process.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended returns a channel that is closed when the process has ended and all that it wrote
// has been read.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// State waits until the process has ended, and returns how.
func (p *Process) State() *os.ProcessState {
	<-p.ended
	return p.cmd.ProcessState
}

// CPU returns the processor time, user and system, that the process has used.
func (p *Process) CPU() (time.Duration, error) {
	t, err := cpuTime(p.PID())
	if err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", p.name(), err)
	}
	return t, nil
}

// Resident returns the resident memory of the process in bytes.
func (p *Process) Resident() (int64, error) {
	n, err := resident(p.PID())
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name(), err)
	}
	return n, nil
}
