#!/usr/bin/env bash
# make bench: measure the queue beside what PostgreSQL can do at all, and print tables in Markdown.
#
#     ONLY="PART..."         these parts only, of: single_calls flow_control wal waiting snapshot front backlog rebuild
#                            collected
#     RUNS=5 SECONDS_PER_RUN=3 CLIENTS="1 8 32"     rounds of each part, seconds of each measurement
#     WARM_UP=2              seconds at the begin of each measurement that do not count
#     ROWS=1000000           tasks that stand in front, and are rebuilt; the backlog has four times as many
#     LANES=100000           lanes in the rows about many of them; with 100,000 the server takes some 2.5 GB
#     LONG=1                 the transaction that stays open does so for 5 minutes, and not for 30 s
#     WAKES=2000             tasks for which a waiting worker is woken, in each round
#     OUT=FILE               write the tables there as well
#     RESULTS=1              and make them the part of test/bench/RESULTS.md that is of make bench
#     WAL_BY_TYPE=1          say which records the WAL consists of
#
# All of it takes some 50 minutes, and with RUNS=2 some 20, on two processors that have nothing else to do, and 4 GB of
# memory and 20 GB in /tmp; ROWS=100000 LANES=10000 needs much less of everything.
#
# Every part has a file in parts/: prepare_PART fills its private servers, measure_PART is one round, finish_PART what is
# measured once, table_PART prints. Every round measures each kind of work once, what is compared close together, so that
# whatever else the machine does hits all of them alike. The tables have the medians of the rounds, of the rates and of
# each round's ratio.
#
# What each row measures, and beside what, is said in the scripts here (schema.sql for the tables). All of them use
# prepared statements, commit synchronously, return to the client what a worker needs, and begin with a checkpoint.
# The baselines begin each time with an empty table (the SKIP LOCKED queue vacuumed and analyzed, with the same
# backlog as ours), while ours keep every task and outcome of the run so far. There is no autovacuum and no further
# checkpoint while the clock runs, but for the part "snapshot".
#
# pgbench opens its sessions anew for each measurement. A worker's session lives long: what 32 of them do at first (load
# the catalogue, plan, touch shared memory) would be most of a short run, so that is left to the warm-up.
# shellcheck disable=SC2034      # the variables are for the parts
set -euo pipefail
# shellcheck source=test/harness/lib.sh
. "$(dirname "$0")/../harness/lib.sh"

here=$REPO_DIR/test/bench
all_parts="single_calls flow_control wal waiting snapshot front backlog rebuild collected"
parts=${ONLY:-$all_parts}
runs=${RUNS:-5}
seconds=${SECONDS_PER_RUN:-3}
warm_up=${WARM_UP:-2}
clients=${CLIENTS:-1 8 32}
rows=${ROWS:-1000000}
out=${OUT:-}

batch_clients=8
batch_size=100              # as in the scripts
wide_tasks=100000
head_tasks=5000             # ready when a cycle begins: nobody finds the queue empty, though he be kept waiting
batch_head_tasks=10000
backlog_tasks=$(((seconds + warm_up) * 40000))     # more than are taken in that time
lanes=${LANES:-100000}
lane_tasks=10
fair_lanes=50
flood=100                   # times as many tasks as each of them
journaled_ms=20             # work for so long that the journal has every claim: twice its interval
wal_tasks=51200             # a whole number for each of 32 clients, and enough that page images of the start do not weigh
wal_batch_tasks=80000

# 100 bytes as stored, sent by the client with each task
args='{"url": "https://docs.example.org/pages/0123456789/index.html", "digest": "012345678901234"}'

# shellcheck source=test/bench/lib.sh
. "$here/lib.sh"
for part in $parts; do
	[[ " $all_parts " = *" $part "* ]] || die "there is no part \"$part\"; there are: $all_parts"
	# shellcheck source=/dev/null
	. "$here/parts/$part.sh"
done
[ "$rows" -ge 1000 ] || die "ROWS must be 1000 at least"

need_packages "postgresql-$PG_MAJOR"

dir=$(scratch_dir bench)
trap remove_all EXIT
trap 'exit 130' INT TERM
results=$dir/results        # lines of: what clients value, each round's in the order of the rounds

# Memory for all that waits at once, of which a queue may have a quarter
use_large_server() {
	use_server large "pg_fanout.max_tracked_tasks = $((4 * (lanes * (lane_tasks + 1) + 2 * backlog_tasks)))" \
		"pg_fanout.max_lanes = $((3 * lanes))"
}

# A server that has nothing in front of the work, which is in memory
use_plain_server() {
	drop_server large
	use_server plain "pg_fanout.max_tracked_tasks = $((16 * backlog_tasks))" "pg_fanout.max_lanes = $((4 * backlog_tasks))"
}

run_part() {
	say "$1"
	"prepare_$1"
	if declare -F "measure_$1" >/dev/null; then
		for ((round = 1; round <= runs; round++)); do
			say "$1, round $round of $runs"
			"measure_$1"
		done
	fi
	if declare -F "finish_$1" >/dev/null; then
		"finish_$1"
	fi
}

tables() {
	local part

	echo "pg_fanout $(sed -n "s/^default_version *= *'\(.*\)'/\1/p" "$REPO_DIR/pg_fanout.control")," \
		"$("$PG_CONFIG" --version), $(date -u +%F)."
	echo "$(nproc) processors ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1))," \
		"$(awk '/^MemTotal/ { printf "%.0f", $2 / 1024 / 1024 }' /proc/meminfo) GB, clients on the same machine."
	echo "Medians of $runs rounds of $seconds s, after $warm_up s that do not count; synchronous_commit on, prepared" \
		"statements, args of 100 bytes."
	for part in $parts; do
		echo
		"table_$part"
	done
}

for part in $parts; do
	run_part "$part"
done
tables >"$dir/tables"
[ -z "$out" ] || cp "$dir/tables" "$out"
[ -z "${RESULTS:-}" ] || "$here/results" bench "$dir/tables"
cat "$dir/tables"
