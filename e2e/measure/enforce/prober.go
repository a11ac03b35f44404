package enforce

import (
	"errors"
	"net"
	"sync"
	"time"
)

// echoTime is the longest time of an echo before it is lost.
const echoTime = 30 * time.Second

// prober sends one byte at a time through tunnels, and measures the time from when the
// byte was due until it comes back. A byte that waits for a late echo counts its wait.
type prober struct {
	probing sync.WaitGroup
	finish  chan struct{}

	mu     sync.Mutex
	back   map[int]chan struct{} // by the number of the tunnel; receives when an echo has come
	echoes []echo
	err    error
}

// start probes every tunnel, at the interval every, until stop is called.
func (p *prober) start(conns map[int]net.Conn, every time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish, p.back, p.echoes, p.err = make(chan struct{}), map[int]chan struct{}{}, nil, nil
	first := time.Now()
	for n, conn := range conns {
		back := make(chan struct{}, 1)
		p.back[n] = back
		first = first.Add(every / time.Duration(len(conns))) // the tunnels do not begin at the same time
		due := first
		p.probing.Go(func() { p.probe(conn, back, due, every) })
	}
}

// stop ends the probing. It returns all echoes, and an error if a tunnel ended.
func (p *prober) stop() ([]echo, error) {
	close(p.finish)
	p.probing.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.echoes, p.err
}

// came is called by the reader of a tunnel when an echo has come.
func (p *prober) came(n int) {
	p.mu.Lock()
	back := p.back[n]
	p.mu.Unlock()
	back <- struct{}{} // does not block, because a tunnel has one byte under way
}

func (p *prober) probe(conn net.Conn, back <-chan struct{}, due time.Time, every time.Duration) {
	for {
		select {
		case <-p.finish:
			return
		case <-time.After(time.Until(due)):
		}
		_, err := conn.Write([]byte{'e'})
		if err == nil {
			select {
			case <-back:
			case <-time.After(echoTime):
				err = errors.New("an echo was lost")
			}
		}
		took := time.Since(due)
		p.mu.Lock()
		p.echoes, p.err = append(p.echoes, echo{due, took}), errors.Join(p.err, err)
		p.mu.Unlock()
		if err != nil {
			return
		}
		due = due.Add(every)
	}
}
