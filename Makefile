# One line a target; `make` prints them.
GOLANGCI := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT  := go run mvdan.cc/gofumpt@v0.12.0
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.DEFAULT_GOAL := help
.PHONY: help build test check vet lint fmt race planted e2e collector hostile soak mutants mutants-fuzz dns dns-denied rules dashboards vuln fuzz bench bench-quick bench-peers bench-peers-quick bench-dns bench-dns-quick enforce enforce-quick cover image image-check generate

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 20

build: ## build the static binary bin/exeat
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.versionText=$(VERSION)" -o bin/exeat ./cmd/exeat

test: ## run the fast tests
	go test ./...

check: vet lint race ## everything that a commit must pass

vet: ## go vet, module checksums, formatting
	go mod verify
	go vet ./...
	@out=$$($(GOFUMPT) -l .) && test -z "$$out" || { echo "not gofumpt: $$out"; exit 1; }

lint: ## golangci-lint with the import lists
	$(GOLANGCI) run ./...

fmt: ## format
	$(GOFUMPT) -w .

race: ## run the fast tests under the race detector
	go test -race ./...

planted: ## prove that a forbidden import in any room fails the linter
	GOLANGCI="$(GOLANGCI)" sh e2e/planted.sh

e2e: ## real clients: a gigabyte through a tunnel, ten rotations and a CA roll; only RUN, if it is set
	go test ./e2e -run '$(RUN)' -count=1 -timeout 15m -args -bytes 1073741824 -rotations 10 -lifetime 3s

collector: build ## 20,000 decisions through a real OpenTelemetry Collector, killed and restarted
	otelcol=$$(sh e2e/kept.sh e2e/collector/otelcol .) && \
	go test ./e2e/collector -count=1 -v -timeout 10m -otelcol $$otelcol -exeat $(CURDIR)/bin/exeat

hostile: ## what is promised of hostile inputs: run every case, count, write the table of docs/security.md
	cd e2e/hostile && go test -count=1 -run 'Promises|Rows' -args -summary -update

soak: ## 10,000 half-open handshakes, then hostile traffic for SOAK (3m): nothing stays behind, nobody else is hurt
	go run ./e2e/measure soak -for $(or $(SOAK),3m)

# A gateway with a fault may connect to anything: there is nothing to connect to.
mutants: ## plant faults, each in a copy of the tree; the cases of make hostile must find each
	go mod download && unshare -rn sh -c 'ip link set lo up && exec go run ./e2e/mutants'

mutants-fuzz: ## plant a fault for every fuzz target, which must find it within a minute
	go mod download && unshare -rn sh -c 'ip link set lo up && exec go run ./e2e/mutants -fuzz'

dns: dns-denied ## make dns-denied, then dig, dnspython, unbound, dnsmasq and the stubs of glibc, musl, Go, c-ares and Java
	go test ./e2e -run TestDNS -count=1 -v

dns-denied: ## 100,000 denied names over each way: no packet leaves
	go test ./proxy/dns -run TestNoPacketLeavesForADeniedName -count=1 -timeout 30m -args -denied 100000

rules: ## check the Prometheus rules and run their tests
	sh e2e/promtool.sh

dashboards: ## run every query of the Grafana dashboards by Prometheus's engine, against scripted series
	promtool=$$(sh e2e/kept.sh e2e/promtool github.com/prometheus/prometheus/cmd/promtool) && \
	go test ./e2e/dashboards -count=1 -args -promtool $$promtool

vuln: build ## known vulnerabilities in bin/exeat: one in a dependency fails, one in Go's own library is printed
	govulncheck=$$(sh e2e/kept.sh e2e/vuln/govulncheck golang.org/x/vuln/cmd/govulncheck) && go run ./e2e/vuln $$govulncheck bin/exeat

fuzz: ## run each fuzz target for FUZZTIME (10s)
	sh e2e/fuzz.sh $(or $(FUZZTIME),10s)

bench: ## micro benchmarks, then tunnels beside the bare relay
	go test -run '^$$' -bench . -benchmem ./allowlist ./proxy/h2 ./proxy/head ./proxy/hello ./proxy/limit ./proxy/resolve ./proxy/tunnel ./proxy/audit/... ./cmd/exeat/telemetry ./identity
	go run ./e2e/measure tunnels

bench-quick: ## only the tunnels beside the bare relay, in one to two minutes
	go run ./e2e/measure tunnels -quick

bench-peers: ## exeat beside the bare relay, HAProxy and Squid: one table
	sh e2e/measure/peers.sh tunnels

bench-peers-quick: ## the same in about a minute
	sh e2e/measure/peers.sh tunnels -quick

bench-dns: ## queries per second of processor time beside dnsdist, unbound and CoreDNS
	sh e2e/measure/peers.sh dns

bench-dns-quick: ## the same without CoreDNS, in less than a minute
	sh e2e/measure/peers.sh dns -quick

enforce: ## 9,000 live tunnels, or as many as there are descriptors for: what a new state ends, and how fast
	go run ./e2e/measure enforce

enforce-quick: ## the same with 1,500 tunnels, in less than a minute
	go run ./e2e/measure enforce -quick

cover: ## test coverage of each package
	go test -cover ./...

image: ## build the container image exeat:VERSION
	docker build --build-arg VERSION=$(VERSION) -t exeat:$(VERSION) .

image-check: build ## what the image needs of the binary: static, starts as uid 65532
	sh e2e/image.sh bin/exeat

generate: ## write the generated parts of docs/
	go test ./docs ./e2e/hostile -run Generated -update
