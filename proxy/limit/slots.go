package limit

import (
	"net/netip"
	"sync"
)

// Share says by what an owner of slots is known, and with it how many it may have.
type Share uint8

// The shares. The zero value is the smallest.
const (
	ShareSource   Share = iota // a source address, user or listener without an identity
	ShareProxy                 // a load balancer that has yet to say for whom it connects
	ShareIdentity              // an identity that was proven
	ShareLocal                 // a user, a listener or an address whose identity the listener gives
)

// known reports whether it is one of callers with an identity.
func (s Share) known() bool { return s == ShareIdentity || s == ShareLocal }

// Owner is whom a slot counts for.
type Owner struct {
	Share Share
	// Addr is the source or the load balancer, and of ShareLocal the address that
	// stands for an identity; see allowlist.SourceOf. It is the zero value on a unix
	// socket.
	Addr netip.Addr
	// Name is the identity, the user or the listener; "" of an address without an identity.
	Name string
}

// Cause says which limit a connection was closed or refused for.
type Cause uint8

// The causes. The zero value is that there was room.
const (
	NoCause           Cause = iota
	CauseSource             // its source has as many as it may
	CauseUnidentified       // so have all callers without an identity together
	CauseCaller             // its identity, user or listener has as many as it may
	CauseAll                // so have all callers with an identity together
	CauseDescriptors        // the process has no file descriptor left for it
)

// Causes returns all causes but NoCause.
func Causes() []Cause {
	return []Cause{CauseSource, CauseUnidentified, CauseCaller, CauseAll, CauseDescriptors}
}

// String returns the word for metrics and records, "" for NoCause.
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

// Shares are how many slots there are, and how many of them each may have. A zero
// field lets nobody have any.
type Shares struct {
	Unidentified int // of all callers without an identity
	PerSource    int // of one source among them
	Identified   int // of all callers with an identity
	PerIdentity  int // of one identity that was proven
	PerLocal     int // of one user, listener or address whose identity the listener gives

	// IdleYields lets a proven identity lose a slot that has no request, too. Those
	// of all others may be lost in any case.
	IdleYields bool
	// AllYield lets even a slot that has a request be lost to another of the same
	// owner, if none is without.
	AllYield bool
}

// SharesOf divides a total: a quarter is for callers without an identity, and one
// source may have an eighth of that. The rest is for callers with an identity, of
// which one that was proven may have half, and one whose identity the listener gives
// a quarter of the total. Each is at least one, so that a total below two is two.
func SharesOf(total int) Shares {
	quarter := max(1, total/4)
	rest := max(1, total-quarter)
	return Shares{
		Unidentified: quarter, PerSource: max(1, quarter/8),
		Identified: rest, PerIdentity: max(1, rest/2), PerLocal: min(quarter, rest),
	}
}

// Slots are the places for connections. They bound how many there are and divide
// them: nobody without an identity can take the places of those with one, and nobody
// takes more than a share. Where a share is full, the slot that has been without a
// request for longest is given up for a new one. A slot with a request never is,
// unless AllYield says so.
//
// Every call is a few steps, however many slots there are. It is safe for concurrent
// use. The zero value has no room for anybody.
type Slots struct {
	shares Shares

	mu                       sync.Mutex
	unidentified, identified side
	spare                    *account // one to use again, so that a new connection makes none
}

// NewSlots returns slots of which none is taken.
func NewSlots(shares Shares) *Slots {
	return &Slots{
		shares:       shares,
		unidentified: newSide(shares.Unidentified),
		identified:   newSide(shares.Identified),
	}
}

// InUse returns how many slots are taken, with and without an identity.
func (s *Slots) InUse() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unidentified.used + s.identified.used
}

// Slot is the place of one connection. The zero value has none, and its methods do
// nothing. It must not be copied.
type Slot struct {
	slots    *Slots
	account  *account // nil if it has no place, or none any more
	link     link[Slot]
	requests int         // that are under way
	cut      func(Cause) // closes the connection
	cutFor   Cause       // why it was given up; NoCause if it was not
}

// Enter takes a slot for an owner, and Leave must follow. It returns why there is
// none. If another connection has to go for it, Enter calls the cut function of that
// one before it returns; the function must not wait, nor call the slots.
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

// Move makes another owner that of a slot, as when its caller has shown an identity.
// If there is no room the slot stays where it is, and Move returns why. That is also
// what it returns of a slot that was given up.
func (s *Slot) Move(owner Owner) Cause {
	slots := s.slots
	if slots == nil {
		return NoCause
	}
	slots.mu.Lock()
	if s.account == nil || s.account.owner == owner {
		slots.mu.Unlock()
		return s.cutFor
	}
	before := s.account.owner
	slots.drop(s) // so that nobody has to go for it where it is only counted elsewhere
	victim, cause := slots.makeRoom(owner)
	if cause != NoCause {
		owner = before
	}
	slots.put(s, owner)
	slots.mu.Unlock()
	victim.giveUp()
	return cause
}

// Begin says that a request has come: until as many calls of End have followed, the
// slot is not given up. It reports false if that has happened already.
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
		s.account.begin(s)
	}
	return true
}

// End says that a request is over. It does nothing if the slot was given up.
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
		s.account.rest(s)
	}
}

// Leave returns the slot. It does nothing if it was given up, or returned before.
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

// GivenUp returns what the slot was given up for, NoCause if it was not.
func (s *Slot) GivenUp() Cause {
	if s.slots == nil {
		return NoCause
	}
	s.slots.mu.Lock()
	defer s.slots.mu.Unlock()
	return s.cutFor
}

// giveUp closes the connection of a slot that was given up; nil is none. It is
// called without the lock.
func (s *Slot) giveUp() {
	if s != nil {
		s.cut(s.cutFor)
	}
}

// makeRoom sees to it that an owner can have one more slot. It returns the slot that
// was given up for it, nil if none was, or why there is no room. It is called with mu
// held.
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
		if longest := p.longest(); longest != nil {
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
	victim.cutFor = cause
	s.drop(victim)
	return victim, NoCause
}

// put gives a slot to an owner for whom there is room. It is called with mu held.
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

// account returns an account without slots. It is called with mu held.
func (s *Slots) account(p *side, owner Owner) *account {
	a := s.spare
	if s.spare = nil; a == nil {
		a = new(account)
	}
	a.owner, a.side, a.yields = owner, p, owner.Share != ShareIdentity || s.shares.IdleYields
	return a
}

// drop takes a slot from its owner. It is called with mu held.
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
		own.owner = Owner{} // it keeps no text alive
		s.spare = own
	}
}

func (s *Slots) sideOf(owner Owner) *side {
	if owner.Share.known() {
		return &s.identified
	}
	return &s.unidentified
}

// most returns how many slots one owner may have.
func (s *Slots) most(share Share) int {
	switch share {
	case ShareIdentity:
		return s.shares.PerIdentity
	case ShareLocal:
		return s.shares.PerLocal
	case ShareProxy: // its callers are told apart as soon as it says who they are
		return s.shares.Unidentified
	case ShareSource:
	}
	return s.shares.PerSource
}

func fullShare(share Share) Cause {
	if share.known() {
		return CauseCaller
	}
	return CauseSource
}

func fullSide(share Share) Cause {
	if share.known() {
		return CauseAll
	}
	return CauseUnidentified
}
