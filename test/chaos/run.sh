#!/bin/bash
# Random work of all kinds, faults, kills, crashes and promotions against a checked build (src/README.md), and then
# everything that is promised, by the tables and by what clients wrote down.
#
#     SEED=NUMBER       choices of a former run; the order of events is another one all the same
#     SECONDS=NUMBER    how long; 60 by default
#     POOL=NUMBER       of tasks in memory; 512 by default
#     RETENTION=TIME    of what has ended; 2 s by default where the seed is odd, otherwise all stays
#     KEEP=DIRECTORY    copy the logs to it if something is wrong
seconds=$SECONDS      # before bash counts it on
[ "$seconds" -gt 0 ] || seconds=60
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../harness/lib.sh"

need_packages python3-psycopg
seed=${SEED:-$RANDOM}
retention=${RETENTION:-$([ $((seed % 2)) = 1 ] && echo 2s || echo -1)}
dir=$(scratch_dir chaos)
trap cleanup EXIT
trap 'exit 130' INT TERM

# A standby may have taken the server's place, or be about to
cleanup() {
	local data

	for data in "$dir"/server/data*; do
		[ ! -f "$data/postmaster.pid" ] ||
			run_as_user "$PG_BINDIR/pg_ctl" --pgdata="$data" --mode=immediate --wait stop >/dev/null 2>&1 || true
	done
	rm -rf -- "${dir:?}"
}

use_checked_build "$dir/checked"

run_as_user mkdir "$dir/server"
server_create "$dir/server" "fsync = off" "pg_fanout.max_tracked_tasks = ${POOL:-512}" "pg_fanout.max_lanes = 200" "pg_fanout.max_workers_tracked = 64" \
	"pg_fanout.retention = '$retention'" "max_connections = 60" "restart_after_crash = on" "log_line_prefix = '%m [%p] %b %e '" "wal_keep_size = '64MB'"
server_start "$dir/server"
psql --no-psqlrc --quiet --command 'CREATE EXTENSION pg_fanout'

echo "seed $seed, $seconds s"
PYTHONDONTWRITEBYTECODE=1 "$PYTHON" "$here/chaos.py" "$seed" "$seconds" "$dir/server" 2>&1 | tee "$dir/lines" || true
grep -q '^seed .* claims' "$dir/lines" || echo "not ok - it came to its end" >>"$dir/lines"
passed=$(grep -c '^ok ' "$dir/lines") || true
failed=$(grep -c '^not ok ' "$dir/lines") || true
if [ "$failed" != 0 ]; then
	echo "SEED=$seed SECONDS=$seconds test/chaos/run.sh"
	[ -z "${KEEP:-}" ] || { mkdir -p "$KEEP"; cp -r "$dir/server/logs" "$dir/server/server.log" "$KEEP"; }
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
