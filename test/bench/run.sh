#!/usr/bin/env bash
# make bench: measure the queue beside what PostgreSQL can do at all, and print a table in Markdown.
#
# One private server, one run. Every round measures each kind of work once, what is compared close together, so that
# whatever else the machine does hits all of them alike. The table has the medians of the rounds, of the rates and of
# each round's ratio.
#
#     RUNS=3 SECONDS_PER_RUN=5 CLIENTS="1 8 32"     as overridden in the environment
#     WARM_UP=2                                     seconds at the begin of each measurement that do not count
#     LANES=100000                                  lanes in the rows about many of them; with 100,000 the server
#                                                   takes some 2.5 GB
#     OUT=FILE                                      write the table there as well
#     WAL_BY_TYPE=1                                 say which records the WAL consists of
#
# What each row measures, and beside what, is said in the scripts here (schema.sql for the tables). All of them use
# prepared statements, commit synchronously, return to the client what a worker needs, and begin with a checkpoint.
# The baselines begin each time with an empty table (the SKIP LOCKED queue vacuumed and analyzed, with the same
# backlog as ours), while ours keep every task and outcome of the run so far. There is no autovacuum and no further
# checkpoint while the clock runs.
#
# pgbench opens its sessions anew for each measurement. A worker's session lives long: what 32 of them do at first (load
# the catalogue, plan, touch shared memory) would be most of a short run, so that is left to the warm-up.
set -euo pipefail
# shellcheck source=test/harness/lib.sh
. "$(dirname "$0")/../harness/lib.sh"

here=$REPO_DIR/test/bench
runs=${RUNS:-3}
seconds=${SECONDS_PER_RUN:-5}
warm_up=${WARM_UP:-2}
clients=${CLIENTS:-1 8 32}
out=${OUT:-}

batch_clients=8
batch_size=100              # as in the scripts
wide_tasks=100000
head_tasks=1000             # ready when a cycle begins: nobody finds the queue empty
batch_head_tasks=10000
backlog_tasks=$(((seconds + warm_up) * 15000))
lanes=${LANES:-100000}
lane_tasks=10
fair_lanes=50
flood=100                   # times as many tasks as each of them
journaled_ms=20             # work for so long that the journal has every claim: twice its interval
wal_tasks=12800             # a whole number for each of 32 clients
wal_batch_tasks=80000

# 100 bytes as stored, sent by the client with each task
args='{"url": "https://docs.example.org/pages/0123456789/index.html", "digest": "012345678901234"}'

need_packages postgresql-15

dir=$(scratch_dir bench)
trap 'server_remove "$dir"' EXIT
results=$dir/results        # lines of: what clients value, each round's in the order of the rounds

query() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }

# --- preparing a run ---------------------------------------------------------------------------------------------

fill_floor() {
	query -c "TRUNCATE bench.floor, bench.copied" -c "CHECKPOINT"
}

fill_skip_locked() {
	query -c "TRUNCATE bench.queue" \
		-c "INSERT INTO bench.queue (name, args) SELECT 'index_document', '$args' FROM generate_series(1, $1)" \
		-c "VACUUM ANALYZE bench.queue" -c "CHECKPOINT"
}

fill_fanout() {
	query -c "SELECT fanout.purge_queue('$1')" -c "SELECT bench.add('$1', $2, 0, '$args')" -c "CHECKPOINT" >/dev/null
}

# top_up QUEUE LOW COUNT [PARTITIONS]: add COUNT tasks if fewer than LOW are ready
top_up() {
	query -c "SELECT bench.add(queue, $3, ${4:-0}, '$args') FROM fanout.queues WHERE queue = '$1' AND ready < $2" \
		-c "CHECKPOINT" >/dev/null
}

# What stands in many lanes, or before everything else, all the time
fill_lanes() {
	local many=$((lanes * lane_tasks)) i

	say "filling $lanes lanes"
	query -c "SELECT bench.add('one_lane', $many, 0, '$args')" -c "SELECT bench.add('lanes', $many, $lanes, '$args')" \
		-c "SELECT bench.add('blocked', $((many + lanes)), $lanes, '$args')" >/dev/null
	for ((i = 0; i < lanes; i += 10000)); do
		query -c "SELECT count(*) FROM fanout.dequeue('blocked', 'stuck', max_tasks => 10000)" >/dev/null
	done
	[ "$(query -c "SELECT running FROM fanout.queues WHERE queue = 'blocked'")" = "$lanes" ] ||
		die "not every lane of \"blocked\" is at its limit"
}

