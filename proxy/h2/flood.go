package h2

import (
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// What frames cost, and what pays for them. A connection begins with fullBudget, which is
// also the most that it can have. It ends when it has spent more.
const (
	fullBudget = 1000
	perSecond  = 10 // added for each second

	costFrame = 1  // a frame that carries nothing: PING, SETTINGS, PRIORITY, empty DATA, an unknown type
	costReset = 10 // a stream that is reset before it was answered: it may have cost a dial

	paidData    = 2  // a DATA frame of more than smallData bytes that came, or data that was sent
	paidAnswer  = 10 // a request that was answered with success
	paidRefusal = 2  // any other answer: Go's client resets the stream after it, with a PING

	// A DATA frame of so few bytes pays nothing, and costs nothing either: it carries
	// something, as a TLS record of one byte does.
	smallData = 64

	// A client may return credit for each piece of data that it reads, on the stream and on
	// the connection. Go's client does so for pieces of 4 KiB.
	creditsEach = 2
	creditPiece = 4 << 10
)

// budget bounds what a peer may send without carrying anything. An honest client sends a
// few PING and WINDOW_UPDATE frames for the data that it carries, and ends nearly every
// tunnel with RST_STREAM after its end. One goroutine may spend, and any may pay.
type budget struct {
	left    int64
	at      time.Time    // when perSecond was added last
	paid    atomic.Int64 // what was paid since the last call of spend
	credits atomic.Int64 // how many WINDOW_UPDATE frames the data that was sent has paid for
}

// spend takes what a frame costs. It returns an error if too little is left.
func (b *budget) spend(cost int64, what string) error {
	b.left = min(fullBudget, b.left+b.paid.Swap(0)) - cost
	if b.left >= 0 {
		return nil
	}
	now := time.Now()
	if earned := int64(now.Sub(b.at) / (time.Second / perSecond)); earned > 0 {
		b.at = now
		b.left = min(fullBudget, b.left+earned)
	}
	if b.left >= 0 {
		return nil
	}
	return violation(http2.ErrCodeEnhanceYourCalm, "too many frames that carry nothing, at last "+what)
}

// pay adds to what is left.
func (b *budget) pay(n int64) { b.paid.Add(n) }

// paySent pays for n bytes of data that were sent where there was room for room bytes. A
// peer that makes room for a few bytes at a time pays for that itself.
func (b *budget) paySent(n, room int) {
	if n == room && n <= smallData {
		return
	}
	b.pay(paidData)
	b.credits.Add(creditsEach * int64(1+n/creditPiece))
}

// spendCredit takes what a WINDOW_UPDATE frame costs, as spend does. It is free for data that
// was sent. A client may read what it has received all at once and much later, so these
// payments have no bound.
func (b *budget) spendCredit(what string) error {
	if b.credits.Load() > 0 {
		b.credits.Add(-1)
		return nil
	}
	return b.spend(costFrame, what)
}
