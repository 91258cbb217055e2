#!/bin/bash
# Compares the server with the reference of what it promises, by random operations: with memory for everything, with
# memory for few tasks, and for few partitions. Uses a checked build.
#
#     SEED=NUMBER         other choices, SEED=$RANDOM for ones that nobody has seen; without it, two that are always the same
#     OPERATIONS=NUMBER   of each run
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../harness/lib.sh"

need_packages python3-psycopg
operations=${OPERATIONS:-1200}
seeds=(${SEED:-4711 14480})
passed=0 failed=0

dir=$(scratch_dir reference)
trap 'server_remove "$dir/server"; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
use_checked_build "$dir/checked"

run_as_user mkdir "$dir/server"
server_create "$dir/server" "fsync = off" "pg_fanout.max_workers_tracked = 64" "include_if_exists = 'shape.conf'"
server_start "$dir/server"

compare() {   # WHAT SEED [SETTING...]
	local what=$1 seed=$2 database=reference_$((passed + failed))
	shift 2
	server_stop "$dir/server"
	printf '%s\n' "$@" | run_as_user tee "$dir/server/data/shape.conf" >/dev/null
	server_start "$dir/server"
	psql --no-psqlrc --quiet --command "CREATE DATABASE $database"
	psql --no-psqlrc --quiet --dbname=$database --command 'CREATE EXTENSION pg_fanout'
	: >"$dir/server/server.log"
	if PGDATABASE=$database PYTHONDONTWRITEBYTECODE=1 "$PYTHON" "$here/compare.py" "$seed" "$operations" "$dir/server" 2>&1 &&
		! grep -E 'pg_fanout violation|PANIC:|TRAP:|terminated by signal' "$dir/server/server.log"
	then
		passed=$((passed + 1))
		echo "ok $((passed + failed)) - $what, seed $seed"
	else
		failed=$((failed + 1))
		echo "not ok $((passed + failed)) - $what, seed $seed: SEED=$seed OPERATIONS=$operations test/reference/run.sh"
	fi
	psql --no-psqlrc --quiet --command "DROP DATABASE $database WITH (FORCE)"
}

for seed in "${seeds[@]}"; do
	compare 'room for all' "$seed" 'pg_fanout.max_tracked_tasks = 4096'
	compare 'room for 64 tasks' "$seed" 'pg_fanout.max_tracked_tasks = 64'
	compare 'room for 16 partitions' "$seed" 'pg_fanout.max_tracked_tasks = 64' 'pg_fanout.max_lanes = 16'
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
