package main

// of returns a fault that the cases of a class, or of one row, must find.
func of(class, name, file, old, planted string) fault {
	return fault{name, file, old, planted, "./e2e/hostile", "TestPromises/class/" + class}
}

// over2 returns a fault that only HTTP/2 shows, and that the cases of a row must find.
func over2(row, name, file, old, planted string) fault {
	return of(row[:1]+"-h2/"+row, name, file, old, planted)
}

// mutants returns the faults that tests must find: at least one for each step from the
// bytes of a request to the tunnel.
func mutants() []fault {
	const (
		parse    = "proxy/head/parse.go"
		wire     = "proxy/front/parse.go"
		stream   = "proxy/front/h2parse.go"
		tunnel   = "proxy/tunnel.go"
		register = "proxy/registration.go"
		first    = "proxy/firstbytes.go"
		dial     = "proxy/dial/dial.go"
		host     = "allowlist/host.go"
		address  = "allowlist/address.go"
		decision = "allowlist/decision.go"
		decide   = "allowlist/decide.go"
	)
	return []fault{
		of("D", "two Host fields are accepted", parse, "if h.HasHost {", "if h.HasHost && h.Minor == 0 {"),
		of("D", "control bytes in a field are accepted", parse, "c < ' ' && c != '\\t' || c == 0x7f", "c == 0"),
		of("D", "another HTTP version is accepted", parse, "version[5] != '1' || version[7] > '1'", "version[5] == '0'"),
		of("D", "Transfer-Encoding of a CONNECT is ignored", wire, `h.Values("Transfer-Encoding")`, `h.Values("Transfer-Coding")`),
		of("D", "Host is not compared with the target", wire, "if r.Cause = otherAuthority(h, h.Target, dest); r.Cause != \"\"", "if r.Cause = otherAuthority(h, h.Target, dest); h.Minor == 0 && r.Cause != \"\""),
		of("D", "bytes behind a refusal are read", "proxy/front/h1.go", "r.Body == 0 && (r.IsPlain() || len(c.reader.Buffered()) == 0)", "r.Body == 0"),
		of("D", "every command of SOCKS5 is a CONNECT", "proxy/front/socks5.go", "case command != commandConnect:", "case command > commandUDPAssociate:"),
		of("D", "an IPv6 address of SOCKS5 has no brackets", "proxy/front/socks5.go", "net.JoinHostPort(text, strconv.Itoa(int(port)))", `text + ":" + strconv.Itoa(int(port))`),
		of("D", "a port with leading zeros is accepted", host, ` || s[0] == '0' {`, ` || s == "0" {`),
		of("A", "every final dot is stripped", host, `name := strings.TrimSuffix(s, ".")`, `name := strings.TrimRight(s, ".")`),
		of("A", "A-labels are not checked", host, `strings.Contains(name, "xn--") && `, `strings.HasPrefix(name, "xn--xn--") && `),
		of("A", "**.x covers every name that ends in x", decide, "suffix = suffix[strings.IndexByte(suffix, '.')+1:]", "suffix = suffix[1:]"),
		of("A", "deny rules for names do not count", decide, "if h.deny == nil {", "if h.deny == nil || port > 0 {"),
		of("B", "a hexadecimal number is a name", host, "if len(label) >= 2 && label[0] == '0'", "if len(label) > 99 && label[0] == '0'"),
		of("A", "an IPv4 address may stand in brackets", host, "err != nil || !addr.Is6() || addr.Zone() != \"\"", "err != nil || addr.Zone() != \"\""),
		of("C", "a metadata address is public", address, `{"169.254.169.254/32", Metadata},`, `{"169.254.169.254/32", Public},`),
		of("C", "half of loopback is public", address, `{"127.0.0.0/8", Loopback},`, `{"127.0.0.0/9", Loopback},`),
		of("C", "NAT64 addresses are not decoded", address, "if nat64, inner, ok := c.nat64Of(addr); ok {", "if nat64, inner, ok := c.nat64Of(addr); ok && nat64.Bits() < 96 {"),
		of("C", "ISATAP is recognized in one of its two forms only", address, "b[8]&^2 == 0", "b[8] == 0"),
		of("C", "a wide range opens the special classes inside it", decision, "ranged.Bits() >= prefix.Bits()", "ranged.Bits() >= 0"),
		{"a range opens loopback", decision, "case !class.singleOnly() && ranged", "case ranged", "./allowlist", "TestSingleOnly"},
		of("C/C17", "a policy with a range that never opens is accepted", "allowlist/policyfile/value.go", `why != "" {`, `why != "" && prefix.IsSingleIP() {`),
		of("C", "the gateway's own listeners may be destinations", decision, "if d.policy.classifier.IsListener(", "if d.Dest.Port == 0 && d.policy.classifier.IsListener("),
		of("C", "deny rules for ranges do not count for resolved addresses", decision, "if rule := d.policy.deniedAddr(d, addr); rule != nil {", "if rule := d.policy.deniedAddr(d, addr); rule != nil && d.Dest.Host.IsAddr() {"),
		of("C", "resolved addresses are not checked before the dial", dial, "err := dec.CheckAddr(ap)", "err := error(nil)"),
		{"the socket's address is not checked", "proxy/dial/race.go", "return dec.CheckAddr(actual)", "_ = actual\n\t\t\treturn nil", "./proxy/dial", "TestTheSocketIsCheckedAgain"},
		of("C/C24", "a tunnel is opened by the decision of an older state", tunnel, "if x.proxy.cfg.Current.Load() == x.state {", "if x.state != nil {"),
		of("C/C24", "the address is not checked by the second decision", tunnel, "if err := x.decision.CheckAddr(to.addr); err != nil {", "if err := x.decision.CheckAddr(to.addr); err != nil && to.addr.Port() == 0 {"),
		of("G/G5", "a tunnel is not registered", register, "x.registration.registry.Add(entry)", "_ = x.registration.registry"),
		of("G/G5", "an open tunnel is ended by the cancel function of its dial", register, "{ t.Close(reason) }", "{ r.cancel() }"),
		{"max_revoke counts tunnels in place of identities", "proxy/live/hold.go", "	id := d.Request.ID\n", "	id := d.Request.ID\n\tif l.byIdentity[id] {\n\t\tl.losing++\n\t}\n", "./proxy/live", "TestOneIdentityCannotCauseAHold"},
		{"the aliases of a look-up that spans a reload are not checked", tunnel, "return x.decision.CheckWay(to.way)", "return allowlist.NoReason", "./proxy", "TestLookUpIsDecidedByTheStateAtItsEnd"},
		{"the aliases that led to an open tunnel are not checked by a new state", "proxy/live/judge.go", "if why = d.CheckWay(entry.Way); why != allowlist.NoReason {", "if why = d.CheckWay(entry.Way); why == allowlist.IdentityUnknown {", "./proxy", "TestEveryStateJudgesTheWay"},
		{"first bytes are checked by the state in which the tunnel was opened", first, "v := c.evaluate(how, p, last, h, err)", "v := c.evaluate(c.inspection, p, last, h, err)", "./proxy", "TestFirstBytesAreCheckedByTheStateInForceWhenTheyCome"},
		{"first bytes that were never read count as a match", "proxy/live/firstbytes.go", "return allowlist.SNIMismatch", "return allowlist.NoReason", "./proxy", "TestNewStateJudgesFirstBytesOfOpenTunnels"},
		{"max_revoke holds the end of quarantined tunnels", "proxy/live/hold.go", " && why != allowlist.QuarantinedIdentity", "", "./proxy/live", "TestWhatAChangeDoes"},
		{"an unknown proof is trusted", "proxy/live/judge.go", "	case allowlist.NoProof:\n	}", "	default:\n		trusted = true\n	}", "./proxy/live", "TestEveryProofIsJudged"},
		{"a date that passes during the dial is ignored", tunnel, "req.Time = time.Now() // a date", "_ = time.Now // a date", "./proxy", "TestRuleThatExpiresDuringTheLookUpDenies"},
		of("E", "any server name is accepted", first, "case err == nil && host == c.request.Dest.Host:", "case err == nil && host != allowlist.Host{}:"),
		of("E", "a ClientHello without a server name is accepted", first, "reason = allowlist.SNIMissing", "reason = allowlist.NoReason"),
		of("E", "a server name that is allowed on another port only is accepted", first, "return c.decide(c.current.Load(), name) // loaded after Change, as above", "d := c.decide(c.current.Load(), name)\n\tif d.Reason == allowlist.PortNotAllowed {\n\t\td.Verdict = allowlist.Allow\n\t}\n\treturn d"),
		of("E", "a server name that is only observed is recorded as a match", first, "c.observed, reason = &d, allowlist.NoReason", "seen.TLS, reason = audit.TLSMatch, allowlist.NoReason"),
		of("E", "ECH is never refused", first, "if h.ECH && mode == allowlist.ECHRefuse {", "if h.ECH && mode != allowlist.ECHRefuse && mode != allowlist.ECHRecord {"),
		of("E", "an alert hides a ClientHello", "proxy/hello/hello.go", "case typeAlert, typeChangeCipher:", "case typeAlert - 21:"),
		of("E", "an incomplete ClientHello is accepted", first, "if errors.Is(err, hello.ErrIncomplete) && !last {", "if errors.Is(err, hello.ErrIncomplete) {"),
		{"questions for the same names are not bounded", "proxy/resolve/budget.go", "case left.within(at) >= b.limit*questionsPerName:", "case left.within(at) < 0:", "./proxy/resolve", "TestQuestionsSentForAnIdentityAreBounded"},
		{"every record of an answer is kept", "proxy/resolve/wire/parse.go", "if p.kept == MaxRecords {", "if p.kept < 0 {", "./proxy/resolve/wire", "TestDecisionsForAnAnswerAreBounded"},
		{"the target of an alias is asked for although the policy denies it", "proxy/resolve/follow.go", "if !a.follows(answer) {", "if a.Follow == nil {", "./proxy/resolve", "TestOnlyAllowedAliasesAreAskedFor"},
		{"a server's statement about a name of other servers is used", "proxy/resolve/lookup.go", "msg = msg.OnlyAliases()", "_ = msg.OnlyAliases()", "./proxy/resolve", "TestTargetsOfAliasesAreLookedUp"},
		{"plain requests do not count in limits.tunnels", "proxy/limit/budgets.go", "case p.limits.Tunnels > 0 &&", "case l.tunnel && p.limits.Tunnels > 0 &&", "./proxy", "TestPlainRequestsCountAsOpenTunnels"},
		{"bytes that are no request do not count as queries", "proxy/dns/meter.go", "since >= m.free+bytesPerQuery;", "since < 0;", "./proxy/dns", "TestHTTP2FramesSpendTheBudget"},
		of("D", "the Host field names the origin of a plain request", "proxy/forward/request.go", "authority := authorityOf(r.URL.Dest)", "authority := r.Head.Host"),
		of("D", "fields that Connection names are sent on", "proxy/forward/fields.go", `v.isFraming(), nominated[v]:`, `v.isFraming(), nominated["X-"+v]:`),
		of("D/D30", "a connection on which a client logged in goes back to the shared pool", "proxy/forward/pool.go", "\tcase l.dedicated:\n\t\tp.addLogin(logins, l)\n", ""),
		of("D/D30", "a connection on which the origin offered such a login is shared", "proxy/forward/goproxy.go", "\t\tr.lane.dedicated = true\n", "\t\tr.lane.dedicated = r.lane.dedicated || false\n"),
		{"an origin gets the last bytes of a request over HTTP/2 before its end has come", "proxy/forward/stream.go", "if err == nil && b.left == 0 {\n\t\terr = b.readEnd()", "if err == nil && b.left == 0 {\n\t\terr = io.EOF", "./proxy/forward", "TestBodyOfAnotherLengthIsMalformed"},
		{"streams share a connection on which a client logged in", "proxy/forward/logins.go", "if _, ok := ex.Client.(Stream); ok {", "if _, ok := ex.Client.(Stream); ok && ex.Logins == nil {", "./proxy/forward", "TestStreamsShareNoLogin"},
		of("D/D31", "fields that servers read as a removed one (X_Forwarded_For) are sent on", "proxy/forward/fields.go", "return c\n\t\t}\n\t\treturn '-'", "return c\n\t\t}\n\t\treturn c"),
		of("D/D31", "a field that overrides the method is sent on", "proxy/forward/fields.go", "return !methods && !paths\n", "return !paths || name == \"\"\n"),
		of("D/D31", "the characters that escapes decode to are not checked", "allowlist/path.go", "case isAmbiguous(r):", "case isAmbiguous(r) && size == 0:"),
		of("D/D32", "a rule for upgrades allows h2c", wire, `strings.HasPrefix(name, "h2") || `, ""),
		of("D/D32", "a WebSocket in capitals may be dropped", wire, `demanded || strings.EqualFold(name, "websocket")`, `demanded || name == "websocket"`),
		of("D/D34_Host_other", "a query may name any host", "proxy/front/query.go", "if !isQueryAuthority(authority) {", "if !isQueryAuthority(authority) && authority == \"\" {"),
		of("D/D34", "a query may name any port", "proxy/gateway/query.go", "if err != nil || dest.Port != port {", "if err != nil {"),
		of("D/D35", "the body of a query is read as a request", "proxy/front/local.go", "!r.hasUnread() && ", ""),
		over2("D37", "a pseudo-header field may stand behind another field", stream, "case len(others) > 0:", "case len(others) > 99:"),
		over2("D37", "a pseudo-header field may come twice", stream, "case into.given:", "case into.given && f.Value == \"\":"),
		over2("D37", "a CONNECT may have :scheme and :path", stream, "IsConnect(p.method.text) && (p.scheme.given || p.path.given):", "IsConnect(p.method.text) && p.scheme.given != p.path.given:"),
		over2("D38", "names may have capital letters", "proxy/head/build.go", "strings.ToLower(f.Name) != f.Name:", "strings.ToUpper(f.Name) == f.Name && f.Name != \"\":"),
		over2("D38", "fields that concern a connection are sent on", "proxy/head/build.go", "case concernsConnection(f.Name):", "case concernsConnection(f.Name + \"s\"):"),
		over2("D39", ":authority is not compared with Host", stream, `if r.Cause = otherAuthority(r.Head, authority, r.URL.Dest); r.Cause != "" {`, `if r.Cause = otherAuthority(r.Head, authority, r.URL.Dest); r.Cause == "-" {`),
		over2("D39", ":scheme names another authority", stream, `strings.ContainsAny(p.scheme.text, ":/?#"):`, `strings.ContainsAny(p.scheme.text, "#"):`),
		over2("D40", "data goes to the origin before the last decision", tunnel, "reason, why := x.dialed(", "if s, ok := x.read.Client.(interface{ Await() }); ok && err == nil {\n\t\t\ts.Await()\n\t\t\tb := make([]byte, 5)\n\t\t\tn, _ := x.read.Client.Read(b)\n\t\t\t_, _ = res.Conn.Write(b[:n])\n\t\t}\n\t\treason, why := x.dialed("),
		over2("D42", "a second head on a stream is ignored", "proxy/h2/serve.go", "case s.answers == nil:", "case s.answers == nil && head.End:\n\t\ts.in.end()\n\t\treturn nil\n\tcase s.answers == nil:"),
		over2("E17", "the reset of a stream does not end its dial", "proxy/h2/stream.go", "\t\t\ts.cancel(err)\n", "\t\t\t_ = s.cancel\n"),
		over2("E17", "an origin's reset is an orderly end of the stream", "proxy/tunnel/side.go", "case s.stream != nil && !clean:", "case s.stream != nil && !clean:\n\t\t_ = s.stream.CloseWrite()\n\t\t_ = s.stream.Close()\n\tcase s.stream != nil && s.quiet:"),
		over2("E8", "a refused ClientHello keeps its stream open", "proxy/tunnel/tunnel.go", "if t.refusal != nil {", "if t.refusal != nil && t.client.stream == nil {"),
		over2("H16", "what carries nothing costs nothing", "proxy/h2/flood.go", "costFrame = 1 ", "costFrame = 0 "),
		over2("H19", "a broken connection has no record", "proxy/front/h2.go", "conn.Broken(broken.IsFlood(), broken.Error())", "_ = broken.IsFlood()"),
		of("H/H8", "denied requests spend no budget", "proxy/request.go", "if x.proxy.cfg.Budgets.Request(x.caller.Holder()) {", "if reason != allowlist.NoReason || x.proxy.cfg.Budgets.Request(x.caller.Holder()) {"),
		{"requests by source-map spend the budget of the certificate", "allowlist/holder.go", "mapped: proof == ProofSourceMap", "mapped: proof > ProofSourceMap", "./proxy/limit", "TestMappedHoldersHaveTheirOwnBudgets"},
		{"forged denials are merged with others", "proxy/audit/collapse.go", "proof: proofOf(rec), ", "", "./proxy/audit", "TestOnlyIdenticalDenialsAreCollapsed"},
		{"callers that wait for a sink take turns by identity only, not by network", "proxy/audit/waiting.go", "w.networksNext = !w.networksNext", "w.networksNext = w.networksNext && w.size < 0", "./proxy/audit", "TestManyIdentitiesOfOneSourceDelayNoOther"},
		{"a full queue drops the newest record, whoever has most in it", "proxy/audit/ring.go", "return r.drop(r.denials.victim(&it.seat))\n}", "return r.drop(it)\n}", "./proxy/audit", "TestForgedSourcesHideNoOtherDenials"},
		{"a sink that failed is tried again only with the next record", "proxy/audit/health.go", "q.tallies.sinkFailed(failed, err)", "_ = failed", "./proxy/audit", "TestSinkRecoversWithoutTraffic"},
		{"a connection with an invalid certificate is taken for a health check", "proxy/gateway/doors.go", "if why != allowlist.NoReason && why != allowlist.IdentityMissing {", "if why != allowlist.NoReason && why < allowlist.NoReason {", "./proxy/gateway", "TestNobodyHidesAsAHealthCheck"},
		{"a slot with a request is given up", "proxy/limit/slots.go", "if s.requests++; s.requests == 1 {", "if s.requests++; s.requests < 1 {", "./proxy/gateway", "TestSilentCallers"},
		{"callers without an identity may have every slot", "proxy/limit/slots.go", "	if owner.Share.known() {\n		return &s.identified", "	if owner.Share != ShareProxy {\n		return &s.identified", "./proxy/gateway", "TestSilentCallers"},
		{"a caller that is refused before its first request has no record", "proxy/request.go", "if s.conn.Used() || reason == allowlist.NoReason", "if s.conn.Used() || reason != allowlist.RateLimited", "./proxy/gateway", "TestAnIdentityThatHasItsShare"},
		of("H/H11", "a new policy resets what was spent", "proxy/limit/budgets.go", "if before != nil {", "if before != nil && period < 0 {"),
		of("H/H11", "limits of a new policy do not apply to open tunnels", "proxy/gateway/state.go", "\ts.budgets.Apply(e.State.Policy)\n", ""),
		of("C/C16", "the address check does not know the addresses of the host", "proxy/gateway/host.go", "Addresses: now,", ""),
		of("F/F11", "a removed authority ends no tunnel", "proxy/gateway/state.go", "if !after.SameTrust(before) {", "if after == before {"),
		of("F/F15", "an entry's own allow list does not set its mode", "allowlist/spec.go", "e.Allow != nil && !e.InheritMode", "e.Allow != nil && e.Force"),
		{"a lack of descriptors is reported as a failure of the destination", dial, "\tcase limit.NoDescriptor(err):\n\t\treturn allowlist.Busy\n\tcase errors.Is(", "\tcase errors.Is(", "./proxy/dial", "TestMissingDescriptorIsNoFaultOfTheDestination"},
		{"a connection to an origin keeps its descriptor", "proxy/dial/race.go", "tunnel.WrapWithRelease(conn, d.giveDescriptor)", "tunnel.WrapWithRelease(conn, nil)", "./proxy/dial", "TestDescriptorsAreTakenWhileOpen"},
		of("F/F16", "names in a certificate are not counted", "identity/presented.go", "if kind.n > maxEach {", "if kind.n > 200*maxEach {"),
		of("F/F17", "certificates with any kind of key are read", "identity/presented.go", "return errKey", "return nil"),
		of("F/F18", "certificates that do not verify spend no budget", "identity/verify.go", "budget.Spend(cost.time + costOfHandshake(certs))", "_ = cost"),
		of("F", "a certificate for servers proves a client", "identity/verify.go", "err = checkUsage(leaf, usage)", "_ = checkUsage(leaf, usage)"),
	}
}
