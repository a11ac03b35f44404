package front

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/refusal"
	"github.com/exeat-dev/exeat/proxy/tunnel"
)

// The numbers of SOCKS5 (RFC 1928).
const (
	socksVersion = 5

	methodNone         = 0x00 // no authentication
	methodUnacceptable = 0xff

	commandConnect      = 1
	commandBind         = 2
	commandUDPAssociate = 3

	addressIPv4 = 1
	addressName = 3
	addressIPv6 = 4

	replySucceeded           = 0
	replyFailure             = 1
	replyNotAllowed          = 2
	replyHostUnreachable     = 4
	replyConnectionRefused   = 5
	replyTTLExpired          = 6
	replyCommandNotSupported = 7
	replyAddressNotSupported = 8

	socksHead = 4                               // bytes of a request before its address
	socksPort = 2                               // bytes of a port
	maxSOCKS  = socksHead + 1 + 255 + socksPort // bytes of the longest message, a request with a name
)

// SOCKS5 is the front of SOCKS5 (RFC 1928), of which it takes the command CONNECT without
// authentication. It is safe for concurrent use.
type SOCKS5 struct {
	cfg   Config
	conns connections
}

// NewSOCKS5 returns a front.
func NewSOCKS5(cfg Config) *SOCKS5 {
	if cfg.HeadTimeout <= 0 {
		cfg.HeadTimeout = DefaultHeadTimeout
	}
	return &SOCKS5{cfg: cfg}
}

// Serve answers the request of one connection. It returns the function that relays the
// tunnel, or nil if none was opened. It does not recover a panic of the handler.
func (f *SOCKS5) Serve(ctx context.Context, conn Conn, handler Handler) (run func()) {
	c := &socks5{front: f, conn: conn, waiter: waiter{conn: conn.Conn}}
	f.conns.add(&c.waiter)
	defer f.conns.remove(&c.waiter)
	r := c.next()
	if r == nil {
		return nil
	}
	return c.answer(r, handler.Handle(ctx, r))
}

// socks5 is one connection.
type socks5 struct {
	front  *SOCKS5
	conn   Conn
	waiter waiter
	buffer [maxSOCKS]byte // the message that is read, and what has come behind it
	come   int            // number of bytes in buffer

	isHTTP   bool // the client speaks HTTP
	selected bool // the client knows that it needs no authentication, and waits for a reply
	reply    byte // reply code for the reason of the request, if ReplyCode has none; zero otherwise
}

// next reads the request. It returns nil if nothing came.
func (c *socks5) next() *Request {
	began := time.Now()
	if !c.await(began) {
		return nil
	}
	r := &Request{Client: c.conn.Conn, SOCKS5: true}
	err := c.conn.SetReadDeadline(began.Add(c.front.cfg.HeadTimeout))
	if err == nil {
		err = c.read(r)
	}
	if err == nil {
		return r
	}
	switch r.Reason = headReason(err); r.Reason { //nolint:exhaustive // the others are those of a head of HTTP
	case allowlist.HeadTimeout:
		r.Cause = fmt.Sprintf("%d bytes of a message came within %v", c.come, c.front.cfg.HeadTimeout)
	default:
		r.Cause = fmt.Sprintf("reading a message, of which %d bytes came: %v", c.come, err)
	}
	return r
}

// await waits for the first byte. It returns false if none came and the connection is over.
func (c *socks5) await(now time.Time) bool {
	if !c.front.conns.begin(&c.waiter, now, c.front.cfg.HeadTimeout, true) {
		return false
	}
	err := c.fill(1)
	c.waiter.end()
	if err != nil && c.front.conns.isOrderly() {
		tunnel.Linger(c.conn.Conn)
	}
	return err == nil
}

// fill reads until the first n bytes of the message have come.
func (c *socks5) fill(n int) error {
	read, err := io.ReadAtLeast(c.conn, c.buffer[c.come:], n-c.come)
	c.come += read
	return err
}

