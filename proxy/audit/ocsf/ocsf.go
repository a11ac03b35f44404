// Package ocsf renders audit records as events of the Open Cybersecurity
// Schema Framework, version 1.8.0, for sinks that security teams read.
//
// [Render] is an audit.Render: it appends one event as one line of JSON. A decision and
// the records of its tunnel are HTTP Activity (4002), one about a DNS query is DNS
// Activity (4003), both with the profiles network_proxy and security_control; a failed
// handshake is Network Activity (4001); a new policy or a new identity of the gateway
// is Entity Management (3004). docs/records.md has the whole mapping. Fields without a
// place in the schema are under unmapped, with their names of the native form, so that
// nothing is lost.
//
// The package renders the fields of the record only: it does not look anything up, and
// keeps no state.
package ocsf

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/exeat-dev/exeat/allowlist"
	"github.com/exeat-dev/exeat/proxy/audit"
)

// schemaVersion is the version of the schema that events state.
const schemaVersion = "1.8.0"

// Render appends the event of a record to dst, without a newline. It never fails on a
// record; the error is that of the JSON encoder. It is safe for concurrent use.
func Render(dst []byte, r *audit.Record) ([]byte, error) {
	e := event{
		Time:         r.Time.UnixMilli(),
		Severity:     severity(r),
		Duration:     r.Duration.Milliseconds(),
		StatusCode:   r.Reason.String(),
		StatusDetail: r.DetailText(),
		Metadata: metadata{
			Version: schemaVersion, Code: r.Event, Correlation: r.ID,
			Product: product{Name: "exeat", Vendor: "exeat"},
		},
		Unmapped: unmappedFields(r),
	}
	if r.Duration > 0 {
		e.Start = r.Time.Add(-r.Duration).UnixMilli()
	}
	if m := r.Merged; m != nil {
		e.Count, e.Start, e.End = m.Count, m.First.UnixMilli(), m.Last.UnixMilli()
	}
	e.classify(r)
	line, err := json.Marshal(&e)
	if err != nil {
		return dst, fmt.Errorf("rendering record %s as OCSF: %w", r.ID, err)
	}
	return allowlist.AppendVisible(dst, line), nil
}

// classify chooses the class and sets the attributes that the class requires.
func (e *event) classify(r *audit.Record) {
	if !sharesID(r) {
		e.Metadata.ID = r.ID
	}
	switch r.Event {
	case audit.EventDecision, audit.EventCollapsed:
		if r.Protocol == audit.ProtocolDNS {
			e.dns(r)
		} else {
			e.http(r)
		}
		e.Status = outcome(r)
	case audit.EventSummary:
		e.http(r)
	case audit.EventTunnelProgress, audit.EventTunnelClose:
		e.http(r)
		e.Traffic = &traffic{Bytes: r.Up + r.Down, Out: r.Up, In: r.Down}
	case audit.EventHandshake:
		e.setClass(networkActivity, activityFail, "Network Activity: Fail") // no request was read
		e.Status = statusFailure
		e.Source, e.Destination = source(r), gateway(r)
	case audit.EventPolicyReload:
		e.entity(entity{Name: "egress policy", TypeID: entityPolicy, Type: "Policy", Version: r.Policy})
		if r.Policy == "" { // the policy was refused
			e.Status = statusFailure
		}
	case audit.EventQuarantine:
		e.entity(entity{Name: "quarantine", TypeID: entityPolicy, Type: "Policy", Version: r.Policy})
		e.Status = statusSuccess
	case audit.EventIdentityRotate:
		e.entity(entity{
			Name: "gateway identity", TypeID: other, Type: "X.509-SVID", ID: r.IdentityText(),
		})
		e.Status = statusSuccess
	}
}

// sharesID reports whether the record's id is that of a decision which has an event of
// its own. metadata.uid must be unique, whereas correlation_uid joins events.
func sharesID(r *audit.Record) bool {
	return r.Event == audit.EventTunnelProgress || r.Event == audit.EventTunnelClose ||
		r.Event == audit.EventCollapsed || r.Stage == audit.StageTLS || r.Supersedes
}

// setClass sets the class and the attributes that follow from it.
func (e *event) setClass(class, activity int, name string) {
	e.Category, e.Class, e.ActivityID = class/1000, class, activity
	e.TypeID, e.Type = class*100+activity, name
}

