# shellcheck shell=bash
# Functions that the parts of the benchmark share: servers, queues, pgbench, CPU, records and rows.
#
# use_server KIND [LINE...]     go on with the private server of that name; made with the LINEs when first asked for
# drop_server KIND              stop and delete it
# bench SCRIPT CLIENTS [OPTION...]                  run pgbench
# measure NAME SCRIPT CLIENTS [TASKS [OPTION...]]   run it for some seconds; record tasks a second and CPU a task
# measure_beside "ARGUMENTS OF MEASURE"...          the same for what is compared
# record, values, median, row, cpu_row, value_row   what was measured, and lines of the tables
#
# Expects: dir, here, results, seconds, warm_up, args and round, set by run.sh.

query() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }

# --- servers -----------------------------------------------------------------------------------------------------

# Nothing of the server's own in the middle of a measurement
common_settings=("shared_buffers = '512MB'" "max_wal_size = '16GB'" "min_wal_size = '2GB'" "checkpoint_timeout = '1h'"
	"max_connections = 200" "autovacuum = off" "jit = off" "synchronous_commit = on" "pg_fanout.max_wait = '1h'")

use_server() {
	local kind=$1
	shift

	if [ ! -d "$dir/$kind" ]; then
		run_as_user mkdir "$dir/$kind"
		server_create "$dir/$kind" "${common_settings[@]}" "$@"
		server_start "$dir/$kind"
		query -f "$here/schema.sql" >/dev/null
	fi
	server_env "$dir/$kind"
	server=$dir/$kind
}

drop_server() {
	server_remove "$dir/$1"
}