# --- measuring ---------------------------------------------------------------------------------------------------

# bench SCRIPT CLIENTS OPTION...: what pgbench says. A statement that fails ends the whole benchmark.
bench() {
	local script=$1 n=$2
	shift 2

	pgbench --no-vacuum --protocol=prepared --client="$n" --jobs=$((n < 2 ? 1 : 2)) --file="$here/$script.sql" \
		-D args="$args" -D id=0 -D attempt=0 -D lease=0 -D work=0 "$@" 2>"$dir/errors" || {
		cat "$dir/errors" >&2
		die "$script.sql failed with $n clients"
	}
}

record() { # what clients value
	echo "$@" >>"$results"
	say "$(printf '  %-24s %3s clients %12s' "$1" "$2" "$3")"
}

# The transactions a second after the warm-up, of what pgbench said; nothing if opening the sessions, which pgbench
# counts as time as well, has left less than half of the time for it
tps_after_warm_up() {
	awk -v warm_up="$warm_up" -v seconds="$seconds" '
		/^progress:/ && warm < warm_up { before += ($2 - warm) * $4; warm = $2 }
		/^number of transactions actually processed:/ { all = $NF }
		/^tps = / { tps = $3 }
		END { if (all / tps - warm > seconds / 2) print (all - before) / (all / tps - warm) }' "$dir/errors" "$dir/pgbench"
}

