package strictyaml

import "go.yaml.in/yaml/v4"

// converter copies the library's tree into a tree of Node and reports constructs that are
// refused.
type converter struct{ *source }

// fill sets n from the library's node y. The caller sets the name and the place of the
// key.
func (c *converter) fill(n *Node, y *yaml.Node) {
	at := c.pos(y)
	n.line, n.column = int32(at.Line), int32(at.Column) //nolint:gosec // G115: at most MaxBytes
	switch {
	case y.Kind == yaml.AliasNode:
		c.errs.Add(at, aliasRefused)
		n.kind = refused
		return
	case y.Anchor != "":
		c.errs.Add(at, "YAML anchors are refused: remove &%s", y.Anchor)
	}
	if isTagged(y) {
		c.errs.Add(at, "YAML tags are refused: remove %s", quote(y.Tag))
	}
	switch y.Kind {
	case yaml.MappingNode:
		n.kind = mapping
		c.fields(n, y.Content)
	case yaml.SequenceNode:
		n.kind = list
		c.items(n, y.Content)
	case yaml.ScalarNode:
		n.kind, n.text, n.plain = scalar, y.Value, isPlain(y)
		if n.plain && n.text == "" {
			n.kind = empty
		}
	case yaml.DocumentNode, yaml.AliasNode, yaml.StreamNode:
		n.kind = refused // a document cannot hold another one
	}
}

func (c *converter) items(n *Node, content []*yaml.Node) {
	n.children = make([]Node, len(content))
	for i, y := range content {
		item := &n.children[i]
		*item = Node{doc: n.doc, name: n.name, item: true}
		c.fill(item, y)
		item.keyLine, item.keyColumn = item.line, item.column
	}
}

func (c *converter) fields(n *Node, content []*yaml.Node) {
	first := make(map[string]Pos, len(content)/2)
	n.children = make([]Node, 0, len(content)/2)
	for i := 0; i+1 < len(content); i += 2 {
		key, at := content[i], c.pos(content[i])
		if !c.checkKey(key, at) {
			continue
		}
		if before, ok := first[key.Value]; ok {
			c.errs.Add(at, "duplicate key %s: it is set at %s; keep one", quote(key.Value), before)
			continue
		}
		first[key.Value] = at
		field := Node{doc: n.doc, name: key.Value}
		field.keyLine, field.keyColumn = int32(at.Line), int32(at.Column) //nolint:gosec // G115: at most MaxBytes
		n.children = append(n.children, field)
		c.fill(&n.children[len(n.children)-1], content[i+1])
	}
}

// checkKey reports whether a key is plain text, and adds an error if it is not.
func (c *converter) checkKey(key *yaml.Node, at Pos) bool {
	switch {
	case key.Kind == yaml.AliasNode:
		c.errs.Add(at, "YAML aliases are refused: write the key out")
	case key.Kind != yaml.ScalarNode:
		c.errs.Add(at, "a key that is no text: write key: value")
	case key.Anchor != "":
		c.errs.Add(at, "YAML anchors are refused: remove &%s", key.Anchor)
	case isTagged(key):
		c.errs.Add(at, "YAML tags are refused: remove %s", quote(key.Tag))
	case isPlain(key) && key.Value == "<<":
		c.errs.Add(at, "YAML merge keys are refused: write the keys out")
	case key.Value == "" || isPlain(key) && isNull(key.Value):
		c.errs.Add(at, "a key that is null or empty: write key: value")
	default:
		return true
	}
	return false
}

// isTagged reports whether the file has a tag for y. The library sets a tag for all
// nodes.
func isTagged(y *yaml.Node) bool { return y.Style&yaml.TaggedStyle != 0 || y.Tag == "!" }

func isPlain(y *yaml.Node) bool {
	const quoted = yaml.SingleQuotedStyle | yaml.DoubleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle
	return y.Style&quoted == 0
}