remove_all() {
	local one

	kill "${background[@]}" 2>/dev/null || true
	for one in "$dir"/*/; do
		[ ! -d "${one}data" ] || server_remove "${one%/}"
	done
	rm -rf -- "${dir:?}"
}

# A client that goes on while others are measured; it ends with stop_background. A backend that waits does not notice that
# its client has gone, and would still take a task.
background=()

in_background() {
	PGAPPNAME=background "$@" >/dev/null 2>"$dir/background" &
	background+=($!)
}

stop_background() {
	local pid

	[ ${#background[@]} -gt 0 ] || return 0
	for pid in "${background[@]}"; do
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	background=()
	query -c "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = 'background'" >/dev/null
}

# wait_until QUERY: until it returns t
wait_until() {
	local tries=0

	until [ "$(query -c "$1")" = t ]; do
		[ $((++tries)) -lt 600 ] || die "waited in vain for: $1"
		sleep 0.1
	done
}

# Ticks of CPU, a hundredth of a second each, that the server's processes have used so far, those that have ended
# included: the postmaster has waited for them. Who ends meanwhile would be missed: then all are read once more. Builtins
# only, which takes some milliseconds.
server_cpu() { # POSTMASTER
	local pid=$1 child children stat last="" now

	while :; do
		read -r stat <"/proc/$pid/stat"
		children=()
		read -ra children <"/proc/$pid/task/$pid/children" || true
		# shellcheck disable=SC2206
		stat=(${stat##*) })
		now="${stat[13]} ${stat[14]} ${children[*]}"
		[ "$now" != "$last" ] || return 0
		last=$now
		cpu=$((stat[11] + stat[12] + stat[13] + stat[14]))
		for child in "${children[@]}"; do
			{ read -r stat <"/proc/$child/stat"; } 2>/dev/null || continue
			# shellcheck disable=SC2206
			stat=(${stat##*) })
			cpu=$((cpu + stat[11] + stat[12]))
		done
	done
}

# --- queues ------------------------------------------------------------------------------------------------------

fill_floor() {
	query -c "TRUNCATE bench.floor, bench.floor_outcome, bench.copied" -c "CHECKPOINT"
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

# fill QUEUE COUNT [PARTITIONS [DELAY]]: add COUNT tasks, a hundred thousand in each transaction
fill() {
	local done=0 some delay=NULL

	while [ "$done" -lt "$2" ]; do
		some=$(($2 - done < 100000 ? $2 - done : 100000))
		[ -z "${4:-}" ] || delay="interval '$4' + $done * interval '1 ms'"
		query -c "SELECT bench.add('$1', $some, ${3:-0}, '$args', $done, $delay)" >/dev/null
		done=$((done + some))
	done
}

# fill_ranked QUEUE COUNT: add COUNT tasks with priorities from 0 to 9, in chunks that take turns
fill_ranked() {
	query -c "SELECT bench.add_ranked('$1', $2, '$args')" -c "CHECKPOINT" >/dev/null
}

# --- measuring ---------------------------------------------------------------------------------------------------

# bench SCRIPT CLIENTS OPTION...: what pgbench says. A statement that fails ends the whole benchmark.
bench() {
	local script=$1 n=$2
	shift 2

	{ pgbench --no-vacuum --protocol=prepared --client="$n" --jobs=$((n < 2 ? 1 : 2)) --file="$here/$script.sql" \
		-D args="$args" -D id=0 -D attempt=0 -D lease=0 -D work=0 -D queue=cycle "$@" 2>&1 >&4 |
		note_progress "$(server_pid "$server")" >"$dir/errors"; } 4>&1 || {
		cat "$dir/errors" >&2
		die "$script.sql failed with $n clients"
	}
}

# What pgbench says on its way, each line of progress with the CPU that the server has used by then
note_progress() { # POSTMASTER
	local line

	while IFS= read -r line; do
		if [[ $line = progress:* ]]; then
			server_cpu "$1"
			line+=", cpu $cpu"
		fi
		printf '%s\n' "$line"
	done
}

record() { # what clients value
	echo "$@" >>"$results"
	say "$(printf '  %-28s %3s clients %12s' "$1" "$2" "$3")"
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

# Microseconds of the server's CPU for each of so many tasks of a transaction, from the end of the warm-up to the last
# line of progress; nothing if there are not two such lines
cpu_after_warm_up() { # TASKS
	awk -v warm_up="$warm_up" -v tasks="$1" '
		/^progress:/ && from != "" { done += ($2 - at) * $4; at = $2; to = $NF }
		/^progress:/ && from == "" && $2 >= warm_up { at = $2; from = $NF }
		END { if (done > 0) printf "%.1f\n", (to - from) * 10000 / done / tasks }' "$dir/errors"
}

# measure NAME SCRIPT CLIENTS [TASKS [OPTION...]]: tasks a second, where one transaction of the script is TASKS of them.
# NAME@KIND is for the server of that kind.
measure() {
	local name=$1 script=$2 n=$3 tasks=${4:-1} tps="" tries=0 cpu_us

	if [[ $name = *@* ]]; then
		use_server "${name#*@}"
		name=${name%@*}
	fi
	shift $(($# < 4 ? $# : 4))
	while [ -z "$tps" ]; do
		[ $((++tries)) -lt 6 ] || die "the machine is too busy to measure anything"
		bench "$script" "$n" --time=$((warm_up + tries * seconds)) --progress=1 "$@" >"$dir/pgbench"
		tps=$(tps_after_warm_up)
	done
	record "$name" "$n" "$(awk "BEGIN { printf \"%.0f\", $tps * $tasks }")"
	cpu_us=$(cpu_after_warm_up "$tasks")
	[ -z "$cpu_us" ] || record "${name}_cpu" "$n" "$cpu_us"
}

# Measurements that are compared with each other, each the arguments of measure: every second round in reverse
measure_beside() {
	local i

	for ((i = 0; i < $#; i++)); do
		# shellcheck disable=SC2046,SC2086
		measure $([ $((round % 2)) = 1 ] && echo "${@:i+1:1}" || echo "${@:$#-i:1}")
	done
}

# --- the tables --------------------------------------------------------------------------------------------------

median() {
	sort -g | awk '{ v[NR] = $1 } END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

values() { # WHAT CLIENTS
	awk -v what="$1" -v n="$2" '$1 == what && $2 == n { print $3 }' "$results"
}

# The median of each round's ratio of two of WHAT:CLIENTS
ratio() {
	paste <(values "${1%:*}" "${1#*:}") <(values "${2%:*}" "${2#*:}") | awk '{ print $1 / $2 }' | median
}

# row WORK CLIENTS OURS THEIRS[:CLIENTS] NAME-OF-THEIRS [BAR]: a line of the table of rates
row() {
	local ours theirs ratio their_clients=$2

	[ "${4%:*}" = "$4" ] || their_clients=${4#*:}
	ours=$(values "$3" "$2" | median)
	theirs=$(values "${4%:*}" "$their_clients" | median)
	ratio=$(ratio "$3:$2" "${4%:*}:$their_clients")
	awk -v work="$1" -v n="$2" -v ours="$ours" -v theirs="$theirs" -v ratio="$ratio" -v beside="$5" -v bar="${6:-}" \
		'BEGIN {
			verdict = bar == "" ? "" : ratio >= bar ? "met" : "not met"
			printf "| %s | %d | %d | %s | %d | %.2fx | %s | %s |\n", work, n, ours, beside, theirs, ratio,
				bar == "" ? "" : ">= " bar "x", verdict
		}'
}

rate_head() { # WHAT
	echo "| $1 | clients | tasks/s | beside | its tasks/s | ratio | bar | |"
	echo "|---|--:|--:|---|--:|--:|--:|---|"
}

# value_row WHAT VALUE [BAR [UNIT]]: BAR is a comparison, such as "<= 5"
value_row() {
	local verdict=

	[ -z "${3:-}" ] || verdict=$(awk "BEGIN { print ($2 $3) ? \"met\" : \"not met\" }")
	echo "| $1 | $2${4:+ $4} | ${3:-}${3:+${4:+ $4}} | $verdict |"
}

value_head() { # WHAT
	echo "| $1 | value | bar | |"
	echo "|---|--:|--:|---|"
}
