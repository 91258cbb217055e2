#!/bin/bash
# The same small story - enqueue, dequeue, checkpoint, complete, collect - through each client: psycopg and psql.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../harness/lib.sh"

need_packages python3-psycopg
[ -e "$("$PG_CONFIG" --pkglibdir)/pg_fanout.so" ] || die "install the extension first: make && make install"

dir=$(scratch_dir drivers)
trap 'server_remove "$dir"' EXIT
trap 'exit 130' INT TERM
server_create "$dir"
server_start "$dir"
psql --no-psqlrc --quiet --command 'CREATE EXTENSION pg_fanout'

tell() {   # WHAT CMD...: its lines, and one that says whether it came to its end
	local what=$1
	shift
	if "$@" </dev/null 2>&1; then
		echo "ok - $what came to its end"
	else
		echo "not ok - $what ended with status $?"
	fi
}

{
	tell psycopg "$PYTHON" "$here/story.py"
	tell psql psql --no-psqlrc --quiet --file "$here/story.sql"
} | tee "$dir/lines"

passed=$(grep -c '^ok ' "$dir/lines") || true
failed=$(grep -c '^not ok ' "$dir/lines") || true
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
