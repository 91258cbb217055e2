#!/bin/bash
# Calls all functions with random arguments from several sessions, against a checked build (see fuzz.py).
#
#     SEED=NUMBER       choices of a former run; the order of events is another one all the same
#     SECONDS=NUMBER    how long; 60 by default
#     POOL=NUMBER       of tasks in memory; 256 by default
#     KEEP=DIRECTORY    copy the statements and the server's log to it if something is wrong
seconds=$SECONDS      # before bash counts it on
[ "$seconds" -gt 0 ] || seconds=60
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../harness/lib.sh"

need_packages python3-psycopg
seed=${SEED:-$RANDOM}
dir=$(scratch_dir fuzz)
trap 'server_remove "$dir/server"; rm -rf -- "${dir:?}"' EXIT
trap 'exit 130' INT TERM
use_checked_build "$dir/checked"

run_as_user mkdir "$dir/server"
server_create "$dir/server" "fsync = off" "pg_fanout.max_tracked_tasks = ${POOL:-256}" "pg_fanout.max_lanes = 16" "pg_fanout.max_workers_tracked = 16" \
	"pg_fanout.max_rate_entries = 512" "pg_fanout.retention = '5 s'" "max_prepared_transactions = 5" "max_connections = 30" "log_line_prefix = '%m [%p] %b %e '" \
	"log_min_error_statement = error"
server_start "$dir/server"
psql --no-psqlrc --quiet --command 'CREATE EXTENSION pg_fanout'

echo "seed $seed, $seconds s"
run_as_user env PATH="$PATH" PGHOST="$PGHOST" PGPORT="$PGPORT" PGUSER="$PGUSER" PGDATABASE="$PGDATABASE" PYTHONDONTWRITEBYTECODE=1 \
	"$PYTHON" - "$seed" "$seconds" "$dir/server" <"$here/fuzz.py" 2>&1 | tee "$dir/lines" || true
grep -q ' statements, ' "$dir/lines" || echo "not ok - it came to its end" >>"$dir/lines"
passed=$(grep -c '^ok ' "$dir/lines") || true
failed=$(grep -c '^not ok ' "$dir/lines") || true
if [ "$failed" != 0 ]; then
	echo "SEED=$seed SECONDS=$seconds test/fuzz/run.sh"
	[ -z "${KEEP:-}" ] || { mkdir -p "$KEEP"; cp "$dir/server/"*.sql "$dir/server/server.log" "$KEEP"; }
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
