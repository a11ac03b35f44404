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
	startTime = 30 * time.Second // for a process to be ready
	stopTime  = 10 * time.Second // for a process that was told to end
	tailLines = 10               // of its standard error that an error quotes
)

// Ready says when a process is ready; the zero value: at once.
type Ready struct {
	// Announces is how many listeners it tells of, by writing address=HOST:PORT
	// to its standard error as slog's text handler does.
	Announces int
	// Accepts are addresses that it was told to listen on and does not
	// announce. It gets one connection on each, which says nothing.
	Accepts []string
}

// A Process is a program that was started. It is safe for concurrent use, but
// for Stop.
type Process struct {
	// Addresses are those that it announced, in its order, and then those that
	// it was told.
	Addresses []string
	// Stdout and Stderr are what it writes, where its command does not say
	// where that goes.
	Stdout, Stderr *Output

	cmd   *exec.Cmd
	ended chan struct{}
}

// Start starts a process and returns when it is ready; what does not get ready
// is ended, and its last words are in the error.
//
// Its environment is that of the command and nothing else: nothing is inherited
// where it is empty. If the command has a context, the end of that ends the
// process as Stop does, and Ctrl-C in a terminal does not reach it. CPU and
// Resident work on Linux only.
func Start(cmd *exec.Cmd, ready Ready) (*Process, error) {
	p := &Process{Stdout: NewOutput(), Stderr: NewOutput(), cmd: cmd, ended: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.Stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.Stderr
	}
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would mean ours
	}
	if cmd.Cancel != nil { // there is a context
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
		cmd.WaitDelay = stopTime
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		_ = cmd.Wait() // the exit code says all
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
		return fmt.Errorf("it does not say where it listens: %w", err)
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

// reach connects until the address accepts.
func (p *Process) reach(address string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-p.ended:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("it does not accept: %w", err)
		}
	}
}

// Stop tells the process to end and returns when it has; after ten seconds it
// is killed. One that has ended is what is wanted.
func (p *Process) Stop() {
	_ = p.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(stopTime, func() { _ = p.Signal(os.Kill) })
	defer kill.Stop()
	<-p.ended
}

// Kill ends the process as a crash would, and returns when it has ended.
func (p *Process) Kill() {
	_ = p.Signal(os.Kill)
	<-p.ended
}

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// PID returns the id of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended returns a channel that is closed when the process has ended and all
// that it wrote has been read.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// State says how the process ended, once it has.
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

// Resident returns the bytes of memory that the process holds.
func (p *Process) Resident() (int64, error) {
	n, err := resident(p.PID())
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name(), err)
	}
	return n, nil
}
