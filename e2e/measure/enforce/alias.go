package enforce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// aliased is the destination that is an alias of another name, of which the policy
// says nothing until that is denied.
const aliased = 7

const aliasName = "edge." + trustDomain

// aliasDenied forbids what the gateway was led to over the alias.
func (w *world) aliasDenied() scenario {
	return scenario{
		name: "an alias is denied", reason: "denied-by-rule",
		victim: func(_, destination int) bool { return destination == aliased },
		forbid: func(context.Context) (time.Time, error) {
			return w.Replace("policy.yaml", strings.ReplaceAll(w.policy(everything), "    allow:\n", "    deny: [{host: "+aliasName+"}]\n    allow:\n"))
		},
		restore: func() (time.Time, error) { return w.Replace("policy.yaml", w.policy(everything)) },
	}
}

// startAliases starts the name server that knows the alias. It ends with the site.
func (w *world) startAliases(ctx context.Context) error {
	conn, err := new(net.ListenConfig).ListenPacket(ctx, "udp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.names = conn
	go answerAliases(conn)
	return nil
}

// resolver is what the configuration says of it.
func (w *world) resolver() string {
	return fmt.Sprintf("  servers: [{udp: %q}]\n", w.names.LocalAddr())
}

func answerAliases(conn net.PacketConn) {
	buf := make([]byte, 4096)
	for {
		n, peer, err := conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if reply := aliasReply(buf[:n]); err == nil && reply != nil {
			_, _ = conn.WriteTo(reply, peer)
		}
	}
}

// aliasReply answers a question for an IPv4 address by the alias, and any other by
// nothing; nil for what is no question.
func aliasReply(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	if q.Type == dnsmessage.TypeA {
		alias := dnsmessage.MustNewName(aliasName + ".")
		const ttl = 24 * 3600 // seconds
		m.Answers = []dnsmessage.Resource{
			{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}, Body: &dnsmessage.CNAMEResource{CNAME: alias}},
			{Header: dnsmessage.ResourceHeader{Name: alias, Class: dnsmessage.ClassINET, TTL: ttl}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}},
		}
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}
