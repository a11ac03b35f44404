package wire

import (
	"fmt"
	"strings"

	"github.com/miekg/dns"
)

// pack returns a record's rdata uncompressed and with names in lower case: compressed
// names may point into the question, whose case is random. Rdata without names is
// returned as it came (raw), because the library would convert it to text and back,
// which changes some bytes.
func pack(rr dns.RR, raw []byte) ([]byte, error) {
	h := rr.Header()
	names := namesIn(rr)
	if len(names) == 0 {
		if len(raw) < leastRdata(h.Rrtype) {
			return nil, fmt.Errorf("%w: a record of type %d of %d bytes", ErrMalformed, h.Rrtype, len(raw))
		}
		return raw, nil
	}
	for _, name := range names {
		if *name == "" { // the library accepts a record that ends before its name
			return nil, fmt.Errorf("%w: a record of type %d without its name", ErrMalformed, h.Rrtype)
		}
		*name = strings.ToLower(*name)
	}
	h.Name = "."
	buf := make([]byte, 2*int(h.Rdlength)+1024)
	end, err := dns.PackRR(rr, buf, 0, nil, false)
	const head = 1 + 10 // the root, type, class, time to live, length
	if err != nil {
		return nil, fmt.Errorf("%w: a record of type %d: %w", ErrMalformed, h.Rrtype, err)
	}
	return buf[head:end:end], nil
}

// leastRdata returns the smallest size of the rdata of a type without names: the
// library accepts a record that ends between two fields.
func leastRdata(typ uint16) int {
	switch typ {
	case dns.TypeSSHFP: // algorithm, kind and a fingerprint (RFC 4255 section 3.1)
		return 3
	case dns.TypeTLSA: // usage, selector, kind and data (RFC 6698 section 2.1)
		return 4
	case dns.TypeURI: // priority, weight and a target (RFC 7553 section 4.5)
		return 5
	case dns.TypeCAA: // flags, the tag's length and a tag (RFC 8659 section 4.1)
		return 3
	}
	return 1
}

// namesIn returns pointers to the names in the rdata, for all types that are looked up.
func namesIn(rr dns.RR) []*string {
	switch rr := rr.(type) {
	case *dns.NS:
		return []*string{&rr.Ns}
	case *dns.PTR:
		return []*string{&rr.Ptr}
	case *dns.MX:
		return []*string{&rr.Mx}
	case *dns.SRV:
		return []*string{&rr.Target}
	case *dns.NAPTR:
		return []*string{&rr.Replacement}
	case *dns.SOA:
		return []*string{&rr.Ns, &rr.Mbox}
	case *dns.SVCB:
		return []*string{&rr.Target}
	case *dns.HTTPS:
		return []*string{&rr.Target}
	}
	return nil
}
