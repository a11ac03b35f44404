package enforce

import (
	"errors"
	"net"
	"sync"
	"time"
)

// echoTime is how long an echo may take.
const echoTime = 30 * time.Second

// prober sends one byte at a time through tunnels and measures until it comes
// back, from when it was due: an echo that waits for a late one counts its wait.
type prober struct {
	probing sync.WaitGroup
	finish  chan struct{}

	mu     sync.Mutex
	back   map[int]chan struct{} // by tunnel: an echo has come
	echoes []echo
	err    error
}

// start begins to probe every tunnel until stop.
func (p *prober) start(conns map[int]net.Conn, every time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish, p.back, p.echoes, p.err = make(chan struct{}), map[int]chan struct{}{}, nil, nil
	first := time.Now()
	for n, conn := range conns {
		back := make(chan struct{}, 1)
		p.back[n] = back
		first = first.Add(every / time.Duration(len(conns))) // not all at once
		due := first
		p.probing.Go(func() { p.probe(conn, back, due, every) })
	}
}

// stop returns all echoes, and an error if a tunnel ended.
func (p *prober) stop() ([]echo, error) {
	close(p.finish)
	p.probing.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.echoes, p.err
}

// came is told by the reader of a tunnel.
func (p *prober) came(n int) {
	p.mu.Lock()
	back := p.back[n]
	p.mu.Unlock()
	back <- struct{}{} // one byte is under way at a time
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
