package allowlist

import (
	"errors"
	"fmt"
	"slices"
	"testing"
)

// errorTypes returns the error types of RFC 9209 section 2.3.
func errorTypes() []string {
	return []string{
		"dns_timeout", "dns_error", "destination_not_found", "destination_unavailable", "destination_ip_prohibited",
		"destination_ip_unroutable", "connection_refused", "connection_terminated", "connection_timeout",
		"connection_read_timeout", "connection_write_timeout", "connection_limit_reached", "tls_protocol_error",
		"tls_certificate_error", "tls_alert_received", "http_request_error", "http_request_denied",
		"http_response_incomplete", "http_response_header_section_size", "http_response_header_size",
		"http_response_body_size", "http_response_trailer_section_size", "http_response_trailer_size",
		"http_response_transfer_coding", "http_response_content_coding", "http_response_timeout",
		"http_upgrade_failed", "http_protocol_error", "proxy_internal_response", "proxy_internal_error",
		"proxy_configuration_error", "proxy_loop_detected",
	}
}

// TestErrorTypesAreThoseOfTheRFC checks that the error types of the reasons are those of
// RFC 9209 section 2.3.
func TestErrorTypesAreThoseOfTheRFC(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Causes() {
		if text := c.ProxyError(); seen[text] || !slices.Contains(errorTypes(), text) {
			t.Errorf("cause %d has the type %q", c, text)
		} else {
			seen[text] = true
		}
	}
	for _, r := range Reasons() {
		if text := r.Info().ProxyError; text != "" && !slices.Contains(errorTypes(), text) {
			t.Errorf("%s has the type %q", r, text)
		}
		if got, want := r.ProxyError(NoCause), r.Info().ProxyError; got != want {
			t.Errorf("%s without a cause has the type %q, want %q", r, got, want)
		}
		if got := r.ProxyError(CauseUnroutable); got != "destination_ip_unroutable" {
			t.Errorf("%s with a cause has the type %q", r, got)
		}
	}
}

// TestDetailAndCauseOfErrors checks the detail and the cause of errors, also if a ReasonError
// wraps another one.
func TestDetailAndCauseOfErrors(t *testing.T) {
	plain := errors.New("192.0.2.1:443: connection refused")
	for name, row := range map[string]struct {
		err    error
		detail string
		cause  Cause
	}{
		"nothing":                 {nil, "", NoCause},
		"an error without reason": {plain, plain.Error(), NoCause},
		"a reason":                {&ReasonError{Reason: Busy}, "", NoCause},
		"a reason with an error":  {&ReasonError{Reason: DialRefused, Err: plain}, plain.Error(), NoCause},
		"one within another":      {&ReasonError{Reason: DialFailed, Err: fmt.Errorf("dialling: %w", &ReasonError{Cause: CauseUnroutable, Err: plain})}, plain.Error(), CauseUnroutable},
		"the first cause counts":  {&ReasonError{Cause: CauseProtocol, Err: &ReasonError{Cause: CauseUnroutable}}, "", CauseProtocol},
	} {
		if got := DetailOf(row.err); got != row.detail {
			t.Errorf("%s: detail %q, want %q", name, got, row.detail)
		}
		if got := CauseOf(row.err); got != row.cause {
			t.Errorf("%s: cause %d, want %d", name, got, row.cause)
		}
	}
}
