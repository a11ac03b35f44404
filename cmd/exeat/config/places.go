package config

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// Places maps each path and each address to listen on to its places in the
// configuration. Several keys may name the same path.
type Places map[string][]Place

// Place is a place and the last key before it.
type Place struct {
	strictyaml.Pos

	Key string
}

// Explain adds to an error about a file or an address the places at which the
// configuration names it, or names a directory above the file. If the error names
// several files, the first one counts. Explain returns an error unchanged that has places
// of its own, or that names no path of the configuration.
func (p Places) Explain(err error) error {
	var own strictyaml.Errors
	if err == nil || errors.As(err, &own) {
		return err
	}
	named, first, text := "", -1, err.Error()
	for path := range p {
		at := index(text, path)
		if at >= 0 && (first < 0 || at < first || at == first && len(path) > len(named)) {
			named, first = path, at
		}
	}
	if first < 0 {
		return err
	}
	return fmt.Errorf("%s: %w", placesText(p[named], text[:first]), err)
}

// placesText returns the places of a path as text. If the words before the path name a
// key, as in "bundle file ", only places of that key count; else the first place does.
func placesText(all []Place, before string) string {
	var meant []string
	for _, at := range all {
		if strings.HasSuffix(before, at.Key+" file ") {
			meant = append(meant, at.String())
		}
	}
	if meant == nil {
		return all[0].String()
	}
	return strings.Join(meant, ", ")
}

// index returns the index of a path in a text, where it is not merely part of a longer
// name, or -1.
func index(text, path string) int {
	for from := 0; ; {
		i := strings.Index(text[from:], path)
		if i < 0 {
			return -1
		}
		const around = " \t:;,()\"'"
		begin, end := from+i, from+i+len(path)
		if (begin == 0 || strings.ContainsAny(text[begin-1:begin], around)) &&
			(end == len(text) || strings.ContainsAny(text[end:end+1], around+string(filepath.Separator))) {
			return begin
		}
		from = end
	}
}

// neverReached warns of a limit, at n, that is larger than the limit of all together,
// which is called whole. n is nil for a default, and then there is no warning.
func neverReached[T cmp.Ordered](c *Config, n *strictyaml.Node, value T, whole string, most T) {
	if n != nil && value > most {
		c.Warnings.Add(n.Pos(), "%s: %v is never reached, since %s is %v: lower it, or remove the key", n.Name(), value, whole, most)
	}
}
