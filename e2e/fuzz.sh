#!/bin/sh
# Runs every fuzz target of the module, each for the given time: sh fuzz.sh 10s
set -eu
time=$1
said=$(mktemp)
trap 'rm -f "$said"' EXIT

# fuzz PACKAGE TARGET runs a target. It runs it a second time if the only error is
# "context deadline exceeded", with which go test fails now and then when the time is
# over while it minimizes an input.
fuzz() {
	for _ in 1 2; do
		if go test -run '^$' -fuzz "^$2\$" -fuzztime "$time" "$1" >"$said" 2>&1; then
			cat "$said"
			return
		fi
		cat "$said"
		grep -qx ' *context deadline exceeded' "$said" || return 1
		! grep -qE 'Failing input|seed corpus|panic:' "$said" || return 1
	done
	return 1
}

grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do
	grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go | cut -d' ' -f2 | while read -r target; do
		echo "== $dir $target"
		fuzz "$dir" "$target"
	done
done
