#!/bin/sh
# Checks what the image relies on: a static binary that starts as uid 65532
# without a shell, a home directory or a writable directory.
set -eu
bin=$1
if ldd "$bin" >/dev/null 2>&1; then
	echo "$bin is linked dynamically: an empty image cannot start it" >&2
	exit 1
fi
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
chmod 755 "$dir"
cp "$bin" "$dir/exeat"
chmod 755 "$dir/exeat"
cd /
setpriv --reuid 65532 --regid 65532 --clear-groups env -i "$dir/exeat" version
grep -q '^USER 65532:65532$' "$OLDPWD/Dockerfile"
grep -q '^RUN make build' "$OLDPWD/Dockerfile"
echo "static, starts as uid 65532"
