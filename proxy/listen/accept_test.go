package listen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/exeat-dev/exeat/proxy/limit"
)

// scripted is a net.Listener whose Accept calls accept.
type scripted struct {
	accept func() (net.Conn, error)
	closed chan struct{}
	once   sync.Once
}

func newScripted(accept func() (net.Conn, error)) *scripted {
	return &scripted{accept: accept, closed: make(chan struct{})}
}

func (s *scripted) Accept() (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	default:
		return s.accept()
	}
}

func (s *scripted) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

func (s *scripted) Addr() net.Addr { return &net.UnixAddr{Name: "scripted"} }

// over returns a Listener that accepts from inner.
func over(inner net.Listener, log io.Writer, descriptors *limit.Descriptors) *Listener {
	return &Listener{net: inner, cfg: Config{
		Name: "test", Slots: limit.NewSlots(limit.SharesOf(100)), Log: slog.New(slog.NewTextHandler(log, nil)), Descriptors: descriptors, Shed: func(limit.Cause) {},
		Sources: limit.NewSources(limit.Config{}), Fixed: func() spiffeid.ID { return spiffeid.ID{} },
	}}
}

// TestFailingAcceptIsTriedAgain checks that accepting is tried twenty times a second and
// logged once a second, with the number of failures, and that there is no pause when it
// works again.
func TestFailingAcceptIsTriedAgain(t *testing.T) {
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		synctest.Test(t, func(t *testing.T) {
			full := &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", errno)}
			began, tries := time.Now(), 0
			near, far := net.Pipe()
			defer func() { _ = near.Close() }()
			inner := newScripted(nil)
			inner.accept = func() (net.Conn, error) {
				tries++
				switch since := time.Since(began); {
				case since < 10*time.Second:
					return nil, full
				case far != nil:
					conn := far
					far = nil
					return conn, nil
				}
				<-inner.closed
				return nil, net.ErrClosed
			}
			descriptors := limit.NewDescriptors(10)
			var log bytes.Buffer
			l := over(inner, &log, descriptors)
			var served sync.WaitGroup
			var came time.Duration
			served.Go(func() {
				err := l.Serve(t.Context(), func(context.Context, *Conn) { came = time.Since(began) })
				if err != nil {
					t.Error(err)
				}
			})
			time.Sleep(10*time.Second - 1)
			if !descriptors.Short(time.Now()) {
				t.Error("descriptors are not short")
			}
			time.Sleep(time.Second)
			_ = l.Close()
			served.Wait()
			if came != 10*time.Second {
				t.Errorf("a connection is served after %s", came)
			}
			lines := strings.Count(log.String(), "accepting a connection")
			if lines != 10 || !strings.Contains(log.String(), "failures=1\n") || strings.Count(log.String(), "failures=20\n") != lines-1 {
				t.Errorf("%d lines of the log:\n%s", lines, log.String())
			}
			if want := 10*20 + 2; tries != want {
				t.Errorf("%d tries, want %d", tries, want)
			}
		})
	}
}

// TestContextEndsThePauseOfAFailingAccept checks that the end of the context ends the
// pause between two tries to accept.
func TestContextEndsThePauseOfAFailingAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()
		time.AfterFunc(acceptPause/2, cancel)
		l := over(newScripted(func() (net.Conn, error) { return nil, syscall.EMFILE }), io.Discard, nil)
		if err := l.Serve(ctx, nil); !errors.Is(err, context.Canceled) || time.Since(began) != acceptPause/2 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// TestConnectionWithoutADescriptorIsClosed checks that a connection for which no descriptor
// is left is closed and reported to Cut, and that another connection keeps its descriptor
// until it ends.
func TestConnectionWithoutADescriptorIsClosed(t *testing.T) {
	slots, descriptors, cuts := limit.NewSlots(limit.SharesOf(100)), limit.NewDescriptors(2), make(chan limit.Cause, 10)
	r := serve(t, func(_ *rig, cfg *Config) {
		cfg.Slots, cfg.Descriptors = slots, descriptors
		cfg.Shed = func(why limit.Cause) { cuts <- why }
	})
	cut := func() {
		t.Helper()
		closed(t, dialRaw(t, r.Addr()))
		if got := <-cuts; got != limit.CauseDescriptors {
			t.Errorf("told of %s", got)
		}
	}
	first, second := dialRaw(t, r.Addr()), dialRaw(t, r.Addr())
	speak(t, first)
	speak(t, second)
	cut()
	cut()
	if got := slots.InUse(); got != 2 {
		t.Errorf("%d slots are taken, want 2", got)
	}
	descriptors.SetMost(10)
	speak(t, dialRaw(t, r.Addr()))
	_ = first.Close()
	_ = second.Close()
	r.cut()
	_ = r.Close()
	<-r.served
	if got := descriptors.Stats().Used; got != 0 {
		t.Errorf("%d descriptors are taken after the end", got)
	}
}

// TestResetGivesTheDescriptorBack checks that a connection which ends by a reset gives
// its descriptor back.
func TestResetGivesTheDescriptorBack(t *testing.T) {
	descriptors := limit.NewDescriptors(1)
	r := serve(t, func(_ *rig, cfg *Config) { cfg.Descriptors = descriptors })
	client := dialRaw(t, r.Addr())
	speak(t, client)
	(<-r.conns).Abort()
	closed(t, client)
	const patience = 30 * time.Second
	for begin := time.Now(); descriptors.Stats().Used != 0; runtime.Gosched() {
		if time.Since(begin) > patience {
			t.Fatal("it is not given back")
		}
	}
	speak(t, dialRaw(t, r.Addr()))
}
