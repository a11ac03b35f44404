package policyfile

import "github.com/exeat-dev/exeat/allowlist/strictyaml"

// key is a key that a mapping may have, and what takes its value.
type key[T any] struct {
	name string
	take func(into *T, v *strictyaml.Node)
}

// takeKeys takes the value of each key of a mapping, and reports whether it has
// any. Its keys stand in the order in which messages list them.
func takeKeys[T any](into *T, n *strictyaml.Node, keys []key[T]) bool {
	said := false
	for _, v := range n.Fields() {
		said = true
		takeKey(into, v, keys)
	}
	return said
}

// takeKey takes the value of one key, or reports it as unknown.
func takeKey[T any](into *T, v *strictyaml.Node, keys []key[T]) {
	for i := range keys {
		if keys[i].name == v.Name() {
			keys[i].take(into, v)
			return
		}
	}
	names := make([]string, len(keys))
	for i := range keys {
		names[i] = keys[i].name
	}
	v.Unknown(names...)
}
