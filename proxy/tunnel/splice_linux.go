package tunnel

import (
	"errors"
	"io"
	"os"
	"runtime"
	"syscall"
)

// pipeSize is the size of a pipe in bytes, and mostPipes how many are lent at the same
// time. Together they are the 64 MiB that Linux allows an unprivileged user by default
// (pipe-user-pages-soft), so that clients which do not read cannot take more of the
// kernel's memory. Where no pipe of a useful size can be had, bytes go through a buffer.
const (
	pipeSize  = 1 << 20
	mostPipes = 64
)

// Constants of system calls for which package syscall has no names.
const (
	setPipeSize    = 1031 // F_SETPIPE_SZ and F_GETPIPE_SZ of fcntl(2)
	getPipeSize    = 1032
	spliceNonblock = 0x2 // SPLICE_F_NONBLOCK of splice(2)
)

// A splicer moves the bytes of one direction from socket to socket inside the kernel, by
// splice(2). It is used by the goroutine of that direction only. A nil splicer moves
// nothing.
//
// It has a pipe only while there are bytes in it, because a pipe takes two descriptors.
// It is used only for bulk: a short message is as cheap through a buffer.
type splicer struct {
	src, dst        syscall.RawConn
	pipes           *Pipes
	onFill, onDrain func(fd uintptr) bool // made once, as the callbacks of Conn

	bulk        bool // the last read filled its buffer or returned as much as a buffer holds
	unsupported bool // these sockets do not support splice
	pipe        *pipe
	inPipe      int // bytes in pipe

	n   int   // bytes that the last callback moved
	err error // error of the last callback
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

// wanted reports whether the next bytes should be moved by fill and drain.
func (s *splicer) wanted() bool { return s != nil && s.bulk }

// noteRead notes how many bytes the last read into a buffer has returned.
func (s *splicer) noteRead(n int) {
	if s != nil {
		s.bulk = n == bufferSize && !s.unsupported
	}
}

// fill waits for bytes and moves as many as fit into a pipe; drain must then move all of
// them out. It returns io.EOF at the end. If it returns zero without an error, the bytes
// must go through a buffer, because there is no pipe or the sockets do not support splice.
func (s *splicer) fill() (int, error) {
	if err := s.src.Read(s.onFill); err != nil {
		return 0, err
	}
	s.inPipe = s.n
	s.bulk = s.n >= bufferSize
	return s.n, s.err
}

// drain waits until dst has room, moves bytes from the pipe to it and returns their
// number.
func (s *splicer) drain() (int, error) {
	if err := s.dst.Write(s.onDrain); err != nil {
		s.drop()
		return 0, err
	}
	s.inPipe -= s.n
	switch {
	case s.err != nil:
		s.drop()
	case s.inPipe == 0:
		s.pipes.put(s.pipe)
		s.pipe = nil
	}
	return s.n, s.err
}

// drop closes a pipe that has bytes in it, which must not reach another tunnel.
func (s *splicer) drop() {
	s.pipes.lent.Add(-1)
	s.pipe.close()
	s.pipe, s.inPipe = nil, 0
}

// RawConn calls fillFrom and drainTo, as it calls the callbacks of Conn.

// fillFrom splices from a socket into a pipe.
func (s *splicer) fillFrom(fd uintptr) bool {
	var p *pipe
	if p = s.pipes.get(); p == nil {
		s.n, s.err = 0, nil
		return true
	}
	var notReady bool
	s.n, notReady, s.err = splice(int(fd), p.w, pipeSize)
	switch {
	case s.n > 0:
		s.pipe = p
		return true
	case errors.Is(s.err, syscall.EINVAL): // the socket does not support splice
		s.unsupported, s.err = true, nil
	case s.err == nil && !notReady:
		s.err = io.EOF
	}
	s.pipes.put(p)
	return !notReady
}

// drainTo splices from the pipe into a socket.
func (s *splicer) drainTo(fd uintptr) bool {
	var notReady bool
	s.n, notReady, s.err = splice(s.pipe.r, int(fd), s.inPipe)
	return !notReady
}

// splice is splice(2) where one end is a non-blocking socket. notReady means that the
// socket must be waited for. Zero bytes without an error while the socket is ready mean
// the end of file.
func splice(from, to, most int) (n int, notReady bool, err error) {
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

// A pipe is a pipe(2). It is empty unless a splicer uses it.
type pipe struct {
	ends
	cleanup runtime.Cleanup
}

// ends holds the two ends of a pipe.
type ends struct {
	r, w int
	give func(n int) // gives the descriptors back; may be nil
}

// close closes both ends and gives their descriptors back.
func (e ends) close() {
	_ = syscall.Close(e.r)
	_ = syscall.Close(e.w)
	if e.give != nil {
		e.give(2)
	}
}

// newPipe returns a new pipe. It returns nil if there are no descriptors for it, or if
// the kernel gives it less memory than a buffer has.
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

// size makes a pipe pipeSize large if the kernel permits it, and returns its size in
// bytes.
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

// close closes the pipe.
func (p *pipe) close() {
	p.cleanup.Stop()
	p.ends.close()
}

// get lends an empty pipe. It returns nil if mostPipes are lent or none can be made.
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

// put takes a pipe back, which must be empty.
func (p *Pipes) put(lent *pipe) {
	p.lent.Add(-1)
	if p.cfg.Scarce != nil && p.cfg.Scarce() {
		lent.close()
		return
	}
	p.free.Put(lent)
}
