package limit

import (
	"net/netip"
	"sync"
)

// Share is the kind of an owner of slots. It determines how many slots one owner may
// have.
type Share uint8

// The shares. The zero value is the smallest.
const (
	ShareSource   Share = iota // a source address, user or listener without an identity
	ShareProxy                 // a load balancer whose PROXY protocol header has not come yet
	ShareIdentity              // an identity that a certificate has proven
	ShareLocal                 // a user, a listener or an address whose identity the listener's configuration gives
)

// known reports whether owners of this kind have an identity.
func (s Share) known() bool { return s == ShareIdentity || s == ShareLocal }

// Owner is the party whose share a slot is counted in.
type Owner struct {
	Share Share
	// Addr is the source address (see allowlist.SourceOf), or the address of the load
	// balancer; with ShareLocal it is the address by which the configuration identifies
	// the caller. It is the zero value on a unix socket.
	Addr netip.Addr
	// Name is the identity, the user or the listener. It is "" for an address without
	// an identity.
	Name string
}

// Cause names the limit for which a connection was closed or refused.
type Cause uint8

// The causes. The zero value means that there was room.
const (
	NoCause           Cause = iota
	CauseSource             // the source address has all the slots that it may have
	CauseUnidentified       // all callers without an identity together have all of theirs
	CauseCaller             // the identity, user or listener has all the slots that it may have
	CauseAll                // all callers with an identity together have all of theirs
	CauseDescriptors        // the process has no file descriptor left for the connection
)

// Causes returns all causes except NoCause.
func Causes() []Cause {
	return []Cause{CauseSource, CauseUnidentified, CauseCaller, CauseAll, CauseDescriptors}
}

// String returns the word that metrics and records use; it is "" for NoCause.
func (c Cause) String() string {
	switch c {
	case CauseSource:
		return "source"
	case CauseUnidentified:
		return "unidentified"
	case CauseCaller:
		return "caller"
	case CauseAll:
		return "all"
	case CauseDescriptors:
		return "descriptors"
	case NoCause:
	}
	return ""
}

// Shares says how many slots there are, and how many of them one owner may have. A
// field that is zero grants no slot.
type Shares struct {
	Unidentified int // slots of all callers without an identity together
	PerSource    int // slots of one source address among them
	Identified   int // slots of all callers with an identity together
	PerIdentity  int // slots of one proven identity
	PerLocal     int // slots of one user, listener or address whose identity the listener's configuration gives

	// IdleYields allows closing the connection of a proven identity while the connection
	// has no request. Connections of all other owners may always be closed then.
	IdleYields bool
	// AllYield allows closing even a connection that has a request, if its owner opens
	// another connection and has none without a request.
	AllYield bool
}

// SharesOf divides a total. A quarter is for callers without an identity, and one
// source address may have an eighth of that quarter. The rest is for callers with an
// identity: a proven identity may have half of the rest, and one that the listener's
// configuration gives a quarter of the total. Every share is at least one, so that a
// total below two counts as two.
func SharesOf(total int) Shares {
	quarter := max(1, total/4)
	rest := max(1, total-quarter)
	return Shares{
		Unidentified: quarter, PerSource: max(1, quarter/8),
		Identified: rest, PerIdentity: max(1, rest/2), PerLocal: min(quarter, rest),
	}
}

// Slots bounds the number of open connections and shares it out: callers without an
// identity cannot take the slots of callers with one, and no owner takes more than
// its share. When a share is full, the slot that has been without a request for the
// longest time is given up for the new connection. A slot with a request is never
// given up, unless AllYield says so.
//
// Every call takes a constant number of steps, however many slots there are. Slots is
// safe for concurrent use. The zero value has no slot.
type Slots struct {
	shares Shares

	mu                       sync.Mutex
	unidentified, identified side
	spare                    *account // an unused account, kept so that a new connection allocates none
}

// NewSlots returns Slots that are all free.
func NewSlots(shares Shares) *Slots {
	return &Slots{
		shares:       shares,
		unidentified: newSide(shares.Unidentified),
		identified:   newSide(shares.Identified),
	}
}

// InUse returns the number of slots in use, by callers with and without an identity.
func (s *Slots) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unidentified.used + s.identified.used
}

// Slot is the slot of one connection. The methods of the zero value do nothing. A Slot
// must not be copied.
type Slot struct {
	slots      *Slots
	account    *account // the owner's account; nil before Enter and after the end
	link       link[Slot]
	requests   int         // number of requests under way
	cut        func(Cause) // closes the connection
	givenUpFor Cause       // why the slot was given up; NoCause if it was not
}

// Enter takes a slot for an owner; Leave must follow. If there is none, Enter returns
// the cause. If another connection gives up its slot, Enter calls the cut function of
// that connection before it returns. A cut function must not block, and must not call
// a method of Slots or Slot.
func (s *Slots) Enter(slot *Slot, owner Owner, cut func(Cause)) Cause {
	s.mu.Lock()
	victim, cause := s.makeRoom(owner)
	if cause == NoCause {
		slot.slots, slot.cut = s, cut
		s.put(slot, owner)
	}
	s.mu.Unlock()
	victim.giveUp()
	return cause
}

