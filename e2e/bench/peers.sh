#!/bin/sh
# Installs what stands beside exeat in the benchmark, from Debian, and measures.
# Their own services are not started: the benchmark starts what it needs.
set -eu
cd "$(dirname "$0")/../.."

if [ ! -x /usr/sbin/haproxy ] || [ ! -x /usr/sbin/squid ]; then
	policy=/usr/sbin/policy-rc.d
	if [ ! -e "$policy" ]; then
		trap 'rm -f "$policy"' EXIT
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
	fi
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends haproxy squid-openssl >/dev/null
fi
go run ./e2e/bench -peers "$@"
