#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Run the tests of a build folder and end with one plain line that counts them.
#
#   tools/test.sh build [arguments of meson test]
set -u
build=$1
shift
meson test -C "$build" --no-rebuild --print-errorlogs "$@" </dev/null
status=$?
python3 "$(dirname "$0")/test_summary.py" "$build/meson-logs/testlog.json" || status=1
exit $status