// Move gives a slot another owner, for example when its caller has shown an identity.
// If that owner's share is full, the slot keeps its owner and Move returns the cause.
// For a slot that was given up, Move returns the cause of that.
func (s *Slot) Move(owner Owner) Cause {
	slots := s.slots
	if slots == nil {
		return NoCause
	}
	slots.mu.Lock()
	if s.account == nil || s.account.owner == owner {
		slots.mu.Unlock()
		return s.givenUpFor
	}
	before := s.account.owner
	slots.drop(s) // before makeRoom, so that the slot itself does not count against its own side
	victim, cause := slots.makeRoom(owner)
	if cause != NoCause {
		owner = before
	}
	slots.put(s, owner)
	slots.mu.Unlock()
	victim.giveUp()
	return cause
}

// Begin notes that a request has come. The slot is not given up until End has been
// called as often as Begin. Begin returns false if the slot was given up before.
func (s *Slot) Begin() bool {
	if s.slots == nil {
		return true
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	if s.account == nil {
		return false
	}
	if s.requests++; s.requests == 1 {
		s.account.beginRequest(s)
	}
	return true
}

// End notes that a request is over. It does nothing if the slot was given up.
func (s *Slot) End() {
	if s.slots == nil {
		return
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	if s.account == nil || s.requests == 0 {
		return
	}
	if s.requests--; s.requests == 0 {
		s.account.endRequest(s)
	}
}

// Leave returns the slot. It does nothing if the slot was given up or returned before.
func (s *Slot) Leave() {
	if s.slots == nil {
		return
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	if s.account != nil {
		s.slots.drop(s)
	}
}

// GivenUp returns the cause for which the slot was given up, NoCause if it was not.
func (s *Slot) GivenUp() Cause {
	if s.slots == nil {
		return NoCause
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	return s.givenUpFor
}

// giveUp closes the connection of a slot that was given up. A nil slot does nothing.
// The caller does not hold mu.
func (s *Slot) giveUp() {
	if s != nil {
		s.cut(s.givenUpFor)
	}
}

// makeRoom makes room for one more slot of an owner. It returns the slot that is given
// up for it, nil if none has to be, or the cause for which there is no room. The caller
// holds mu.
func (s *Slots) makeRoom(owner Owner) (victim *Slot, cause Cause) {
	p := s.sideOf(owner)
	own := p.accounts[owner]
	switch {
	case own != nil && own.used >= s.most(owner.Share), s.most(owner.Share) == 0:
		cause = fullShare(owner.Share)
		if own != nil {
			victim = own.oldest(s.shares.AllYield)
		}
	case p.used >= p.most:
		cause = fullSide(owner.Share)
		if longest := p.mostIdle(); longest != nil {
			victim = longest.oldest(false)
		} else if own != nil {
			victim = own.oldest(s.shares.AllYield)
		}
	default:
		return nil, NoCause
	}
	if victim == nil {
		return nil, cause
	}
	victim.givenUpFor = cause
	s.drop(victim)
	return victim, NoCause
}

// put gives a slot to an owner whose share has room. The caller holds mu.
func (s *Slots) put(slot *Slot, owner Owner) {
	p := s.sideOf(owner)
	own := p.accounts[owner]
	if own == nil {
		own = s.account(p, owner)
		p.accounts[owner] = own
	}
	p.used++
	own.used++
	slot.account = own
	if slot.requests == 0 {
		own.add(slot)
	} else {
		own.busy.append(&slot.link, slot)
	}
}

// account returns an account without slots. The caller holds mu.
func (s *Slots) account(p *side, owner Owner) *account {
	a := s.spare
	if s.spare = nil; a == nil {
		a = new(account)
	}
	a.owner, a.side, a.yields = owner, p, owner.Share != ShareIdentity || s.shares.IdleYields
	return a
}

// drop takes a slot away from its owner. The caller holds mu.
func (s *Slots) drop(slot *Slot) {
	own := slot.account
	slot.account = nil
	if slot.requests == 0 {
		own.remove(slot)
	} else {
		slot.link.unlink()
	}
	own.used--
	own.side.used--
	if own.used == 0 {
		delete(own.side.accounts, own.owner)
		own.owner = Owner{} // so that the spare account keeps no name in memory
		s.spare = own
	}
}

// sideOf returns the side on which an owner's slots are counted.
func (s *Slots) sideOf(owner Owner) *side {
	if owner.Share.known() {
		return &s.identified
	}
	return &s.unidentified
}

// most returns the largest number of slots that one owner of a kind may have.
func (s *Slots) most(share Share) int {
	switch share {
	case ShareIdentity:
		return s.shares.PerIdentity
	case ShareLocal:
		return s.shares.PerLocal
	case ShareProxy: // its connections move to their sources as soon as their headers have come
		return s.shares.Unidentified
	case ShareSource:
	}
	return s.shares.PerSource
}

// fullShare returns the cause which says that one owner's share is full.
func fullShare(share Share) Cause {
	if share.known() {
		return CauseCaller
	}
	return CauseSource
}

// fullSide returns the cause which says that all owners of a side together have no slot left.
func fullSide(share Share) Cause {
	if share.known() {
		return CauseAll
	}
	return CauseUnidentified
}
