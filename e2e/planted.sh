#!/bin/sh
# Plants a forbidden import in every room, in a copy of the tree, and fails
# unless the linter reports each of them: the import lists of .golangci.yml
# would be worth nothing otherwise.
set -eu
golangci=${GOLANGCI:-golangci-lint}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z --cached --others --exclude-standard | xargs -0 tar cf - | tar xf - -C "$copy"
cd "$copy"

rooms=$(go list -f '{{if .GoFiles}}{{.Dir}} {{.Name}}{{end}}' ./allowlist/... ./identity/... ./proxy/... ./cmd/...)
echo "$rooms" | while read -r dir name; do
	# Every room may import the standard library, so the planted one is a
	# module that is in go.mod and in no room's list.
	printf 'package %s\n\nimport _ "github.com/google/go-cmp/cmp"\n' "$name" >"$dir/planted.go"
done
$golangci run --enable-only depguard ./... >report.txt 2>&1 && {
	echo "the linter passed with planted imports" >&2
	exit 1
}
missed=0
for dir in $(echo "$rooms" | cut -d' ' -f1); do
	file=${dir#"$copy"/}/planted.go
	if ! grep -q "^$file:" report.txt; then
		echo "no report for $file" >&2
		missed=1
	fi
done
[ "$missed" = 0 ] || { cat report.txt >&2; exit 1; }
echo "$(echo "$rooms" | wc -l) rooms, each planted import reported"
