#!/bin/sh
# Measures queues beside what others have: Redis Streams, beanstalkd, and bare System V
# message queues. The arguments go to postbus bench. Where redis-server or beanstalkd is
# missing it is installed, with Debian's apt-get, and kept from running as a service:
# the bench starts its own, on sockets in a directory that it removes.
set -eu
cd "$(dirname "$0")/../../../.."

temp=$(mktemp -d)
policy=/usr/sbin/policy-rc.d
made=
cleanup() {
	rm -rf "$temp"
	[ -z "$made" ] || rm -f "$policy"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

missing=
for program in redis-server beanstalkd; do
	command -v "$program" >/dev/null || missing="$missing $program"
done
if [ -n "$missing" ]; then
	# 101: no service may be started (invoke-rc.d(8)).
	if [ ! -e "$policy" ]; then
		made=1
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod +x "$policy"
	fi
	apt-get update -qq
	# shellcheck disable=SC2086 # several packages
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing
	if command -v systemctl >/dev/null; then
		# shellcheck disable=SC2086
		systemctl disable --quiet $missing || true
	fi
fi

"${GO:-go}" build -o "$temp/postbus" ./cmd/postbus
"$temp/postbus" bench --queue all --suite "$@"
