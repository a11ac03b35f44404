#!/bin/sh
# Installs what stands beside exeat in the benchmark of DNS, from Debian, builds
# CoreDNS from its pinned module unless -quick is asked for, and measures. The
# services of the packages are not started: the benchmark starts what it needs.
set -eu
cd "$(dirname "$0")/../../.."

if [ ! -x /usr/bin/dnsdist ] || [ ! -x /usr/sbin/unbound ] || [ ! -x /usr/bin/dnsperf ]; then
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends dnsdist unbound dnsperf util-linux >/dev/null
fi
case " $* " in
*" -quick "*) ;;
*)
	# Go builds it again only when its version changes.
	go -C e2e/coredns build -o ../../bin/coredns github.com/coredns/coredns
	set -- -coredns "$PWD/bin/coredns" "$@"
	;;
esac
go run ./e2e/bench/dns "$@"
