#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Install the Debian or Ubuntu packages that a make target needs and that are missing.
#
#   tools/deps.sh build|run|test|programs
#
# Each group contains the ones before it. Says nothing and starts nothing where all is there. On other
# systems, or without the right to install, it names what is missing and leaves it at that: the build
# goes on, because the tools may be there under other names. What only adds parts (the libraries that
# adapters talk to, another processor to test on) is optional: where it is not to be had, those are left out.
#
# Redis and memcached come with a system service that their packages start. Nobody asked for that:
# a policy-rc.d (Debian's own switch for this) forbids the start while they are installed, and a
# service that this script brought in is disabled afterwards. What was installed before is left alone.
set -eu

build="gcc libc6-dev make meson ninja-build pkg-config python3 libjemalloc-dev libjemalloc2 libseccomp-dev
	liburing-dev libcjson-dev libcmocka-dev"
run="redis-server redis-tools"
test="binutils clang gdb libclang-rt-dev g++ git libcap2-bin memcached memtester openssl php-cli socat sqlite3 spin stress-ng
	valgrind xz-utils"
test_optional="clang-format-14 gcc-aarch64-linux-gnu gcovr libc6-dev-arm64-cross libfabric-dev libibverbs-dev libucx-dev qemu-user"
# Every one of them is optional: `make programs` tries those that are there, and names the others.
programs_optional="bubblewrap mawk perl pulseaudio pulseaudio-utils rt-tests util-linux"

optional=""
case "${1:-build}" in
build) wanted=$build ;;
run) wanted="$build $run" ;;
test)
	wanted="$build $run $test"
	optional=$test_optional
	;;
programs)
	wanted="$build $run $test"
	# Python's own tests are a package of the version.
	version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
	optional="$test_optional $programs_optional${version:+ libpython$version-testsuite}"
	;;
*)
	echo "usage: tools/deps.sh build|run|test|programs" >&2
	exit 2
	;;
esac

if ! command -v dpkg >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
	missing=""
	for tool in cc meson ninja pkg-config python3; do
		command -v $tool >/dev/null 2>&1 || missing="$missing $tool"
	done
	if [ -n "$missing" ]; then
		echo "sublet: not found:$missing. README.md names the packages of other systems." >&2
		exit 1
	fi
	exit 0
fi

# missing_of PACKAGE... - those that are not installed, each with a space before it
missing_of() {
	for package in "$@"; do
		case "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" in
		"install ok installed") ;;
		*) printf ' %s' "$package" ;;
		esac
	done
}
# shellcheck disable=SC2086
missing=$(missing_of $wanted)
# shellcheck disable=SC2086
missing_optional=$(missing_of $optional)
[ -n "$missing$missing_optional" ] || exit 0

sudo=""
if [ "$(id -u)" -ne 0 ]; then
	sudo="sudo"
	# Without a terminal nobody could type a password.
	[ -t 0 ] || sudo="sudo -n"
	if ! command -v sudo >/dev/null 2>&1 || ! $sudo true; then
		echo "sublet: packages are missing, and sudo is not there or not allowed; going on without. As root:" >&2
		echo "        apt-get install -y --no-install-recommends$missing$missing_optional" >&2
		exit 0
	fi
fi

policy=/usr/sbin/policy-rc.d
guard=""
cleanup() {
	[ -z "$guard" ] || $sudo rm -f "$policy"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

echo "sublet: installing$missing$missing_optional"
if [ ! -e "$policy" ]; then
	guard=yes
	printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
	$sudo chmod 755 "$policy"
fi
log=$(mktemp)
# apt_install PACKAGE... - all of them or none
apt_install() {
	[ $# -eq 0 ] || $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" \
		</dev/null >"$log" 2>&1
}
# install_or_say PACKAGE... - where that fails, say why, and go on
install_or_say() {
	if ! apt_install "$@"; then
		tail -n 5 "$log" >&2
		echo "sublet: could not install $*; going on without" >&2
	fi
}
$sudo apt-get update -q </dev/null >"$log" 2>&1 || true
# shellcheck disable=SC2086
install_or_say $missing
# One by one: each is good for something without the others.
for package in $missing_optional; do
	install_or_say "$package"
done
rm -f "$log"
# A build folder that was made without them looks again.
[ -z "$missing_optional" ] || touch "$(dirname "$0")/../meson.build"

for service in redis-server memcached; do
	case " $missing " in
	*" $service "*)
		if command -v systemctl >/dev/null 2>&1; then
			$sudo systemctl disable --now "$service" >/dev/null 2>&1 || true
		fi
		;;
	esac
done
