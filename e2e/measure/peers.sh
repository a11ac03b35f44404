#!/bin/sh
# Installs from Debian what stands beside exeat in a measurement, and measures:
#
#	peers.sh tunnels [flags]   beside HAProxy and Squid
#	peers.sh dns [flags]       beside dnsdist, unbound and, unless -quick is asked
#	                           for, CoreDNS, which it builds from its pinned module
#
# The services of the packages are not started: the measurement starts what it
# needs.
set -eu
cd "$(dirname "$0")/../.."

# install installs packages unless every program is there: PACKAGES PROGRAM...
install() {
	packages=$1
	shift
	for program; do
		[ -x "$program" ] || missing=1
	done
	[ "${missing-}" ] || return 0
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	apt-get update -qq
	# shellcheck disable=SC2086 # they are several
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
}

what=$1
shift
case $what in
tunnels)
	install "haproxy squid-openssl" /usr/sbin/haproxy /usr/sbin/squid
	set -- -peers "$@"
	;;
dns)
	install "dnsdist unbound dnsperf util-linux" /usr/bin/dnsdist /usr/sbin/unbound /usr/bin/dnsperf
	case " $* " in
	*" -quick "*) ;;
	*)
		coredns=$(sh e2e/kept.sh e2e/coredns github.com/coredns/coredns)
		set -- -coredns "$coredns" "$@"
		;;
	esac
	;;
esac
go run ./e2e/measure "$what" "$@"
