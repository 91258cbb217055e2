#!/bin/bash
# Random work of all kinds, faults, kills, crashes and promotions against a checked build (src/README.md), and then
# everything that is promised, by the tables and by what clients wrote down.
#
#     SEED=NUMBER       choices of a former run; the order of events is another one all the same
#     SECONDS=NUMBER    how long; 60 by default
#     POOL=NUMBER       of tasks in memory; 512 by default
#     RETENTION=TIME    of what has ended; 2 s by default where the seed is odd, otherwise all stays but what queues have set
#     KEEP_FAILED=TIME  of what has failed; 5 s by default where the seed is a multiple of 3
#     KEEP=DIRECTORY    copy the logs to it if something is wrong
seconds=$SECONDS      # before bash counts it on
[ "$seconds" -gt 0 ] || seconds=60
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../harness/lib.sh"

need_packages python3-psycopg
seed=${SEED:-$RANDOM}
retention=${RETENTION:-$([ $((seed % 2)) = 1 ] && echo 2s || echo -1)}
keep_failed=${KEEP_FAILED:-$([ $((seed % 3)) = 0 ] && echo 5s || echo -1)}
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

checked_server "$dir" "pg_fanout.max_tracked_tasks = ${POOL:-512}" "pg_fanout.max_lanes = 200" "pg_fanout.max_workers_tracked = 64" \
	"pg_fanout.retention = '$retention'" "pg_fanout.keep_failed = '$keep_failed'" "max_connections = 60" "restart_after_crash = on" "wal_keep_size = '64MB'"

echo "seed $seed, $seconds s"
PYTHONDONTWRITEBYTECODE=1 "$PYTHON" "$here/chaos.py" "$seed" "$seconds" "$dir/server" 2>&1 | tee "$dir/lines" || true
count_lines "$dir/lines" '^seed .* claims' "SEED=$seed SECONDS=$seconds test/chaos/run.sh" "$dir/server/logs" "$dir/server/server.log"