// http makes the event HTTP Activity, from the caller through the gateway to the
// destination.
func (e *event) http(r *audit.Record) {
	activity, caption := method(r.Method)
	e.setClass(httpActivity, activity, "HTTP Activity: "+caption)
	if activity == other {
		e.Activity = r.MethodText()
	}
	e.Metadata.Profiles = []string{"network_proxy", "security_control"}
	e.Source, e.Destination, e.Proxy = source(r), destination(r), gateway(r)
	e.Connection = &connection{Direction: outbound, Protocol: transport(r)}
	e.Request = &request{ID: r.ID, Method: r.MethodText()}
	if !r.Dest.Host.IsZero() {
		e.Request.URL = &url{Text: r.Dest.String(), Host: name(r), Port: r.Dest.Port, Path: r.Path}
		if r.Protocol == audit.ProtocolHTTP {
			e.Request.URL.Text = "http://" + r.Dest.String() + r.Path
		}
	}
	if r.Status != 0 {
		e.Response = &response{Code: r.Status}
	}
	e.security(r)
}

// dns makes the event DNS Activity, from the caller to the gateway, which is the server
// that was queried.
func (e *event) dns(r *audit.Record) {
	if r.DNS.Code == "" {
		e.setClass(dnsActivity, activityQuery, "DNS Activity: Query")
	} else {
		e.setClass(dnsActivity, activityTraffic, "DNS Activity: Traffic")
		code, caption := responseCode(r.DNS.Code)
		e.Code, e.CodeText = &code, caption
		for _, text := range audit.AddressTexts(r.DNS.Answered) {
			e.Answers = append(e.Answers, answer{text})
		}
	}
	e.Metadata.Profiles = []string{"network_proxy", "security_control"}
	e.Source, e.Destination, e.Proxy = source(r), gateway(r), gateway(r)
	e.Connection = &connection{Direction: outbound, Protocol: transport(r)}
	if !r.Dest.Host.IsZero() {
		e.Query = &query{Host: r.Dest.Host.String(), Type: r.DNS.TypeText(), Class: "IN"}
	}
	e.security(r)
}

// transport returns the transport protocol of the request.
func transport(r *audit.Record) string {
	if r.Wire == audit.WireUDP {
		return udp
	}
	return tcp
}

// security sets the attributes of the profile security_control.
func (e *event) security(r *audit.Record) {
	action, disposition := control(r)
	e.Action, e.Disposition = &action, &disposition
	if r.Rule != "" {
		e.Rule = &named{Name: r.Rule}
	}
	if r.Policy != "" {
		e.Policy = &named{ID: r.Policy}
	}
}

func (e *event) entity(changed entity) {
	e.setClass(entityManagement, activityUpdate, "Entity Management: Update")
	e.Entity = &changed
}

// source returns the caller as an endpoint with its address and identity. The SPIFFE ID
// is the name of the calling service and, where tools look for principals, its owner.
func source(r *audit.Record) *endpoint {
	var from endpoint
	if r.Client.IsValid() {
		from.IP, from.Port = ip(r.Client.Addr()), r.Client.Port()
	}
	if !r.Identity.IsZero() {
		id := r.IdentityText()
		from.Service = id
		from.Owner = &user{ID: id, Domain: r.Identity.TrustDomain().Name(), TypeID: other, Type: "Workload"}
	}
	switch {
	case from != endpoint{}:
	case r.Merged != nil && r.Merged.Other:
		from.Service = audit.Other
	default: // a unix socket without an identity: the schema requires one attribute
		from.Name = "unknown"
	}
	return &from
}

// ip returns an address without its zone, which readers of events do not accept.
func ip(addr netip.Addr) string { return addr.WithZone("").String() }

// destination returns the destination that was asked for, with the address that was
// dialled. It is the gateway for a request that names none.
func destination(r *audit.Record) *endpoint {
	if r.Dest.Host.IsZero() {
		return gateway(r)
	}
	to := endpoint{Host: name(r), Port: r.Dest.Port}
	switch {
	case r.Address.IsValid():
		to.IP = ip(r.Address.Addr())
	case r.Dest.Host.IsAddr():
		to.IP = r.Dest.Host.String()
	}
	return &to
}

// name returns the destination's host unless that is an address.
func name(r *audit.Record) string {
	if r.Dest.Host.IsAddr() {
		return ""
	}
	return r.Dest.Host.String()
}

func gateway(r *audit.Record) *endpoint {
	return &endpoint{Service: "exeat", Name: r.Listener}
}
