package config

import (
	"path/filepath"
	"time"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// key is a key that a mapping may have, with the function that reads its value.
type key struct {
	name string
	read func(*strictyaml.Node)
}

// readKeys reads the value of each key of a mapping, in the order of the file, and
// returns the values by key. It returns nil if the node is not a mapping or has no
// keys, which is an error already. Messages list the keys in the order of the
// arguments.
func readKeys(n *strictyaml.Node, keys ...key) map[string]*strictyaml.Node {
	read, names := make(map[string]func(*strictyaml.Node), len(keys)), make([]string, len(keys))
	for i, k := range keys {
		read[k.name], names[i] = k.read, k.name
	}
	var there map[string]*strictyaml.Node
	for name, v := range n.Fields() {
		if there == nil {
			there = make(map[string]*strictyaml.Node)
		}
		if read[name] == nil {
			v.Unknown(names...)
			continue
		}
		there[name] = v
		read[name](v)
	}
	return there
}

// mapping returns a function that reads a mapping with these keys.
func mapping(keys ...key) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) { readKeys(n, keys...) }
}

// compared returns a function that reads a mapping with these keys, and then calls
// compare with the values by key.
func compared(compare func(there map[string]*strictyaml.Node), keys ...key) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) { compare(readKeys(n, keys...)) }
}

// duration returns a function that reads a time.
func duration(into *time.Duration) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) {
		if d, ok := n.Duration(); ok {
			*into = d
		}
	}
}

// orNever returns a function that reads a time. It stores -1, which means never, for
// zero.
func orNever(into *time.Duration) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) {
		if duration(into)(n); *into == 0 {
			*into = -1
		}
	}
}

// positive returns a function that reads a time above zero.
func positive(into *time.Duration) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) {
		d, ok := n.Duration()
		if ok && d <= 0 {
			n.Errorf("write a time above zero, such as 10s")
			return
		}
		if ok {
			*into = d
		}
	}
}

// number returns a function that reads a number from least to most.
func number(into *int, least, most int) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) {
		if i, ok := n.Int(least, most); ok {
			*into = i
		}
	}
}

// word returns a function that reads any text.
func word(into *string) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) { *into, _ = n.Text() }
}

// boolean returns a function that reads true or false.
func boolean(into *bool) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) { *into, _ = n.Bool() }
}

// directory is the directory of the configuration file, to which paths are relative.
type directory struct {
	name   string
	places Places // places of the paths that were read
}

func (d directory) join(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(d.name, path)
}

// read returns a path relative to the directory, and stores its place.
func (d directory) read(n *strictyaml.Node, text string) string {
	return d.note(n, d.join(text))
}

// note adds a place of a path or an address, and returns the path or the address.
func (d directory) note(n *strictyaml.Node, what string) string {
	d.places[what] = append(d.places[what], Place{n.Pos(), n.Name()})
	return what
}

// path returns a function that reads a path.
func (d directory) path(into *string) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) {
		if text, ok := n.Text(); ok {
			*into = d.read(n, text)
		}
	}
}

// paths returns a function that reads one or more paths.
func (d directory) paths(into *[]string) func(*strictyaml.Node) {
	return func(n *strictyaml.Node) {
		var paths []string
		for item := range n.OneOrMore() {
			if text, ok := item.Text(); ok {
				paths = append(paths, d.read(item, text))
			}
		}
		*into = paths
	}
}
