#!/bin/sh
# curl.sh prints the path of a curl that speaks HTTP/2 to a proxy, which the curl of Debian
# 12 does not. Unless the curl in PATH does, it takes curl and libcurl from the backports
# of the machine's Debian release, and installs neither: they are kept in exeat-ci/curl of
# the user's cache, so that curl in PATH stays as it is. What was fetched within 30 days,
# and still runs, is used again. The libraries below libcurl are those of the package curl.
set -eu
speaks() { "$1" --help all 2>/dev/null | grep -q -e --proxy-http2; }
if speaks curl; then
	command -v curl
	exit
fi
cache=${XDG_CACHE_HOME:-$HOME/.cache}/exeat-ci
kept=$cache/curl
if [ -z "$(find "$kept" -maxdepth 0 -mtime -30 2>/dev/null)" ] || ! speaks "$kept/curl"; then
	. /etc/os-release
	mkdir -p "$cache"
	new=$(mktemp -d "$cache/new-XXXXXX")
	trap 'rm -rf "$new"' EXIT
	mkdir -p "$new/apt/lists/partial" "$new/apt/archives/partial"
	# The backports are where the machine's own release comes from.
	from=$(apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' "Release: $VERSION_CODENAME" | head -n 1)
	if [ -z "$from" ]; then
		echo "curl.sh: apt knows no source of $VERSION_CODENAME: run apt-get update" >&2
		exit 1
	fi
	for suite in "$VERSION_CODENAME" "$VERSION_CODENAME-backports"; do
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main"
	done >"$new/apt/sources.list"
	# These options keep what apt reads and writes apart from the machine's own settings.
	apt() {
		apt-get -qq -o APT::Sandbox::User="$(id -un)" -o Dir::Etc::sourcelist="$new/apt/sources.list" -o Dir::Etc::sourceparts=- \
			-o Dir::State::lists="$new/apt/lists" -o Dir::Cache="$new/apt" "$@" >&2
	}
	apt update
	(cd "$new" && apt download "curl/$VERSION_CODENAME-backports" "libcurl4/$VERSION_CODENAME-backports")
	for package in "$new"/*.deb; do dpkg-deb -x "$package" "$new/root"; done
	rm -rf "$new/apt" "$new"/*.deb
	cat >"$new/curl" <<'END'
#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root/usr
LD_LIBRARY_PATH=$(dirname "$root"/lib/*/libcurl.so.4) exec "$root/bin/curl" "$@"
END
	chmod 755 "$new" "$new/curl"
	rm -rf "$kept"
	mv -T "$new" "$kept" 2>/dev/null || true # another run has fetched it meanwhile
	speaks "$kept/curl"
fi
echo "$kept/curl"
