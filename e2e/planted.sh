#!/bin/sh
# Adds a forbidden import to every package in a copy of the tree, and an import of a
# package for tests to those below cmd, which may import most packages of the module.
# It fails unless the linter reports each of them, and so proves that the import lists
# of .golangci.yml have an effect.
set -eu
golangci=${GOLANGCI:-golangci-lint}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 tar cf - | tar xf - -C "$copy"
cd "$copy"

packages=$(go list -f '{{if .GoFiles}}{{.Dir}} {{.Name}}{{end}}' ./allowlist/... ./identity/... ./proxy/... ./cmd/...)
echo "$packages" | while read -r dir name; do
	# Every package may import the standard library. This module is in go.mod and
	# in the list of no package.
	printf 'package %s\n\nimport _ "github.com/google/go-cmp/cmp"\n' "$name" >"$dir/planted.go"
	case $dir in
	"$copy"/cmd/*) printf 'package %s\n\nimport _ "github.com/exeat-dev/exeat/e2e/site"\n' "$name" >"$dir/planted_site.go" ;;
	esac
done
$golangci run --enable-only depguard ./... >report.txt 2>&1 && {
	echo "the linter passed with planted imports" >&2
	exit 1
}
planted=$(find allowlist identity proxy cmd -name 'planted*.go')
missed=0
for file in $planted; do
	if ! grep -q "^$file:" report.txt; then
		echo "no report for $file" >&2
		missed=1
	fi
done
[ "$missed" = 0 ] || { cat report.txt >&2; exit 1; }
echo "$(echo "$planted" | wc -l) planted imports in $(echo "$packages" | wc -l) packages, each reported"
