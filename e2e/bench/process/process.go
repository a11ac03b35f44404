// Package process runs the programs of a benchmark as children and reads what
// each of them alone uses.
//
//	p, err := process.Start(ctx, process.Command{Path: "./relay", Addresses: 1})
//	defer p.Stop()
//	before, err := p.CPU()
//
// A child says where it listens by writing address=HOST:PORT to its standard
// error, as slog's text handler does; one that does not is told where, and is
// ready when it accepts there. The package ends only what it started,
// by process id. It measures on Linux; elsewhere CPU and Resident return
// errors.ErrUnsupported.
package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

const (
	startTime = 30 * time.Second // for a child to say where it listens
	stopTime  = 10 * time.Second // for a child that was told to end
	tailLines = 10               // of its standard error that an error quotes
)

// A Command is a program to start.
type Command struct {
	Path string
	Args []string
	// Env is its whole environment: nothing is inherited.
	Env []string
	// Addresses is how many listeners it announces.
	Addresses int
	// Listens are addresses that it was told to listen on and does not
	// announce. It gets one connection on each, which says nothing.
	Listens []string
}

// A Process is a running child. Its methods may be called from one goroutine
// at a time.
type Process struct {
	// Addresses are those that it announced, in its order, and then those
	// that it was told.
	Addresses []string

	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when its standard error ended
	tail []string      // its last lines; read after done
	over bool
}

// Start starts a child and returns when it has announced all its listeners.
// The end of ctx ends the child, as Stop does.
func Start(ctx context.Context, c Command) (*Process, error) {
	cmd := exec.CommandContext(ctx, c.Path, c.Args...)
	cmd.Env = append([]string{}, c.Env...) // not nil, which would mean ours
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	// A group of its own: Ctrl-C in a terminal reaches us, and we end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &Process{name: filepath.Base(c.Path), cmd: cmd, done: make(chan struct{})}
	addresses := make(chan string, c.Addresses)
	go p.read(stderr, addresses)
	err = p.await(addresses, c.Addresses)
	for i := 0; i < len(c.Listens) && err == nil; i++ {
		err = p.reach(ctx, c.Listens[i])
		p.Addresses = append(p.Addresses, c.Listens[i])
	}
	if err != nil {
		p.Stop()
		return nil, fmt.Errorf("starting %s: %w: %s", p.name, err, strings.Join(p.tail, "\n"))
	}
	return p, nil
}

// reach connects until the address accepts.
func (p *Process) reach(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
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
		case <-p.done:
			return errors.New("it ended")
		case <-ctx.Done():
			return fmt.Errorf("it does not accept: %w", err)
		}
	}
}

// await collects the announced addresses.
func (p *Process) await(addresses <-chan string, n int) error {
	late := time.NewTimer(startTime)
	defer late.Stop()
	for len(p.Addresses) < n {
		select {
		case a := <-addresses:
			p.Addresses = append(p.Addresses, a)
		case <-p.done:
			return errors.New("it ended")
		case <-late.C:
			return errors.New("it did not say where it listens")
		}
	}
	return nil
}

// read reads the child's standard error to its end, and sends as many
// addresses as there is room for.
func (p *Process) read(stderr io.Reader, addresses chan<- string) {
	defer close(p.done)
	announced := regexp.MustCompile(`\baddress=(\S+)`)
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		line := lines.Text()
		p.tail = append(p.tail[max(0, len(p.tail)+1-tailLines):], line)
		if m := announced.FindStringSubmatch(line); m != nil && len(addresses) < cap(addresses) {
			addresses <- m[1] // nobody else sends, so there is room
		}
	}
}

// Stop tells the child to end and returns when it has; after ten seconds it is
// killed. A second call does nothing.
func (p *Process) Stop() {
	if p.over {
		return
	}
	p.over = true
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // one that has ended already is what is wanted
	kill := time.AfterFunc(stopTime, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	<-p.done
	_ = p.cmd.Wait() // how it ended makes no difference
}

// CPU returns the processor time, user and system, that the child has used.
func (p *Process) CPU() (time.Duration, error) {
	t, err := cpuTime(p.cmd.Process.Pid)
	if err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", p.name, err)
	}
	return t, nil
}

// Resident returns the bytes of memory that the child holds.
func (p *Process) Resident() (int64, error) {
	n, err := resident(p.cmd.Process.Pid)
	if err != nil {
		return 0, fmt.Errorf("memory of %s: %w", p.name, err)
	}
	return n, nil
}
