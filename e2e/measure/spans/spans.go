// Package spans counts the spans that a program under measurement exports. It runs a
// collector beside the measurements, and asks it for the count.
package spans

import (
	"context"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"

	"github.com/exeat-dev/exeat/e2e/site"
)

// Program is the package of the collector, as an argument of site.Build.
const Program = "e2e/measure/collector"

// Collector is a running collector.
type Collector struct {
	// URL is the OTLP endpoint of the collector.
	URL string
}

// Start starts the collector, which must be built into the site. The site ends it.
func Start(ctx context.Context, s *site.Site) (*Collector, error) {
	p, err := s.Start(exec.CommandContext(ctx, s.Path("collector")), site.Ready{Announces: 1})
	if err != nil {
		return nil, err
	}
	return &Collector{URL: "http://" + p.Addresses[0]}, nil
}

// Count returns the number of spans that have arrived.
func (c *Collector) Count(ctx context.Context) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/spans", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64)
}
