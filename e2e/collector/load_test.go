package collector

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/exeat-dev/exeat/e2e/site/load"
)

// asking configures the requests for decisions.
type asking struct {
	workers int
	pace    int            // requests a second of all workers; zero means as many as possible
	at      map[int]func() // functions to call before the request of that number
}

// outcome summarises the answers that the callers got.
type outcome struct {
	refused []string // decision IDs in the answers
	allowed int
	took    []time.Duration // times of denials over the socket, by number; zero for any other request
}

// delay summarises the times of denials.
type delay struct{ p50, p99 time.Duration }

// String returns the delay in microseconds.
func (d delay) String() string {
	return fmt.Sprintf("p50 %d µs, p99 %d µs", d.p50.Microseconds(), d.p99.Microseconds())
}

// delays summarises the denials from number first to last, excluding last. It uses the
// quieter blocks (the lower quartile), because other work of the machine slows down some
// blocks, while a fault that delays decisions slows down all.
func (o *outcome) delays(first, last int) delay {
	const block = 200
	took := slices.DeleteFunc(slices.Clone(o.took[first:last]), func(d time.Duration) bool { return d == 0 })
	var p50, p99 []time.Duration
	for part := range slices.Chunk(took, block) {
		slices.Sort(part)
		p50, p99 = append(p50, part[len(part)/2]), append(p99, part[len(part)*99/100])
	}
	slices.Sort(p50)
	slices.Sort(p99)
	return delay{p50: p50[len(p50)/4], p99: p99[len(p99)/4]}
}

// decide makes all requests, and returns when each is answered.
func (w *world) decide(t *testing.T, p *gateway, a asking) *outcome {
	t.Helper()
	out := &outcome{took: make([]time.Duration, decisions)}
	var mu sync.Mutex
	var next atomic.Int64
	var workers sync.WaitGroup
	start := time.Now()
	for range a.workers {
		workers.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= decisions || t.Failed() {
					return
				}
				if event := a.at[n]; event != nil {
					workers.Go(event) // the other workers go on, as their callers would
				}
				if a.pace > 0 {
					<-time.After(time.Until(start.Add(time.Duration(n) * time.Second / time.Duration(a.pace))))
				}
				id, took, err := w.ask(p, n)
				if err != nil {
					t.Errorf("decision %d: %v", n, err)
					return
				}
				mu.Lock()
				if id == "" {
					out.allowed++
				} else {
					out.refused = append(out.refused, id)
				}
				out.took[n] = took
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return out
}

// ask makes the nth request, of five kinds in turn. It returns the ID of a refusal, and
// the time of a denial.
func (w *world) ask(p *gateway, n int) (id string, took time.Duration, err error) {
	switch n % 10 {
	case 0, 1:
		id, err = w.exchange(p.socket, load.Connect(w.allowed()), http.StatusOK)
	case 2, 3:
		id, err = w.exchange(p.socket, load.Connect("nowhere"), http.StatusBadRequest)
	case 4:
		id, err = w.exchange(p.mtls(w.Client(nil)), load.Connect(w.allowed()), http.StatusProxyAuthRequired)
	case 5:
		id, err = w.exchange(p.mtls(w.callers[n/10%len(w.callers)]), load.Connect("denied.example:443"), http.StatusForbidden)
	default:
		start := time.Now()
		id, err = w.exchange(p.socket, load.Connect("denied.example:443"), http.StatusForbidden)
		took = time.Since(start)
	}
	return id, took, err
}

// exchange sends a request on a new connection. Through a tunnel it sends a word, and
// waits until it comes back.
func (w *world) exchange(dial func() (net.Conn, error), request string, want int) (id string, err error) {
	conn, err := dial()
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, request); err != nil {
		return "", err
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return "", err
	}
	if resp.StatusCode != want {
		return "", fmt.Errorf("answered %s, want %d", resp.Status, want)
	}
	if want != http.StatusOK {
		if id = resp.Header.Get("X-Exeat-Decision"); id == "" {
			return "", errors.New("the answer has no decision ID")
		}
		return id, nil
	}
	const word = "word"
	if _, err := io.WriteString(conn, word); err != nil {
		return "", err
	}
	echo := make([]byte, len(word))
	if _, err := io.ReadFull(reader, echo); err != nil || string(echo) != word {
		return "", fmt.Errorf("through the tunnel came %q: %w", echo, err)
	}
	return "", nil
}

// socket connects to the listener on a unix socket, which has no ports that could run
// out.
func (p *gateway) socket() (net.Conn, error) { return net.Dial("unix", p.socketPath) }

// mtls returns a function that connects to the TLS listener as a caller.
func (p *gateway) mtls(caller *tls.Config) func() (net.Conn, error) {
	return func() (net.Conn, error) { return tls.Dial("tcp", p.mtlsAddress, caller) }
}
