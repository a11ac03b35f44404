#!/bin/sh
# Installs the programs from Debian that are measured beside exeat, and measures:
#
#	peers.sh tunnels [flags]   beside HAProxy and Squid
#	peers.sh dns [flags]       beside dnsdist, unbound and, without -quick, CoreDNS,
#	                           which is built from its pinned module
#
# The services of the packages are not started: the measurement starts the programs
# that it needs.
set -eu
cd "$(dirname "$0")/../.."

# install PACKAGES PROGRAM... installs the packages unless every program exists.
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
	# shellcheck disable=SC2086 # the names of several packages
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
