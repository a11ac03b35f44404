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

	paidData   = 2  // a DATA frame of more than smallData bytes that came, or data that was sent
	paidAnswer = 10 // a request that was answered with success

	// A DATA frame of so few bytes pays nothing, and costs nothing either: it carries
	// something, as a TLS record of one byte does.
	smallData = 64

	// perCredit is the data for which a client returns credit by one WINDOW_UPDATE on the
	// stream and one on the connection. Go does so for each 4 KiB, others for each frame.
	perCredit = 4 << 10
)

// budget bounds what a peer may send without carrying anything. An honest client sends a
// few PING and WINDOW_UPDATE frames for the data that it carries, and ends nearly every
// tunnel with RST_STREAM after its end. One goroutine may spend, and any may pay.
type budget struct {
	left int64
	at   time.Time    // when perSecond was added last
	paid atomic.Int64 // what was paid since the last call of spend

	credits atomic.Int64 // WINDOW_UPDATE frames that cost nothing, for data that was sent
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

// sent notes a DATA frame of n bytes that is sent: the peer may return credit for it.
func (b *budget) sent(n int) { b.credits.Add(2 * int64(1+n/perCredit)) }

// spendCredit takes what a WINDOW_UPDATE costs, which is nothing if it may return credit.
func (b *budget) spendCredit() error {
	if b.credits.Load() > 0 { // only sent adds to it meanwhile
		b.credits.Add(-1)
		return nil
	}
	return b.spend(costFrame, "WINDOW_UPDATE")
}
