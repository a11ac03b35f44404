package h2

import "sync/atomic"

// DefaultMemory is the default of NewMemory.
const DefaultMemory = 256 << 20

// connMemory is how many bytes may wait in the streams of one connection before credit for
// the connection is held back, which stalls all its streams: those of 64 streams that are
// not read.
const connMemory = 64 * streamWindow

// Memory counts the bytes that wait in the streams of many connections. While more wait
// than it allows, a peer gets credit for its connection only for what was taken from it, so
// that each connection can add the bytes of one window at most. It is safe for concurrent
// use.
type Memory struct {
	most   int64
	queued atomic.Int64
}

// NewMemory returns a bound on waiting bytes; zero means DefaultMemory.
func NewMemory(most int64) *Memory {
	if most <= 0 {
		most = DefaultMemory
	}
	return &Memory{most: most}
}

// Queued returns the number of bytes that wait.
func (m *Memory) Queued() int64 { return m.queued.Load() }

// queue keeps bytes in borrowed chunks, in order. The zero value is empty.
type queue struct {
	chunks     []*chunk
	start, end int // offsets of the first byte in the first chunk, and behind the last one in the last
}

func (q *queue) isEmpty() bool { return len(q.chunks) == 0 }

// add adds bytes.
func (q *queue) add(p []byte) {
	for len(p) > 0 {
		if len(q.chunks) == 0 || q.end == chunkSize {
			q.chunks, q.end = append(q.chunks, chunks.get()), 0
		}
		n := copy(q.chunks[len(q.chunks)-1][q.end:], p)
		q.end += n
		p = p[n:]
	}
}

// take moves bytes to p and returns their number.
func (q *queue) take(p []byte) (n int) {
	for n < len(p) && !q.isEmpty() {
		first := q.chunks[0]
		end := chunkSize
		if len(q.chunks) == 1 {
			end = q.end
		}
		m := copy(p[n:], first[q.start:end])
		n += m
		if q.start += m; q.start == end {
			chunks.put(first)
			q.chunks, q.start = q.chunks[1:], 0
		}
	}
	if q.isEmpty() {
		*q = queue{}
	}
	return n
}

// drop throws all bytes away and returns their number.
func (q *queue) drop() (n int) {
	for i, c := range q.chunks {
		start, end := 0, chunkSize
		if i == 0 {
			start = q.start
		}
		if i == len(q.chunks)-1 {
			end = q.end
		}
		n += end - start
		chunks.put(c)
	}
	*q = queue{}
	return n
}
