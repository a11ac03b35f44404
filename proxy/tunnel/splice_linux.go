package tunnel

import (
	"errors"
	"io"
	"os"
	"runtime"
	"syscall"
)

// pipeSize is how much a pipe is to hold, and mostPipes how many are lent at
// the same time: clients that do not read must not tie up more of the kernel's
// memory than the 64 MiB that an unprivileged user may have by default. Where
// there is no pipe, or a small one, bytes go through a buffer.
const (
	pipeSize  = 1 << 20
	mostPipes = 64
)

// Of the system calls; package syscall has no names for them.
const (
	setPipeSize    = 1031 // F_SETPIPE_SZ and F_GETPIPE_SZ of fcntl(2)
	getPipeSize    = 1032
	spliceNonblock = 0x2 // SPLICE_F_NONBLOCK of splice(2)
)

// A splicer moves the bytes of one direction from socket to socket inside the
// kernel, by splice(2). It belongs to the goroutine of that direction. A nil
// one moves nothing.
//
// It has a pipe only while there are bytes in it, as a relay has a buffer: a
// pipe is two descriptors. A short message is as cheap through a buffer, so
// that it is used only when there is much to move.
type splicer struct {
	src, dst        syscall.RawConn
	pipes           *Pipes
	onFill, onDrain func(fd uintptr) bool // built once, as those of Conn

	bulk bool // the last read got as much as it could
	off  bool // these sockets cannot be spliced
	pipe *pipe
	held int // bytes in pipe

	n   int // what the last callback moved
	err error
}

// newSplicer returns nil unless both sides are bare sockets.
func newSplicer(src, dst *side, pipes *Pipes) *splicer {
	from, to := src.socket(), dst.socket()
	if from == nil || to == nil {
		return nil
	}
	s := &splicer{src: from, dst: to, pipes: pipes.orShared()}
	s.onFill, s.onDrain = s.fillFrom, s.drainTo
	return s
}

// wanted reports whether to use fill and drain for what comes next.
func (s *splicer) wanted() bool { return s != nil && s.bulk }

// saw notes how many bytes were read another way, into a buffer.
func (s *splicer) saw(n int) {
	if s != nil {
		s.bulk = n == bufferSize && !s.off
	}
}

// fill waits for bytes and takes up to a pipe full of them, all of which must
// then be drained. It returns io.EOF at the end. Nothing and no error means
// that it cannot be done this way, for now or at all.
func (s *splicer) fill() (int, error) {
	if err := s.src.Read(s.onFill); err != nil {
		return 0, err
	}
	s.held = s.n
	s.bulk = s.n >= bufferSize
	return s.n, s.err
}

// drain waits for room and returns how many bytes went out.
func (s *splicer) drain() (int, error) {
	if err := s.dst.Write(s.onDrain); err != nil {
		s.drop()
		return 0, err
	}
	s.held -= s.n
	switch {
	case s.err != nil:
		s.drop()
	case s.held == 0:
		s.pipes.put(s.pipe)
		s.pipe = nil
	}
	return s.n, s.err
}

// drop gives up a pipe with bytes in it, which nobody else may get.
func (s *splicer) drop() {
	s.pipes.lent.Add(-1)
	s.pipe.close()
	s.pipe, s.held = nil, 0
}

// fillFrom and drainTo are called by RawConn, as the callbacks of Conn are.

func (s *splicer) fillFrom(fd uintptr) bool {
	var p *pipe
	if p = s.pipes.get(); p == nil {
		s.n, s.err = 0, nil
		return true
	}
	var again bool
	s.n, again, s.err = splice(int(fd), p.w, pipeSize)
	switch {
	case s.n > 0:
		s.pipe = p
		return true
	case errors.Is(s.err, syscall.EINVAL): // a socket that cannot
		s.off, s.err = true, nil
	case s.err == nil && !again:
		s.err = io.EOF
	}
	s.pipes.put(p)
	return !again
}

func (s *splicer) drainTo(fd uintptr) bool {
	var again bool
	s.n, again, s.err = splice(s.pipe.r, int(fd), s.held)
	return !again
}

// splice is splice(2) with one end a non-blocking socket; again means that the
// socket is not ready. No bytes, no error and not again is the end.
func splice(from, to, most int) (n int, again bool, err error) {
	for {
		n, err := syscall.Splice(from, nil, to, nil, most, spliceNonblock)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EAGAIN):
			return 0, true, nil
		case err != nil:
			return 0, false, os.NewSyscallError("splice", err)
		}
		return int(n), false, nil
	}
}

// A pipe is one of pipe(2), empty unless a splicer has it.
type pipe struct {
	ends
	cleanup runtime.Cleanup
}

// ends are the two ends of a pipe.
type ends struct {
	r, w int
	give func(n int) // gives their descriptors back; nil is nobody
}

// close closes both.
func (e ends) close() {
	_ = syscall.Close(e.r)
	_ = syscall.Close(e.w)
	if e.give != nil {
		e.give(2)
	}
}

// newPipe returns nil when there are no descriptors for one, or too little
// memory.
func (p *Pipes) newPipe() *pipe {
	if p.cfg.Take != nil && !p.cfg.Take(2) {
		return nil
	}
	var fds [2]int
	if syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK) != nil {
		if p.cfg.Give != nil {
			p.cfg.Give(2)
		}
		return nil
	}
	both := ends{r: fds[0], w: fds[1], give: p.cfg.Give}
	if size(both.r) < bufferSize {
		both.close()
		return nil
	}
	made := &pipe{ends: both}
	made.cleanup = runtime.AddCleanup(made, ends.close, both)
	return made
}

// size makes a pipe as large as it may be and returns what it can hold.
func size(fd int) uintptr {
	n, _, err := syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), setPipeSize, pipeSize)
	if err != 0 {
		n, _, err = syscall.Syscall(syscall.SYS_FCNTL, uintptr(fd), getPipeSize, 0)
	}
	if err != 0 {
		return 0
	}
	return n
}

func (p *pipe) close() {
	p.cleanup.Stop()
	p.ends.close()
}

// get returns nil if there is none to be had.
func (p *Pipes) get() *pipe {
	if p.lent.Add(1) > mostPipes {
		p.lent.Add(-1)
		return nil
	}
	lent, ok := p.free.Get().(*pipe)
	if !ok {
		lent = p.newPipe()
	}
	if lent == nil {
		p.lent.Add(-1)
	}
	return lent
}

func (p *Pipes) put(lent *pipe) {
	p.lent.Add(-1)
	if p.cfg.Scarce != nil && p.cfg.Scarce() {
		lent.close()
		return
	}
	p.free.Put(lent)
}
