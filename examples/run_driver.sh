#!/bin/sh
# SPDX-License-Identifier: MIT
#
# Start a program in lent memory, and the example driver ($1) against it.
set -eu
name=example-$$
"$SUBLET" run --area 64M --normal 64M --name "$name" -- sleep 30 &
pid=$!
trap 'kill $pid 2>/dev/null; wait $pid 2>/dev/null || :' EXIT
tries=0
until "$SUBLET" stat -n "$name" >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 200 ] || { echo "the instance did not appear" >&2; exit 1; }
	sleep 0.05
done
"$1" "$name"
