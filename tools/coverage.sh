#!/bin/sh
# SPDX-License-Identifier: MIT
#
# What the tests reach of the engine: a build of its own with gcov's counters, the suites that use the engine, and a
# table of lines and branches of src/core. docs/coverage.md says what is not reached, and why.
#
#   tools/coverage.sh build-coverage [suite ...]
set -eu
source=$(cd "$(dirname "$0")/.." && pwd)
build=$1
shift
[ $# -gt 0 ] || set -- unit model sim fault linux dev
test -f "$build/build.ninja" || meson setup "$build" "$source" -Db_coverage=true -Doptimization=0 -Dc_args=-fprofile-update=atomic \
	-Dcli=false -Dbridge=false -Dbench=false -Dofi=disabled -Ducx=disabled >/dev/null
ninja -C "$build" >/dev/null
find "$build" -name '*.gcda' -delete
suites=""
for suite in "$@"; do
	! test -f "$source/tests/$suite/meson.build" || suites="$suites --suite $suite"
done
# A failing test is not what this is about: it is told, and what was reached counts.
# shellcheck disable=SC2086
meson test -C "$build" --no-rebuild -t 4 $suites >"$build/tests.txt" 2>&1 ||
	{ grep -E 'FAIL|TIMEOUT' "$build/tests.txt" || true; }
exec gcovr --root "$source" --filter "$source/src/core/" --object-directory "$build" --gcov-ignore-parse-errors \
	--exclude-unreachable-branches --exclude-throw-branches \
	--json "$build/coverage.json" --print-summary --txt "$build/lines.txt" "$build"
