#!/bin/bash
# Runs the programs named (fair_queue, rate_limited_queue, debounced_queue), or all three, on a private server.
#
#     SCALE=NUMBER   of all times: with 0.1, what says ten seconds takes one
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../test/harness/lib.sh"

need_packages python3-psycopg
[ -e "$("$PG_CONFIG" --pkglibdir)/pg_fanout.so" ] || die "install the extension first: make && make install"
[ $# -gt 0 ] || set -- fair_queue rate_limited_queue debounced_queue

dir=$(scratch_dir patterns)
trap 'server_remove "$dir"' EXIT
trap 'exit 130' INT TERM
server_create "$dir"
server_start "$dir"
psql --no-psqlrc --quiet --command 'CREATE EXTENSION pg_fanout'

for program; do
	echo "== $program"
	PYTHONDONTWRITEBYTECODE=1 "$PYTHON" "$here/$program.py"
done
