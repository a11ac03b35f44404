package config

import (
	"path/filepath"
	"slices"
	"time"

	"github.com/exeat-dev/exeat/allowlist/strictyaml"
	"github.com/exeat-dev/exeat/proxy/audit/file"
)

// The bounds of a rotation: a file that is smaller would be rotated all the time.
const (
	minRotateSize  = 1 << 20
	minRotateEvery = time.Minute
)

func (p *parser) records(n *strictyaml.Node) {
	there := readKeys(n,
		key{"file", func(v *strictyaml.Node) {
			p.Records = []RecordSink{{Name: "records"}}
			p.sinkFile(v, &p.Records[0])
		}},
		key{"sinks", p.sinks},
		key{"required", boolean(&p.RecordsRequired)},
		key{"collapse", duration(&p.Collapse)},
	)
	if file := there["file"]; file != nil && there["sinks"] != nil {
		file.KeyErrorf("file is short for one sink: write it as one of sinks")
	}
	if !p.RecordsRequired {
		return
	}
	if p.Collapse > 0 {
		there["collapse"].KeyErrorf("a record that is required cannot be merged into another: remove collapse or required")
	}
	if all := func(s RecordSink) bool { return s.Only == Everything }; !slices.ContainsFunc(p.Records, all) {
		there["required"].KeyErrorf("every sink keeps denials only: what is allowed would be let out without a record")
	}
}

func (p *parser) sinks(n *strictyaml.Node) {
	p.Records = nil
	names := map[string]bool{}
	var good []RecordSink // sinks without an error; those with one are not complete
	for item := range n.Items() {
		before := len(p.errs)
		s := p.sink(item)
		p.Records = append(p.Records, s)
		if len(p.errs) > before {
			continue
		}
		if names[s.Name] {
			item.Errorf("there are two sinks with the name %q", s.Name)
		}
		names[s.Name] = true
		for _, other := range good {
			switch {
			case !s.OTLP && !other.OTLP && filepath.Clean(s.File) == filepath.Clean(other.File):
				item.Errorf("sink %s writes to the same file: its records would stand between", other.Name)
			case s.OTLP && other.OTLP:
				item.Errorf("sink %s sends to the same place: one record would be two there", other.Name)
			}
		}
		good = append(good, s)
	}
	if len(p.Records) == 0 && n.IsList() {
		n.Errorf("the list is empty: records must go somewhere")
	}
}

func (p *parser) sink(n *strictyaml.Node) RecordSink {
	var s RecordSink
	there := readKeys(n,
		key{"name", word(&s.Name)},
		key{"file", func(v *strictyaml.Node) { p.sinkFile(v, &s) }},
		key{"otlp", boolean(&s.OTLP)},
		key{"format", func(v *strictyaml.Node) { s.Format = recordFormat(v) }},
		key{"only", func(v *strictyaml.Node) {
			if word, _ := v.Word("all", "denials"); word == "denials" {
				s.Only = Denials
			}
		}},
		key{"rotate", func(v *strictyaml.Node) { s.Rotate = rotation(v) }},
	)
	file, format, rotate := there["file"], there["format"], there["rotate"]
	switch {
	case there == nil: // there is an error already
	case there["name"] == nil:
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
		s.File = p.dir.read(n, text)
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

func rotation(n *strictyaml.Node) file.Rotation {
	var r file.Rotation
	there := readKeys(n,
		key{"size", func(v *strictyaml.Node) {
			if size, ok := v.Bytes(); ok {
				if r.Size = size; size < minRotateSize {
					v.Errorf("write at least 1MiB")
				}
			}
		}},
		key{"every", func(v *strictyaml.Node) {
			if every, ok := v.Duration(); ok {
				if r.Every = every; every < minRotateEvery {
					v.Errorf("write at least 1m")
				}
			}
		}},
		key{"keep", number(&r.Keep, 1, 10_000)},
	)
	if there != nil && there["size"] == nil && there["every"] == nil {
		n.Errorf("write size or every: nothing would be rotated")
	}
	return r
}
