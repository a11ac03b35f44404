package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/exeat-dev/exeat/proxy/h2"
	"github.com/exeat-dev/exeat/proxy/listen"
)

// The bounds of the doors for DNS.
const (
	maxDatagrams   = 1024             // datagrams that are answered at the same time; more are dropped
	maxPerStream   = 64               // queries that are answered at the same time on one connection
	maxQuery       = 4096             // bytes of a query
	maxAnswer      = 65535            // bytes of an answer
	dnsIdle        = 30 * time.Second // of a connection between two queries
	dnsRead        = 5 * time.Second  // for one query, from its first byte
	dnsWrite       = 2 * time.Second
	dnsTimeout     = 10 * time.Second // for an answer of a gateway
	dnsHead        = 12               // bytes of the head of a message
	usualUDP       = 512              // bytes of an answer over UDP to a query without EDNS
	mostUDP        = 1232             // bytes of an answer over UDP that is never fragmented
	dnsContentType = "application/dns-message"
)

// dnsDoor is a door for DNS.
type dnsDoor struct{ *Agent }

// serveDatagrams answers the queries of a socket until it is closed.
func (a dnsDoor) serveDatagrams(ctx context.Context, socket *net.UDPConn) {
	var answering sync.WaitGroup
	defer answering.Wait()
	var buf [maxQuery + 1]byte
	for {
		n, peer, err := socket.ReadFromUDPAddrPort(buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return
		case err != nil: // such as a lack of memory
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
				return
			}
			continue
		}
		q, ok := parseQuery(buf[:n])
		if !ok || n > maxQuery {
			continue
		}
		select {
		case a.queries <- struct{}{}:
		default:
			continue // the client asks again
		}
		q.msg = append([]byte(nil), q.msg...)
		answering.Go(func() {
			defer func() { <-a.queries }()
			a.answerDatagram(ctx, socket, peer, q)
		})
	}
}

func (a dnsDoor) answerDatagram(ctx context.Context, socket *net.UDPConn, peer netip.AddrPort, q query) {
	defer a.contain(ctx)
	answer := a.resolve(ctx, q)
	if len(answer) > q.room {
		answer = q.truncated()
	}
	_, _ = socket.WriteToUDPAddrPort(answer, peer) // the client asks again if it cannot be reached
}

// contain logs a panic.
func (a dnsDoor) contain(ctx context.Context) {
	if cause := recover(); cause != nil {
		a.panicked(ctx, cause, debug.Stack())
	}
}

// serve answers the queries of a connection until it ends, many at the same time (RFC 7766).
func (a dnsDoor) serve(ctx context.Context, conn *listen.Conn) {
	var answering sync.WaitGroup
	defer answering.Wait()
	var writing sync.Mutex
	slots := make(chan struct{}, maxPerStream)
	r := bufio.NewReaderSize(conn, dnsHead+2)
	for {
		msg, err := readMessage(conn, r)
		if err != nil {
			return
		}
		q, ok := parseQuery(msg)
		if !ok {
			return
		}
		slots <- struct{}{}
		if !conn.Begin() {
			return
		}
		answering.Go(func() {
			defer func() { <-slots }()
			defer conn.End()
			defer a.contain(ctx)
			answer := a.resolve(ctx, q)
			writing.Lock()
			defer writing.Unlock()
			_ = conn.SetWriteDeadline(time.Now().Add(dnsWrite))                                                               // an error means that the connection is closed
			if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil { //nolint:gosec // G115: at most maxAnswer
				conn.Cut()
			}
		})
	}
}

// readMessage reads a message behind its length.
func readMessage(conn *listen.Conn, r *bufio.Reader) ([]byte, error) {
	if err := conn.SetReadDeadline(time.Now().Add(dnsIdle)); err != nil {
		return nil, err
	}
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(dnsRead)); err != nil {
		return nil, err
	}
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(length[:]))
	if size < dnsHead || size > maxQuery {
		return nil, errNoQuery
	}
	msg := make([]byte, size)
	_, err := io.ReadFull(r, msg)
	return msg, err
}

var errNoQuery = errors.New("that is no DNS query")

// query is a query as far as the agent reads it. The gateway reads the rest.
type query struct {
	msg      []byte
	question int  // the end of the question in msg; dnsHead if it has none
	room     int  // bytes of an answer over UDP
	edns     bool // there is an OPT record
}

