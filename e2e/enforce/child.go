package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"time"
)

const (
	startTime = 30 * time.Second // for exeat to say where it listens
	stopTime  = 10 * time.Second // for a child that was told to end
)

// child is a running process of ours.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ended chan struct{}
}

// startChild starts a process whose standard error is ours or what read reads.
func startChild(cmd *exec.Cmd, read func(stderr io.Reader)) (*child, error) {
	cmd.Env = []string{} // nothing is inherited
	// A group of its own: Ctrl-C in a terminal reaches us, and we end it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	var stderr io.Reader
	if read == nil {
		cmd.Stderr = os.Stderr
	} else if stderr, err = cmd.StderrPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, stdin: stdin, ended: make(chan struct{})}
	go func() {
		defer close(c.ended)
		if read != nil {
			read(stderr)
		}
		_ = cmd.Wait() // how it ended makes no difference
	}()
	return c, nil
}

// stop tells the process to end and returns when it has; after ten seconds it
// is killed.
func (c *child) stop() {
	_ = c.stdin.Close()
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // one that has ended already is what is wanted
	kill := time.AfterFunc(stopTime, func() { _ = c.cmd.Process.Kill() })
	defer kill.Stop()
	<-c.ended
}

// role is a child that is this program again.
type role struct {
	*child
	encoder *json.Encoder
	decoder *json.Decoder
}

func startRole(ctx context.Context, name string) (*role, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, name)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c, err := startChild(cmd, nil)
	if err != nil {
		return nil, err
	}
	return &role{child: c, encoder: json.NewEncoder(c.stdin), decoder: json.NewDecoder(stdout)}, nil
}

// hear reads a reply.
func (r *role) hear() (reply, error) {
	var answer reply
	if err := r.decoder.Decode(&answer); err != nil {
		return reply{}, fmt.Errorf("a child ended: %w", err)
	}
	if answer.Error != "" {
		return reply{}, errors.New(answer.Error)
	}
	return answer, nil
}

func (r *role) do(c command) (reply, error) {
	if err := r.encoder.Encode(c); err != nil {
		return reply{}, fmt.Errorf("a child ended: %w", err)
	}
	return r.hear()
}

// startExeat starts the gateway and returns where it listens.
func startExeat(ctx context.Context, path, config string) (*child, string, error) {
	addresses := make(chan string, 1)
	announced := regexp.MustCompile(`\baddress=(\S+)`)
	c, err := startChild(exec.CommandContext(ctx, path, "serve", "--config", config), func(stderr io.Reader) {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			m := announced.FindStringSubmatch(lines.Text())
			switch {
			case m != nil && len(addresses) < cap(addresses):
				addresses <- m[1] // nobody else sends, so there is room
			case regexp.MustCompile(`level=(ERROR|WARN)`).Match(lines.Bytes()):
				_, _ = fmt.Fprintln(os.Stderr, "exeat:", lines.Text())
			}
		}
	})
	if err != nil {
		return nil, "", err
	}
	select {
	case address := <-addresses:
		return c, address, nil
	case <-c.ended:
		return nil, "", errors.New("exeat ended at its start")
	case <-time.After(startTime):
		c.stop()
		return nil, "", errors.New("exeat did not say where it listens")
	}
}
