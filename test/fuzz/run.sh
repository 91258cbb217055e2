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
checked_server "$dir" "pg_fanout.max_tracked_tasks = ${POOL:-256}" "pg_fanout.max_lanes = 16" "pg_fanout.max_workers_tracked = 16" \
	"pg_fanout.max_rate_entries = 512" "pg_fanout.retention = '5 s'" "max_prepared_transactions = 5" "max_connections = 30" \
	"log_min_error_statement = error"

echo "seed $seed, $seconds s"
run_as_user env PATH="$PATH" PGHOST="$PGHOST" PGPORT="$PGPORT" PGUSER="$PGUSER" PGDATABASE="$PGDATABASE" PYTHONDONTWRITEBYTECODE=1 \
	"$PYTHON" - "$seed" "$seconds" "$dir/server" <"$here/fuzz.py" 2>&1 | tee "$dir/lines" || true
count_lines "$dir/lines" ' statements, ' "SEED=$seed SECONDS=$seconds test/fuzz/run.sh" "$dir/server/"*.sql "$dir/server/server.log"
