package policyfile

import "github.com/exeat-dev/exeat/allowlist/strictyaml"

// key is a key that a mapping may have, and the function that reads its value.
type key[T any] struct {
	name string
	read func(into *T, v *strictyaml.Node)
}

// readKeys reads the value of each key of the mapping n, and reports whether n has any
// key. keys lists the known keys in the order in which messages name them.
func readKeys[T any](into *T, n *strictyaml.Node, keys []key[T]) bool {
	hasKeys := false
	for _, v := range n.Fields() {
		hasKeys = true
		readKey(into, v, keys)
	}
	return hasKeys
}

// readKey reads the value of one key, or adds an error if the key is unknown.
func readKey[T any](into *T, v *strictyaml.Node, keys []key[T]) {
	for i := range keys {
		if keys[i].name == v.Name() {
			keys[i].read(into, v)
			return
		}
	}
	names := make([]string, len(keys))
	for i := range keys {
		names[i] = keys[i].name
	}
	v.Unknown(names...)
}
