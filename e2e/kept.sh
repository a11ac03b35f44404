#!/bin/sh
# kept.sh DIRECTORY PACKAGE prints the path of a program that takes long to build, and
# builds it unless another run has done so. DIRECTORY has a module of its own.
#
# The program is kept outside the tree, in exeat-ci/NAME-VERSION of the user's cache.
# VERSION is a hash of what it is built from: the files of the directory, the version
# of Go and its settings. Before it is used, the program must still have the hash that
# it had when it was built. Programs that were not used for 30 days are removed.
set -eu
dir=$1
package=$2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/exeat-ci
if [ "$package" = . ]; then name=$(basename "$dir"); else name=$(basename "$package"); fi
version=$({
	go -C "$dir" version
	go env GOOS GOARCH GOFLAGS CGO_ENABLED
	cat "$dir"/go.mod "$dir"/go.sum "$dir"/*.go 2>/dev/null || true # a module of tools has no Go files
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
	mv -T "$new" "$kept" 2>/dev/null || whole # another run has built it meanwhile
fi
touch "$kept"
echo "$kept/$name"
