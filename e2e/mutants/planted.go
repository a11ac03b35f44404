package main

// planted returns the faults that fuzz targets must find, one for each target of the
// module. If a seed shows a fault at once, the output says so.
func planted() []fault {
	return []fault{
		{
			"names keep their case", "allowlist/host.go",
			"name = strings.ToLower(name)", "name = strings.TrimSpace(name)", "./e2e/hostile", "FuzzConnection",
		},
		{
			"some control bytes may stand in a value", "proxy/head/parse.go",
			`c < ' ' && c != '\t'`, `c < 0x10 && c != '\t'`, "./proxy/head", "FuzzParse",
		},
		{
			"white space of one kind may stand around a value of HTTP/2", "proxy/head/build.go",
			`strings.Trim(f.Value, " \t") != f.Value`, `strings.Trim(f.Value, " ") != f.Value`, "./proxy/head", "FuzzBuild",
		},
		{
			"0X in capitals is a name", "allowlist/host.go",
			"(label[1] == 'x' || label[1] == 'X')", "label[1] == 'x'", "./allowlist", "FuzzParseHost",
		},
		{
			"a dot inside a label stands between labels", "allowlist/host.go",
			"case c == '.' || !isNameByte(c):", "case !isNameByte(c):", "./allowlist", "FuzzHostOfName",
		},
		{
			"a port may begin with a zero", "allowlist/host.go",
			" || s[0] == '0' {", " {", "./allowlist", "FuzzParseDestination",
		},
		{
			"a final dot of a path is stripped", "allowlist/url.go",
			"if path == \"\" {", "if path = strings.TrimSuffix(path, \".\"); path == \"\" {", "./allowlist", "FuzzParseURL",
		},
		{
			"*.x is read as **.x", "allowlist/pattern.go",
			"kind, name = patternOne, rest", "kind, name = patternMany, rest", "./allowlist", "FuzzParseHostPattern",
		},
		{
			"/* is read as /**", "allowlist/pattern.go",
			"kind, text = patternOne, rest", "kind, text = patternMany, rest", "./allowlist", "FuzzParseIdentityPattern",
		},
		{
			"the last of equally near misses gives the reason", "allowlist/decide.go",
			"case distance(miss) > distance(nearest):", "case distance(miss) >= distance(nearest):", "./allowlist", "FuzzDecide",
		},
		{
			"every address that ends in 255 is a broadcast", "allowlist/address.go",
			"prefix, class, ok := c.classes.LookupPrefixLPM(single)",
			"if addr.Is4() && addr.As4()[3] == 255 {\n\t\treturn Broadcast, single\n\t}\n\tprefix, class, ok := c.classes.LookupPrefixLPM(single)",
			"./allowlist", "FuzzClassify",
		},
		{
			"errors keep the order in which they are found", "allowlist/strictyaml/strictyaml.go",
			"func(a, b *Error) int { return a.Compare(b.Pos) }", "func(a, b *Error) int { return 0 }", "./allowlist/policyfile", "FuzzSpec",
		},
		{
			"an error may stand behind the file", "allowlist/strictyaml/parse.go",
			"line <= s.lines &&", "line <= s.lines+1 &&", "./allowlist/strictyaml", "FuzzParse",
		},
		{
			"server names of other kinds are read", "proxy/hello/message.go",
			"case kind != nameTypeHost:", "case kind > nameTypeHost+9:", "./proxy/hello", "FuzzRead",
		},
		{
			"a name in two records loses bytes", "proxy/hello/message.go",
			"b.Write(part)", "b.Write(part[:1])", "./proxy/hello", "FuzzGo",
		},
		{
			"a PROXY protocol header is one byte longer than its buffer", "proxy/listen/proxied.go",
			"if len(b) == proxiedMax1 {", "if len(b) > proxiedMax1 {", "./proxy/listen", "FuzzHeaders",
		},
		{
			"the length of a record is believed", "proxy/resolve/wire/reader.go",
			"len(r.msg) < r.off+h.size", "len(r.msg) < r.off", "./proxy/resolve/wire", "FuzzParse",
		},
		{
			"the length of an option is believed", "proxy/dns/read.go",
			"if len(options) < option {", "if len(options) < 4 {", "./proxy/dns", "FuzzQuery",
		},
		{
			"a long ID is cut", "identity/svid.go",
			"spiffeid.FromString(raw)", `spiffeid.FromString(fmt.Sprintf("%.45s", raw))`, "./identity", "FuzzID",
		},
		{
			"fewer names than crypto/x509 has counted will do", "identity/svid.go",
			"len(uris) != len(cert.URIs)", "len(uris) > len(cert.URIs)", "./identity", "FuzzSAN",
		},
		{
			"a chain that has ended holds", "identity/chains.go",
			"!now.Before(from) && !now.After(until)", "!now.Before(from) && !until.Before(from)", "./identity", "FuzzChains",
		},
		{
			"a pseudo-header field may stand behind one field", "proxy/front/h2parse.go",
			"case len(others) > 0:", "case len(others) > 1:", "./proxy/front", "FuzzStreamHead",
		},
		{
			"some reserved bytes are accepted", "proxy/front/socks5.go",
			"|| reserved != 0 {", "|| reserved > 0x40 {", "./proxy/front", "FuzzSOCKS5",
		},
		{
			"some even streams are served", "proxy/h2/serve.go",
			"id%2 == 0:", "id%4 == 0:", "./proxy/h2", "FuzzFrames",
		},
		{
			"DEL may stand in an answer", "proxy/refusal/refusal.go",
			"c < ' ' || c > '~'", `c < ' ' || c > '\x7f'`, "./proxy/refusal", "FuzzAppend",
		},
		{
			"a line of the same length is the same line", "proxy/audit/native/parse.go",
			"if !bytes.Equal(again, text) {", "if len(again) != len(text) {", "./proxy/audit/native", "FuzzParse",
		},
		boundary("./proxy/audit/native", "FuzzRender"),
		boundary("./proxy/audit/ecs", "FuzzRender"),
		boundary("./proxy/audit/ocsf", "FuzzRender"),
	}
}

// boundary returns a fault in the length limit of a record's texts, which is off by one.
func boundary(pkg, target string) fault {
	return fault{
		"text of just the length that is allowed, in " + pkg, "proxy/audit/record.go",
		"if len(s) > limit && (len(s) > limit+len(cut) || !strings.HasSuffix(s, cut)) {\n\t\ts = s[:limit]",
		"if len(s) >= limit && !strings.HasSuffix(s, cut) {\n\t\ts = s[:limit+1]", pkg, target,
	}
}