// read reads the greeting, answers it, and reads the request. It sets the reason if one of
// them is refused, and returns an error if they did not come.
func (c *socks5) read(r *Request) error {
	if c.buffer[0] != socksVersion {
		c.refuseOther(r)
		return nil
	}
	if err := c.fill(2); err != nil {
		return err
	}
	greeting := 2 + int(c.buffer[1])
	if err := c.fill(greeting); err != nil {
		return err
	}
	if !bytes.Contains(c.buffer[2:greeting], []byte{methodNone}) {
		r.Reason, r.Detail = allowlist.MalformedHeader, "the client does not offer to connect without authentication, which is method 0 of SOCKS5"
		return nil
	}
	if err := c.write([]byte{socksVersion, methodNone}); err != nil {
		return errors.New("the answer to the greeting: " + err.Error()) // a timeout of it is none of the request
	}
	c.selected = true
	c.come = copy(c.buffer[:], c.buffer[greeting:c.come])
	return c.readRequest(r)
}

// refuseOther sets the reason for a client that does not speak SOCKS5.
func (c *socks5) refuseOther(r *Request) {
	const handshake = 0x16 // of TLS (RFC 8446 section 5.1)
	r.Reason = allowlist.MalformedRequestLine
	switch first := c.buffer[0]; {
	case 'A' <= first && first <= 'Z', 'a' <= first && first <= 'z':
		c.isHTTP = true
		r.Detail = "this listener speaks SOCKS5 and not HTTP: write socks5h:// in the URL of the proxy"
	case first == handshake:
		r.Detail = "a TLS ClientHello came on a listener that speaks SOCKS5 without TLS"
	case first == 4:
		r.Reason, r.Detail = allowlist.UnsupportedVersion, "SOCKS4 came on a listener that speaks SOCKS5"
	default:
		r.Detail = fmt.Sprintf("the first byte is 0x%02x, and 0x05 in SOCKS5", first)
	}
}

// readRequest reads the request that follows the greeting.
func (c *socks5) readRequest(r *Request) error {
	if err := c.fill(socksHead); err != nil {
		return err
	}
	version, command, reserved, kind := c.buffer[0], c.buffer[1], c.buffer[2], c.buffer[3]
	if version != socksVersion || reserved != 0 {
		r.Reason = allowlist.MalformedRequestLine
		r.Detail = fmt.Sprintf("the request has the version %d, which must be 5, and the reserved byte %d, which must be 0", version, reserved)
		return nil
	}
	r.Method = commandName(command)
	length, err := c.addressLength(kind)
	if err != nil {
		return err
	}
	if length > 0 {
		end := socksHead + length + socksPort
		if err := c.fill(end); err != nil {
			return err
		}
		r.early = append([]byte(nil), c.buffer[end:c.come]...)
		r.Target = target(kind, c.buffer[socksHead:end])
	}
	dest, err := allowlist.ParseDestination(r.Target)
	r.Asked.Dest = dest // zero if there is an error
	switch {
	case command != commandConnect:
		r.Reason, r.Detail = allowlist.ConnectOnly, fmt.Sprintf("the command %d of SOCKS5 is not supported: it must be 1, CONNECT", command)
	case length == 0:
		r.Reason, r.Detail = allowlist.MalformedTarget, fmt.Sprintf("the address type %d is unknown", kind)
		c.reply = replyAddressNotSupported
	case err != nil:
		r.Reason = r.malformed(err)
	}
	return nil
}

// addressLength returns the length of an address, with the byte that says how long a name is.
// It is zero for an unknown type of address.
func (c *socks5) addressLength(kind byte) (int, error) {
	switch kind {
	case addressIPv4:
		return net.IPv4len, nil
	case addressIPv6:
		return net.IPv6len, nil
	case addressName:
		err := c.fill(socksHead + 1)
		return 1 + int(c.buffer[socksHead]), err
	}
	return 0, nil
}

