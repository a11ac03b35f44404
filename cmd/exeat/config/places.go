package config

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// Places says where in the configuration each path and each address to listen on
// is written.
type Places map[string]strictyaml.Pos

// Explain returns an error about a file or an address with the place at which the
// configuration names it, or one of the directories above the file. Errors that
// have places of their own, and those that name no path of the configuration,
// are returned as they are.
func (p Places) Explain(err error) error {
	var own strictyaml.Errors
	if err == nil || errors.As(err, &own) {
		return err
	}
	longest, text := "", err.Error()
	for path := range p {
		if len(path) > len(longest) && names(text, path) {
			longest = path
		}
	}
	if longest == "" {
		return err
	}
	return fmt.Errorf("%s: %w", p[longest], err)
}

// names reports whether a text has a path in it, and not only as a part of a
// longer name.
func names(text, path string) bool {
	for {
		before, after, found := strings.Cut(text, path)
		if !found {
			return false
		}
		const around = " \t:;,()\"'"
		if (before == "" || strings.ContainsAny(before[len(before)-1:], around)) && (after == "" || strings.ContainsAny(after[:1], around+string(filepath.Separator))) {
			return true
		}
		text = after
	}
}

// neverReached warns of a limit, at n, that is larger than that of all, which
// whole names. A default is not warned of, since nobody has written it: n is nil.
func neverReached[T cmp.Ordered](c *Config, n *strictyaml.Node, value T, whole string, most T) {
	if n != nil && value > most {
		c.Warnings.Add(n.Pos(), "%s: %v is never reached, since %s is %v: lower it, or remove the key", n.Name(), value, whole, most)
	}
}