// parseQuery reads a query. It returns false for what is none, and gets no answer.
func parseQuery(msg []byte) (query, bool) {
	const responds = 0x80
	if len(msg) < dnsHead || msg[2]&responds != 0 {
		return query{}, false
	}
	q := query{msg: msg, question: dnsHead, room: usualUDP}
	if binary.BigEndian.Uint16(msg[4:]) != 1 {
		return q, true
	}
	end := dnsHead
	for end < len(msg) && msg[end] != 0 && msg[end] < 64 {
		end += 1 + int(msg[end])
	}
	const rest, opt = 1 + 4, 41 // the root, type and class; the type of OPT (RFC 6891)
	if end += rest; end > len(msg) || msg[end-rest] != 0 {
		return q, true
	}
	q.question = end
	// Only an OPT is expected behind the question: its name is the root.
	if more := msg[end:]; len(more) >= 11 && more[0] == 0 && binary.BigEndian.Uint16(more[1:]) == opt {
		q.edns = true
		q.room = min(mostUDP, max(usualUDP, int(binary.BigEndian.Uint16(more[3:]))))
	}
	return q, true
}

// head returns the beginning of a response without records: the head with some flags, and the
// question.
func (q *query) head(flags uint16) []byte {
	const response, kept = 0x8000, 0x7910 // QR; opcode, RD and CD stay
	b := append([]byte(nil), q.msg[:q.question]...)
	binary.BigEndian.PutUint16(b[2:], response|binary.BigEndian.Uint16(b[2:])&kept|flags)
	clear(b[4:dnsHead])
	if q.question > dnsHead {
		b[5] = 1
	}
	return b
}

// truncated returns the response that makes a client ask over TCP.
func (q *query) truncated() []byte {
	const truncated = 0x0200
	return q.head(truncated)
}

// failed returns the response SERVFAIL, with a text for the client (RFC 8914) if it reads such.
func (q *query) failed(why string) []byte {
	const serverFailure, networkError, optionEDE = 2, 23, 15
	b := q.head(serverFailure)
	if !q.edns {
		return b
	}
	why = why[:min(len(why), 200)]
	b[dnsHead-1] = 1
	b = append(b, 0, 0, 41, mostUDP>>8, mostUDP&0xff, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(6+len(why))) //nolint:gosec // G115: it is short
	b = binary.BigEndian.AppendUint16(b, optionEDE)
	b = binary.BigEndian.AppendUint16(b, uint16(2+len(why))) //nolint:gosec // G115: as above
	b = binary.BigEndian.AppendUint16(b, networkError)
	return append(b, why...)
}

// resolve asks a gateway, and returns its response, or SERVFAIL.
func (a dnsDoor) resolve(ctx context.Context, q query) []byte {
	ctx, cancel := context.WithTimeout(ctx, dnsTimeout)
	defer cancel()
	answer, err := a.askDNS(ctx, q)
	if err != nil {
		return q.failed(err.Error())
	}
	return answer
}

// askDNS sends a query over HTTPS (RFC 8484).
func (a dnsDoor) askDNS(ctx context.Context, q query) ([]byte, error) {
	if a.draining.Load() {
		return nil, errors.New("the agent is shutting down")
	}
	fields := []h2.Field{
		{Name: ":method", Value: http.MethodPost},
		{Name: ":scheme", Value: "https"},
		{Name: ":authority", Value: a.cfg.Uplink.TrustDomain.Name()},
		{Name: ":path", Value: "/dns-query"},
		{Name: "content-type", Value: dnsContentType},
		{Name: "accept", Value: dnsContentType},
		{Name: "content-length", Value: strconv.Itoa(len(q.msg))},
	}
	s, refused, err := a.ask(ctx, fields, q.msg)
	switch {
	case refused != nil:
		return nil, errors.New("the gateway refuses the query: " + strconv.Itoa(refused.Status) + " " + refused.Phrase)
	case err != nil:
		return nil, err
	}
	defer func() { _ = s.Close() }()
	deadline, _ := ctx.Deadline()
	_ = s.SetReadDeadline(deadline) // a stream takes any deadline
	answer, err := io.ReadAll(io.LimitReader(s.Stream, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	const responds = 0x80
	if len(answer) < dnsHead || len(answer) > maxAnswer || [2]byte(answer) != [2]byte(q.msg) || answer[2]&responds == 0 {
		return nil, errors.New("the gateway's response is no answer to the query")
	}
	return answer, nil
}
