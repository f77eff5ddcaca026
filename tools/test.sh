#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Run the tests of a build folder: a line a test while they run, then the logs of those that failed, a line a part, and
# at the end one plain line that counts them. Seeds with which a test failed go to tests/seeds.txt.
#
#   tools/test.sh build [arguments of meson test]
set -u
build=$1
shift
tools=$(dirname "$0")
meson test -C "$build" --no-rebuild "$@" </dev/null
status=$?
python3 "$tools/test_summary.py" "$build/meson-logs/testlog.json" "$tools/../tests/seeds.txt" || status=1
exit $status