# measure NAME SCRIPT CLIENTS [TASKS [OPTION...]]: tasks a second, where one transaction of the script is TASKS of them
measure() {
	local name=$1 script=$2 n=$3 tasks=${4:-1} tps="" tries=0

	shift $(($# < 4 ? $# : 4))
	while [ -z "$tps" ]; do
		[ $((++tries)) -lt 6 ] || die "the machine is too busy to measure anything"
		bench "$script" "$n" --time=$((warm_up + tries * seconds)) --progress=1 "$@" >"$dir/pgbench"
		tps=$(tps_after_warm_up)
	done
	record "$name" "$n" "$(awk "BEGIN { printf \"%.0f\", $tps * $tasks }")"
}

# Measurements that are compared with each other, each the arguments of measure: every second round in reverse
measure_beside() {
	local i

	for ((i = 0; i < $#; i++)); do
		# shellcheck disable=SC2046,SC2086
		measure $([ $((round % 2)) = 1 ] && echo "${@:i+1:1}" || echo "${@:$#-i:1}")
	done
}

# The milliseconds of one statement and its commit, turned into rows a second
measure_wide() {
	local ms

	ms=$(query -c '\timing on' -c "$2" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p')
	record "$1" 1 "$(awk "BEGIN { printf \"%.0f\", $wide_tasks * 1000 / $ms }")"
}

# The journal writes some milliseconds after the claims: wait until the WAL stands still
settled_lsn() {
	query -c "DO \$\$
		DECLARE
			before pg_lsn;
			still  int := 0;
		BEGIN
			FOR i IN 1 .. 200 LOOP
				before := pg_current_wal_insert_lsn();
				PERFORM pg_sleep(0.05);
				still := CASE WHEN before = pg_current_wal_insert_lsn() THEN still + 1 ELSE 0 END;
				EXIT WHEN still >= 5;
			END LOOP;
		END \$\$" -c "SELECT pg_current_wal_insert_lsn()"
}

# measure_wal NAME SCRIPT CLIENTS TASKS TRANSACTIONS WORK: bytes of WAL a task, and how many of them are page images
measure_wal() {
	local from to

	from=$(settled_lsn)
	bench "$2" "$3" --transactions=$(($5 / $3)) -D work="$6" -D queue=batch >/dev/null
	to=$(settled_lsn)
	record "$1" "$3" "$(query -c "SELECT round(('$to'::pg_lsn - '$from'::pg_lsn) / $4)")"
	record "$1_images" "$3" \
		"$(query -c "SELECT round(sum(fpi_size) / $4) FROM pg_get_wal_stats('$from', '$to')")"
	[ -z "${WAL_BY_TYPE:-}" ] || query -c "SELECT \"resource_manager/record_type\", count, record_size + fpi_size
		FROM pg_get_wal_stats('$from', '$to', true) WHERE count > 0 ORDER BY 3 DESC LIMIT 12" >&2
}

single_calls() {
	local n

	for n in $clients; do
		fill_floor
		measure floor floor "$n"
		fill_skip_locked $head_tasks
		measure skip_locked_cycle skip_locked_cycle "$n"
		fill_fanout cycle $head_tasks
		measure fanout_cycle fanout_cycle "$n"
		fill_skip_locked $head_tasks
		measure skip_locked_two_calls skip_locked_two_calls "$n"
		fill_fanout cycle $head_tasks
		measure fanout_two_calls fanout_two_calls "$n"
		fill_skip_locked $backlog_tasks
		measure skip_locked_backlog skip_locked_backlog "$n"
		top_up backlog $backlog_tasks $backlog_tasks
		measure fanout_backlog fanout_backlog "$n" 1 -D queue=backlog
	done
}

batches() {
	fill_skip_locked $batch_head_tasks
	measure skip_locked_batch skip_locked_batch $batch_clients $batch_size
	fill_fanout batch $batch_head_tasks
	measure fanout_batch fanout_batch $batch_clients $batch_size -D queue=batch
}

wide() {
	fill_floor
	measure_wide copy "COPY bench.copied (id, queue, priority, name, args) FROM '$dir/wide.copy'"
	fill_floor
	measure_wide insert_select "INSERT INTO bench.copied (queue, name, args)
		SELECT 1, 'index_document', args FROM unnest((SELECT args FROM bench.wide)) AS args"
	query -c "CHECKPOINT"
	measure_wide fan_out "SELECT fanout.fan_out('wide', 'index_document', (SELECT args FROM bench.wide))"
	query -c "SELECT fanout.purge_queue('wide')" -c "CHECKPOINT" >/dev/null
	measure_wide fan_out_text \
		"SELECT fanout.fan_out('wide', 'index_document', (SELECT args_text FROM bench.wide)::jsonb[])"
	query -c "SELECT fanout.purge_queue('wide')" >/dev/null
}

# Limits that are never reached, beside none
limits_that_do_not_bind() {
	local queue beside=()

	for queue in backlog concurrency rate; do
		top_up $queue $backlog_tasks $backlog_tasks
		beside+=("free_$queue fanout_backlog 32 1 -D queue=$queue")
	done
	measure_beside "${beside[@]}"
	beside=()
	for queue in keys partition; do
		top_up $queue $backlog_tasks $backlog_tasks $batch_size
		beside+=("free_$queue fanout_backlog 32 1 -D queue=$queue")
	done
	measure_beside "${beside[@]}"

	beside=()
	for queue in batch batch_concurrency batch_rate; do
		fill_fanout $queue $batch_head_tasks
		beside+=("free_$queue fanout_batch $batch_clients $batch_size -D queue=$queue")
	done
	measure_beside "${beside[@]}"
	beside=()
	for queue in batch_keys batch_partition; do
		query -c "SELECT fanout.purge_queue('$queue')" >/dev/null
		top_up $queue $batch_head_tasks $batch_head_tasks $batch_size
		beside+=("free_$queue fanout_batch_keys $batch_clients $batch_size -D queue=$queue -D keys=$batch_keys")
	done
	measure_beside "${beside[@]}"
}

# A limit that is reached, beside as many clients as it has permits
limit_of_ten() {
	top_up backlog $backlog_tasks $backlog_tasks
	top_up ten $backlog_tasks $backlog_tasks
	measure_beside "wait_free fanout_wait 10 1 -D queue=backlog" "wait_ten fanout_wait 32 1 -D queue=ten"
}

many_lanes() {
	local half=$((lanes * lane_tasks / 2))

	top_up one_lane $half $half
	top_up lanes $half $half "$lanes"
	measure_beside "one_lane fanout_backlog 32 1 -D queue=one_lane" "lanes fanout_backlog 32 1 -D queue=lanes"
	top_up clear $backlog_tasks $backlog_tasks
	top_up blocked $((lanes * lane_tasks + backlog_tasks)) $backlog_tasks
	measure_beside "clear fanout_backlog 32 1 -D queue=clear" "blocked fanout_backlog 32 1 -D queue=blocked"
}

one_round() {
	query -c "VACUUM ANALYZE"
	single_calls
	batches
	wide
	limits_that_do_not_bind
	limit_of_ten
	many_lanes
}

# Jain's index of what each lane got, while one of them had so many tasks in front that it could have had all
fairness() {
	local tasks=400 claims=8000

	query -c "SELECT bench.add('fair', $((flood * tasks)), 1, '$args')" \
		-c "SELECT bench.add('fair', $((fair_lanes * tasks)), $fair_lanes, '$args')" >/dev/null
	bench fanout_backlog 32 --transactions=$((claims / 32)) -D queue=fair >/dev/null
	record jain 32 "$(query -c "SELECT round(sum(n) * sum(n) / (count(*) * sum(n * n)), 4) FROM (
		SELECT count(*) AS n FROM fanout.tasks WHERE queue = 'fair' AND state <> 'ready' GROUP BY partition_key) AS shares")"
}

wal() {
	fill_skip_locked $head_tasks
	measure_wal wal_skip_locked skip_locked_cycle 32 $wal_tasks $wal_tasks $journaled_ms
	fill_fanout cycle $head_tasks
	measure_wal wal_fanout fanout_cycle 32 $wal_tasks $wal_tasks $journaled_ms
	fill_fanout cycle $head_tasks
	measure_wal wal_fanout_quick fanout_cycle 32 $wal_tasks $wal_tasks 0

	fill_skip_locked $batch_head_tasks
	measure_wal wal_skip_locked_batch skip_locked_batch $batch_clients $wal_batch_tasks \
		$((wal_batch_tasks / batch_size)) $journaled_ms
	fill_fanout batch $batch_head_tasks
	measure_wal wal_fanout_batch fanout_batch $batch_clients $wal_batch_tasks \
		$((wal_batch_tasks / batch_size)) $journaled_ms
	fill_fanout batch $batch_head_tasks
	measure_wal wal_fanout_batch_quick fanout_batch $batch_clients $wal_batch_tasks \
		$((wal_batch_tasks / batch_size)) 0
}

# --- the table ---------------------------------------------------------------------------------------------------

median() {
	sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

values() { # WHAT CLIENTS
	awk -v what="$1" -v n="$2" '$1 == what && $2 == n { print $3 }' "$results"
}

# row WORK CLIENTS OURS THEIRS[:CLIENTS] NAME-OF-THEIRS [BAR]: a line of the table of rates
row() {
	local ours theirs ratio their_clients=$2

	[ "${4%:*}" = "$4" ] || their_clients=${4#*:}
	ours=$(values "$3" "$2" | median)
	theirs=$(values "${4%:*}" "$their_clients" | median)
	ratio=$(paste <(values "$3" "$2") <(values "${4%:*}" "$their_clients") | awk '{ print $1 / $2 }' | median)
	awk -v work="$1" -v n="$2" -v ours="$ours" -v theirs="$theirs" -v ratio="$ratio" -v beside="$5" -v bar="${6:-}" \
		'BEGIN {
			verdict = bar == "" ? "" : ratio >= bar ? "met" : "not met"
			printf "| %s | %d | %d | %s | %d | %.2fx | %s | %s |\n", work, n, ours, beside, theirs, ratio,
				bar == "" ? "" : ">= " bar "x", verdict
		}'
}

wal_row() { # WORK CLIENTS WHAT [BAR]
	awk -v work="$1" -v bytes="$(values "$3" "$2")" -v images="$(values "$3_images" "$2")" -v bar="${4:-}" \
		'BEGIN {
			printf "| %s | %d | %d | %s | %s |\n", work, bytes, images,
				bar == "" ? "" : "<= " bar, bar == "" ? "" : bytes <= bar ? "met" : "not met"
		}'
}

value_row() { # WHAT VALUE BAR
	echo "| $1 | $2 | $3 | $(awk "BEGIN { print ($2 $3) ? \"met\" : \"not met\" }") |"
}

table() {
	local n at_32

	echo "pg_fanout $(query -c "SELECT installed_version FROM pg_available_extensions WHERE name = 'pg_fanout'")," \
		"PostgreSQL $(query -c 'SHOW server_version'), $(date -u +%F)."
	echo "$(nproc) processors ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1))," \
		"$(awk '/^MemTotal/ { printf "%.0f", $2 / 1024 / 1024 }' /proc/meminfo) GB, clients on the same machine."
	echo "Medians of $runs rounds of $seconds s, after $warm_up s that do not count; synchronous_commit on, prepared" \
		"statements, args of 100 bytes."
	echo
	echo "| work | clients | tasks/s | beside | its tasks/s | ratio | bar | |"
	echo "|---|--:|--:|---|--:|--:|--:|---|"
	for n in $clients; do
		at_32=
		[ "$n" != 32 ] || at_32=yes
		row "enqueue, dequeue, complete" "$n" fanout_cycle floor "floor" ${at_32:+0.37}
		row "enqueue, dequeue, complete" "$n" fanout_cycle skip_locked_cycle "SKIP LOCKED, 3 statements" ${at_32:+1.75}
		row "enqueue, complete_and_dequeue" "$n" fanout_two_calls floor "floor" ${at_32:+0.40}
		row "enqueue, complete_and_dequeue" "$n" fanout_two_calls skip_locked_cycle \
			"SKIP LOCKED, 3 statements" ${at_32:+2}
		row "enqueue, complete_and_dequeue" "$n" fanout_two_calls skip_locked_two_calls "SKIP LOCKED, 2 with a CTE"
		row "complete_and_dequeue over a backlog" "$n" fanout_backlog floor "floor" ${at_32:+0.80}
		row "complete_and_dequeue over a backlog" "$n" fanout_backlog skip_locked_backlog "SKIP LOCKED, 1 with a CTE"
	done
	row "the three calls in batches of $batch_size" $batch_clients fanout_batch skip_locked_batch "SKIP LOCKED" 3
	row "fan_out of $wide_tasks, args at hand" 1 fan_out copy "COPY" 1
	row "fan_out of $wide_tasks, args as text" 1 fan_out_text copy "COPY"
	row "fan_out of $wide_tasks, args at hand" 1 fan_out insert_select "INSERT ... SELECT"
	echo
	echo "The floor is an INSERT of one row and its commit. The bars hold at 32 clients; those of SKIP LOCKED are" \
		"for a queue that works in three statements. COPY reads (and so parses) a file on the server, into a table" \
		"with one index; fan_out takes an array that is in a table: at hand as jsonb[], or as text that has to be" \
		"parsed as well, which the server does before fan_out is called. No array is built while the clock runs."
	echo
	echo "| flow control | clients | tasks/s | beside | its tasks/s | ratio | bar | |"
	echo "|---|--:|--:|---|--:|--:|--:|---|"
	row "concurrency that is not reached, one at a time" 32 free_concurrency free_backlog "no limit" 0.95
	row "concurrency that is not reached, batches of $batch_size" \
		$batch_clients free_batch_concurrency free_batch "no limit" 0.95
	row "rate limit that is not reached, one at a time" 32 free_rate free_backlog "no limit" 0.95
	row "rate limit that is not reached, batches of $batch_size" $batch_clients free_batch_rate free_batch "no limit" 0.95
	row "partition_concurrency that is not reached, one at a time" \
		32 free_partition free_keys "no limit, the same $batch_size partitions" 0.95
	row "partition_concurrency that is not reached, batches of $batch_size" \
		$batch_clients free_batch_partition free_batch_keys "no limit, the same $batch_size partitions" 0.95
	row "concurrency of 10, 32 workers that wait" 32 wait_ten wait_free:10 "no limit, 10 workers" 0.9
	row "$lanes lanes of $lane_tasks tasks" 32 lanes one_lane "one lane of as many" 0.9
	row "$((lanes * lane_tasks)) tasks in $lanes lanes that are at their limit in front" \
		32 blocked clear "none in front" 0.95
	echo
	echo "Where it says batches, tasks are enqueued, dequeued and completed $batch_size at a time; concurrency of 10 is two" \
		"calls, dequeue(wait => ...) and complete; all others are complete_and_dequeue over a backlog. The server has" \
		"max_lanes and max_tracked_tasks so large that everything is in memory: both are beyond their defaults."
	echo
	echo "| | value | bar | |"
	echo "|---|--:|--:|---|"
	value_row "Jain's index of the shares of $((fair_lanes)) lanes, one of which has $flood times as many tasks" \
		"$(values jain 32)" ">= 0.99"
	value_row "bytes of shared memory for each of max_lanes" "$(values lane_bytes 0)" "<= 128"
	echo
	echo "| WAL, bytes a task over its whole life | bytes | of them page images | bar | |"
	echo "|---|--:|--:|--:|---|"
	wal_row "one at a time, $journaled_ms ms of work, 32 clients" 32 wal_fanout 560
	wal_row "one at a time, no work (ended before it was journaled)" 32 wal_fanout_quick
	wal_row "SKIP LOCKED, one at a time, without its VACUUM" 32 wal_skip_locked
	wal_row "batches of $batch_size, $journaled_ms ms of work, $batch_clients clients" \
		$batch_clients wal_fanout_batch 380
	wal_row "batches of $batch_size, no work" $batch_clients wal_fanout_batch_quick
	wal_row "SKIP LOCKED, batches of $batch_size, without its VACUUM" $batch_clients wal_skip_locked_batch
	echo
	echo "full_page_writes is on and each measurement follows a checkpoint."
}

# --- all of it ---------------------------------------------------------------------------------------------------

# How much more memory the server asks for with so many more lanes; the server says so in whole megabytes
lane_bytes() {
	local few=8388608 mb_few mb_many

	mb_few=$(run_as_user "$PG_BINDIR/postgres" -D "$dir/data" -c pg_fanout.max_lanes=$few -C shared_memory_size)
	mb_many=$(run_as_user "$PG_BINDIR/postgres" -D "$dir/data" -c pg_fanout.max_lanes=$((few * 2)) -C shared_memory_size)
	awk "BEGIN { printf \"%.0f\", ($mb_many - $mb_few) * 1048576 / $few }"
}

# Memory for all that waits at once, of which a queue may have a quarter; nothing of the server's own in the middle of a
# measurement
server_create "$dir" \
	"pg_fanout.max_tracked_tasks = $((4 * (lanes * (lane_tasks + 1) + 2 * backlog_tasks)))" \
	"pg_fanout.max_lanes = $((3 * lanes))" \
	"shared_buffers = '512MB'" "max_wal_size = '16GB'" "min_wal_size = '2GB'" "checkpoint_timeout = '1h'" \
	"autovacuum = off" "jit = off" "synchronous_commit = on"
lane_bytes=$(lane_bytes)
server_start "$dir"
query -f "$here/schema.sql" >/dev/null
batch_keys=$(query -c "SELECT array_agg('customer-' || i) FROM generate_series(1, $batch_size) AS i")
query <<-SQL
	CREATE EXTENSION pg_walinspect;
	INSERT INTO bench.wide SELECT args, args::text FROM (
		SELECT array_agg(jsonb_build_object('url', 'https://docs.example.org/pages/' || lpad(i::text, 10, '0')
				|| '/index.html', 'digest', lpad(to_hex(i), 15, '0')) ORDER BY i)
			FROM generate_series(1, $wide_tasks) AS i) AS wide (args);
	COPY (SELECT i, 1, 0, 'index_document', a FROM bench.wide, unnest(args) WITH ORDINALITY AS t (a, i))
		TO '$dir/wide.copy';
SQL

fill_lanes
for ((round = 1; round <= runs; round++)); do
	say "round $round of $runs"
	one_round
done
say "the rest"
record lane_bytes 0 "$lane_bytes"
fairness
wal
if [ -n "$out" ]; then
	table | tee "$out"
else
	table
fi
