package enforce

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/e2e/site"
	"github.com/exeat-dev/exeat/e2e/site/load"
)

// How a holder opens tunnels and waits for their ends.
const (
	openers   = 16                     // number of tunnels that are opened at the same time
	quietTime = 300 * time.Millisecond // time to wait for ends of tunnels that should not end
)

// holder keeps tunnels open, and notes when they end.
type holder struct {
	callers []*load.Client

	mu      sync.Mutex
	conns   map[int]net.Conn
	ended   []ended
	over    []net.Conn    // connections of ended; await closes them, because closing takes processor time
	changed chan struct{} // closed when another tunnel ends

	prober
}

// serveHolder runs the role of a holder. A prober is a holder with few tunnels.
func serveHolder(in io.Reader, out io.Writer) error {
	h := &holder{conns: map[int]net.Conn{}, changed: make(chan struct{})}
	return answerAll(in, out, h.answer)
}

func (h *holder) answer(c command) reply {
	var r reply
	var err error
	switch {
	case c.Setup != nil:
		err = h.setup(*c.Setup)
	case c.Open != nil:
		r.Opened, err = h.open(c.Open)
	case c.Await != nil:
		r.Ended = h.await(*c.Await)
	case c.Probe > 0:
		h.mu.Lock()
		conns := maps.Clone(h.conns)
		h.mu.Unlock()
		h.start(conns, c.Probe)
	case c.Stop:
		r.Echoes, err = h.stop()
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

func (h *holder) setup(s setup) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(s.Roots) {
		return errors.New("no certificate of an authority")
	}
	for _, p := range s.Callers {
		certificate, err := tls.X509KeyPair(p.Certificate, p.Key)
		if err != nil {
			return err
		}
		h.callers = append(h.callers, &load.Client{Proxy: s.Gateway, TLS: &tls.Config{
			MinVersion: tls.VersionTLS13, ServerName: site.ServerName, RootCAs: roots, Certificates: []tls.Certificate{certificate},
		}})
	}
	return nil
}

// open opens tunnels, and returns when all are open.
func (h *holder) open(tasks []task) ([]opened, error) {
	work := make(chan task)
	results := make([][]opened, openers)
	failures := make([]error, openers)
	var working sync.WaitGroup
	for i := range openers {
		working.Go(func() {
			for t := range work {
				conn, err := h.connect(t)
				if err != nil {
					failures[i] = fmt.Errorf("tunnel %d to %s: %w", t.N, t.Target, err)
					continue
				}
				results[i] = append(results[i], opened{t.N, conn.LocalAddr().String()})
			}
		})
	}
	for _, t := range tasks {
		work <- t
	}
	close(work)
	working.Wait()
	var all []opened
	for _, r := range results {
		all = append(all, r...)
	}
	return all, errors.Join(failures...)
}

func (h *holder) connect(t task) (net.Conn, error) {
	conn, err := h.callers[t.Caller].Open(context.Background(), t.Target)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.conns[t.N] = conn
	h.mu.Unlock()
	go h.hold(t.N, conn)
	return conn, nil
}

// hold reads the echoes from a tunnel, and notes when it ends.
func (h *holder) hold(n int, conn net.Conn) {
	var one [1]byte
	for {
		if _, err := conn.Read(one[:]); err != nil {
			break
		}
		h.came(n)
	}
	at := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, n)
	h.ended = append(h.ended, ended{n, at})
	h.over = append(h.over, conn)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *holder) await(a await) []ended {
	late := time.After(a.Patience)
	for waiting := true; waiting; {
		h.mu.Lock()
		count, changed := len(h.ended), h.changed
		h.mu.Unlock()
		if count >= a.Count {
			break
		}
		select {
		case <-changed:
		case <-late:
			waiting = false
		}
	}
	<-time.After(quietTime)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, conn := range h.over {
		_ = conn.Close()
	}
	all := h.ended
	h.ended, h.over = nil, nil
	return all
}
