package config

import (
	"path/filepath"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
)

// The bounds of a rotation: a smaller file would rotate all the time.
const (
	minRotateSize  = 1 << 20
	minRotateEvery = time.Minute
)

func (p *parser) records(n *strictyaml.Node) {
	var file, sinks, required, collapse *strictyaml.Node
	for key, v := range n.Fields() {
		switch key {
		case "file":
			file = v
			p.Records = []RecordSink{{Name: "records"}}
			p.sinkFile(v, &p.Records[0])
		case "sinks":
			sinks = v
			p.sinks(v)
		case "required":
			required = v
			p.RecordsRequired, _ = v.Bool()
		case "collapse":
			collapse = v
			duration(v, &p.Collapse)
		default:
			v.Unknown("file", "sinks", "required", "collapse")
		}
	}
	if file != nil && sinks != nil {
		file.KeyErrorf("file is short for one sink: write it as one of sinks")
	}
	if !p.RecordsRequired {
		return
	}
	if p.Collapse > 0 {
		collapse.KeyErrorf("a record that is required cannot be merged into another: remove collapse or required")
	}
	if all := func(s RecordSink) bool { return s.Only == Everything }; !slices.ContainsFunc(p.Records, all) {
		required.KeyErrorf("every sink keeps denials only: what is allowed would be let out without a record")
	}
}

func (p *parser) sinks(n *strictyaml.Node) {
	p.Records = nil
	names := map[string]bool{}
	for item := range n.Items() {
		s := p.sink(item)
		if names[s.Name] {
			item.Errorf("there are two sinks with the name %q", s.Name)
		}
		names[s.Name] = true
		for _, other := range p.Records {
			switch {
			case s.File != "" && filepath.Clean(s.File) == filepath.Clean(other.File):
				item.Errorf("sink %s writes to the same file: its records would stand between", other.Name)
			case s.OTLP && other.OTLP:
				item.Errorf("sink %s sends to the same place: one record would be two there", other.Name)
			}
		}
		p.Records = append(p.Records, s)
	}
	if len(p.Records) == 0 && n.IsList() {
		n.Errorf("the list is empty: records must go somewhere")
	}
}

func (p *parser) sink(n *strictyaml.Node) RecordSink {
	var s RecordSink
	var file, format, rotate *strictyaml.Node
	for key, v := range n.Fields() {
		switch key {
		case "name":
			s.Name, _ = v.Text()
		case "file":
			file = v
			p.sinkFile(v, &s)
		case "otlp":
			s.OTLP, _ = v.Bool()
		case "format":
			format = v
			s.Format = recordFormat(v)
		case "only":
			if word, _ := v.Word("all", "denials"); word == "denials" {
				s.Only = Denials
			}
		case "rotate":
			rotate = v
			s.Rotate = rotation(v)
		default:
			v.Unknown("name", "file", "otlp", "format", "only", "rotate")
		}
	}
	switch {
	case s.Name == "":
		n.Errorf("the sink has no name: metrics and messages name it")
	case (file != nil) == s.OTLP:
		n.Errorf("write either file or otlp: true")
	case s.OTLP && (format != nil || rotate != nil):
		n.Errorf("format and rotate are for files")
	case rotate != nil && s.File == "":
		n.Errorf("standard output cannot be rotated: write a file")
	}
	return s
}

func (p *parser) sinkFile(n *strictyaml.Node, s *RecordSink) {
	if text, ok := n.Text(); ok && text != "stdout" {
		s.File = p.join(text)
	}
}

func recordFormat(n *strictyaml.Node) Format {
	switch word, _ := n.Word("native", "ocsf", "ecs"); word {
	case "ocsf":
		return OCSF
	case "ecs":
		return ECS
	}
	return Native
}

func rotation(n *strictyaml.Node) Rotation {
	var r Rotation
	for key, v := range n.Fields() {
		switch key {
		case "size":
			if size, ok := v.Bytes(); ok {
				if r.Size = size; size < minRotateSize {
					v.Errorf("write at least 1MiB")
				}
			}
		case "every":
			if duration(v, &r.Every); r.Every < minRotateEvery {
				v.Errorf("write at least 1m")
			}
		case "keep":
			r.Keep, _ = v.Int(1, 10_000)
		default:
			v.Unknown("size", "every", "keep")
		}
	}
	if r.Size == 0 && r.Every == 0 {
		n.Errorf("write size or every: nothing would be rotated")
	}
	return r
}
