package forward

import (
	"slices"
	"strings"
)

// requestsAll reports whether list, the requested protocols, contains all of protocols,
// those that an origin switches to: one, or several in layers (RFC 9110 section 7.8).
func requestsAll(list, protocols string) bool {
	asked := strings.Split(strings.ToLower(list), ", ")
	for protocol := range strings.SplitSeq(strings.ToLower(protocols), ",") {
		if !slices.Contains(asked, strings.Trim(protocol, " \t")) {
			return false
		}
	}
	return true
}
