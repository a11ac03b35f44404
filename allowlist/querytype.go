package allowlist

import "strconv"

// QueryType is the type of a DNS question, as its number on the wire.
type QueryType uint16

// The types that a policy can allow. Every rule allows A, AAAA, HTTPS and CNAME, and the
// key dns: of a rule adds other types of this list. No other type (ANY, NULL, WKS, KEY,
// private types) is ever allowed.
const (
	TypeA     QueryType = 1
	TypeNS    QueryType = 2
	TypeCNAME QueryType = 5
	TypeSOA   QueryType = 6
	TypePTR   QueryType = 12
	TypeMX    QueryType = 15
	TypeTXT   QueryType = 16
	TypeAAAA  QueryType = 28
	TypeSRV   QueryType = 33
	TypeNAPTR QueryType = 35
	TypeSSHFP QueryType = 44
	TypeTLSA  QueryType = 52
	TypeSVCB  QueryType = 64
	TypeHTTPS QueryType = 65
	TypeURI   QueryType = 256
	TypeCAA   QueryType = 257
)

// String returns the name of a type that a policy can allow, and TYPE with the number
// (RFC 3597) for any other type.
func (t QueryType) String() string {
	switch t {
	case TypeA:
		return "A"
	case TypeNS:
		return "NS"
	case TypeCNAME:
		return "CNAME"
	case TypeSOA:
		return "SOA"
	case TypePTR:
		return "PTR"
	case TypeMX:
		return "MX"
	case TypeTXT:
		return "TXT"
	case TypeAAAA:
		return "AAAA"
	case TypeSRV:
		return "SRV"
	case TypeNAPTR:
		return "NAPTR"
	case TypeSSHFP:
		return "SSHFP"
	case TypeTLSA:
		return "TLSA"
	case TypeSVCB:
		return "SVCB"
	case TypeHTTPS:
		return "HTTPS"
	case TypeURI:
		return "URI"
	case TypeCAA:
		return "CAA"
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// Known reports whether t is one of QueryTypes.
func (t QueryType) Known() bool { return only(t) != 0 }

// QueryTypes returns the types that a policy can allow.
func QueryTypes() []QueryType {
	return []QueryType{
		TypeA, TypeNS, TypeCNAME, TypeSOA, TypePTR, TypeMX, TypeTXT, TypeAAAA,
		TypeSRV, TypeNAPTR, TypeSSHFP, TypeTLSA, TypeSVCB, TypeHTTPS, TypeURI, TypeCAA,
	}
}

// ParseQueryType returns the type of a name if a policy can allow it; ok is false for any
// other name.
func ParseQueryType(name string) (t QueryType, ok bool) {
	for _, t := range QueryTypes() {
		if t.String() == name {
			return t, true
		}
	}
	return 0, false
}

// typeSet is a set of the types that a policy can allow.
type typeSet uint16

// The types that every rule allows, and those that observe mode lets through.
const (
	ruleTypes    = typeSet(1<<0 | 1<<2 | 1<<7 | 1<<11) // A, CNAME, AAAA, HTTPS
	observeTypes = typeSet(1<<0 | 1<<7 | 1<<11)        // A, AAAA, HTTPS
)

// only returns the set that contains only t, or the empty set if no policy can allow t.
func only(t QueryType) typeSet {
	switch t {
	case TypeA:
		return 1 << 0
	case TypeNS:
		return 1 << 1
	case TypeCNAME:
		return 1 << 2
	case TypeSOA:
		return 1 << 3
	case TypePTR:
		return 1 << 4
	case TypeMX:
		return 1 << 5
	case TypeTXT:
		return 1 << 6
	case TypeAAAA:
		return 1 << 7
	case TypeSRV:
		return 1 << 8
	case TypeNAPTR:
		return 1 << 9
	case TypeSVCB:
		return 1 << 10
	case TypeHTTPS:
		return 1 << 11
	case TypeCAA:
		return 1 << 12
	case TypeSSHFP:
		return 1 << 13
	case TypeTLSA:
		return 1 << 14
	case TypeURI:
		return 1 << 15
	}
	return 0
}

func (set typeSet) has(t QueryType) bool { return set&only(t) != 0 }
