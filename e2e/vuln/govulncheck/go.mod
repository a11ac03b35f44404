// govulncheck and its database: a module of its own, so that nothing of them
// enters the module that ships. The newer the database, the more it knows:
//
//	go -C e2e/vuln/govulncheck get golang.org/x/vulndb@latest
//
// No program of the database is built and no package of it is imported, so
// `go mod tidy` would remove its line.
module github.com/exeat-dev/exeat/e2e/vuln/govulncheck

go 1.26.0

tool golang.org/x/vuln/cmd/govulncheck

require (
	golang.org/x/mod v0.42.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/telemetry v0.0.0-20261010193011-f71dc92da45e // indirect
	golang.org/x/tools v0.52.0 // indirect
	golang.org/x/vuln v1.9.0 // indirect
	golang.org/x/vulndb v0.0.0-20261105234957-e22db6528018 // only its data are read
)
