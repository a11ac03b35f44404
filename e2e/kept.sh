#!/bin/sh
# Prints the path of a program that is heavy to build, and builds it unless it is
# kept from another run: kept.sh DIRECTORY PACKAGE, of a module of its own.
#
# It is kept outside the tree, in exeat-ci/NAME-VERSION of the user's cache, where
# VERSION is a sum over what it is built from: the files of the directory, the
# version of Go and its settings. Before it is used it must still have the sum that
# it had when it was built. What nobody has used for 30 days is removed.
set -eu
dir=$1
package=$2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/exeat-ci
if [ "$package" = . ]; then name=$(basename "$dir"); else name=$(basename "$package"); fi
version=$({
	go -C "$dir" version
	go env GOOS GOARCH GOFLAGS CGO_ENABLED
	cat "$dir"/go.mod "$dir"/go.sum "$dir"/*.go 2>/dev/null || true # a module of tools has no file in Go
} | sha256sum | cut -c1-16)
kept=$cache/$name-$version

whole() { (cd "$kept" 2>/dev/null && sha256sum --status -c sum); }

if ! whole; then
	mkdir -p "$cache"
	find "$cache" -mindepth 1 -maxdepth 1 -mtime +30 -exec rm -rf {} +
	new=$(mktemp -d "$cache/new-XXXXXX")
	trap 'rm -rf "$new"' EXIT
	go -C "$dir" build -o "$new/$name" "$package" >&2
	(cd "$new" && sha256sum "$name" >sum)
	rm -rf "$kept"
	mv -T "$new" "$kept" 2>/dev/null || whole # somebody else was faster
fi
touch "$kept"
echo "$kept/$name"