// commandName returns the name of a command as the method of its request, or "" if there is
// no such command.
func commandName(command byte) string {
	switch command {
	case commandConnect:
		return http.MethodConnect
	case commandBind:
		return "BIND"
	case commandUDPAssociate:
		return "UDP ASSOCIATE"
	}
	return ""
}

// target returns the address and the port of a request in the form of the target of a
// CONNECT. Brackets stand around every host with a colon, so that no part of a name is taken
// for the port.
func target(kind byte, address []byte) string {
	host, port := address[:len(address)-socksPort], binary.BigEndian.Uint16(address[len(address)-socksPort:])
	text := ""
	if kind == addressName {
		text = string(host[1:]) // behind its length
	} else if addr, ok := netip.AddrFromSlice(host); ok {
		text = addr.String()
	}
	return net.JoinHostPort(text, strconv.Itoa(int(port)))
}

// answer writes the answer to a request. It returns the function that relays the tunnel if
// one was opened.
func (c *socks5) answer(r *Request, a Answer) (run func()) {
	defer a.done(errNotWritten)
	switch a.Kind {
	case Opened:
		return c.open(&a)
	case Refused:
		c.refuse(r, &a)
	case Forwarded: // nothing was, but a handler that has panicked returns this
		a.Done = nil
		if a.End == Abort {
			c.conn.Abort()
		}
	case Local: // only a request of HTTP has such an answer
	}
	return nil
}

// open tells the client that its tunnel is open, and returns the function that relays it.
func (c *socks5) open(a *Answer) (run func()) {
	err := c.write(reply(replySucceeded))
	a.done(err)
	if err != nil {
		return nil
	}
	return a.Run
}

// refuse writes a refusal, and gives a client that is still sending time to read it.
func (c *socks5) refuse(r *Request, a *Answer) {
	resp := a.refusal(r, c.front.cfg.Disclosure)
	text := c.refusal(&resp, a.Given == nil && a.Refusal.Reason == r.Reason)
	var err error
	if len(text) > 0 {
		err = c.write(text)
	}
	a.done(err)
	if err == nil && len(text) > 0 {
		tunnel.Linger(c.conn.Conn)
	}
}

// refusal returns a refusal in the form that the client waits for. It is empty for a reason
// without a status. ours says that the front itself has found the reason.
func (c *socks5) refusal(resp *refusal.Response, ours bool) []byte {
	switch {
	case c.isHTTP:
		return resp.Append(nil, false)
	case resp.Status == 0:
		return nil
	case !c.selected:
		return []byte{socksVersion, methodUnacceptable}
	case c.reply != 0 && ours:
		return reply(c.reply)
	}
	return reply(ReplyCode(resp.Status, resp.Error))
}

// ReplyCode returns the reply code of SOCKS5 (RFC 1928 section 6) for a refusal by HTTP: its
// status, and its error type of Proxy-Status (RFC 9209 section 2.3), which may be "".
func ReplyCode(status int, proxyError string) byte {
	switch status {
	case http.StatusForbidden, http.StatusProxyAuthRequired, http.StatusTooManyRequests:
		return replyNotAllowed
	case http.StatusMethodNotAllowed:
		return replyCommandNotSupported
	case http.StatusBadGateway:
		if proxyError == allowlist.DialRefused.Info().ProxyError {
			return replyConnectionRefused
		}
		return replyHostUnreachable
	case http.StatusGatewayTimeout:
		return replyTTLExpired
	}
	return replyFailure
}

// reply returns the reply to a request. It has no address, since a client learns nothing of
// the gateway's own connections.
func reply(code byte) []byte {
	return []byte{socksVersion, code, 0, addressIPv4, 0, 0, 0, 0, 0, 0}
}

// write sends an answer within the head timeout.
func (c *socks5) write(answer []byte) error { return c.conn.write(answer, c.front.cfg.HeadTimeout) }
