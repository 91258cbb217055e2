# shellcheck shell=bash
# Workers that wait: how soon they have what was committed, what they cost those who enqueue, and what they cost at rest.

wakes=${WAKES:-2000}
idle_seconds=10

prepare_waiting() {
	need_packages libpq-dev
	use_plain_server
	cc -O2 -Wall -o "$dir/wake" "$here/wake.c" -I"$("$PG_CONFIG" --includedir)" -L"$("$PG_CONFIG" --libdir)" -lpq -lpthread
	# who is started in "one" holds its only permit
	query -c "SELECT fanout.enqueue('one', 'stuck')" -c "SELECT lease FROM fanout.dequeue('one', 'stuck')" >/dev/null
}

measure_waiting() {
	wake_latency
	wait_cost
}

wake_latency() {
	local how p50 p99

	for how in fanout notify; do
		fill_skip_locked 0
		query -c "SELECT fanout.purge_queue('empty')" >/dev/null
		read -r p50 p99 <<<"$("$dir/wake" $how "$wakes")"
		record "wake_${how}_p50" 1 "$p50"
		record "wake_${how}_p99" 1 "$p99"
	done
}

# waiters QUEUE COUNT: so many workers that wait for a task of the queue, and get none
waiters() {
	in_background pgbench --no-vacuum --protocol=prepared --client="$2" --time=86400 \
		--file="$here/fanout_waiter.sql" -D queue="$1"
	wait_until "SELECT waiting_workers = $2 FROM fanout.queues WHERE queue = '$1'"
}

# Enqueue to "backlog" while others wait for another queue; to "one" while they wait for it and its limit holds them
wait_cost() {
	local i kinds=(none other free limited) kind

	for ((i = 0; i < ${#kinds[@]}; i++)); do
		kind=${kinds[$((round % 2 == 1 ? i : ${#kinds[@]} - 1 - i))]}
		query -c "SELECT fanout.purge_queue(queue) FROM unnest('{backlog,one}'::text[]) AS queue" -c "VACUUM ANALYZE" \
			-c "CHECKPOINT" >/dev/null
		case $kind in
			none) measure enqueue_none fanout_enqueue 32 1 -D queue=backlog ;;
			free) measure enqueue_free fanout_enqueue 32 1 -D queue=one ;;
			other)
				waiters empty 32
				measure enqueue_other fanout_enqueue 32 1 -D queue=backlog
				;;
			limited)
				waiters one 32
				measure enqueue_limited fanout_enqueue 32 1 -D queue=one
				;;
		esac
		stop_background
	done
}

# Nanoseconds on a processor of all processes of the server, none of which may end meanwhile
server_cpu_ns() {
	local pid child children=() ns rest sum=0

	pid=$(server_pid "$server")
	read -ra children <"/proc/$pid/task/$pid/children" || true
	for child in "$pid" "${children[@]}"; do
		{ read -r ns rest <"/proc/$child/schedstat"; } 2>/dev/null || continue
		sum=$((sum + ns))
	done
	echo "$sum"
}

transactions() {
	PGDATABASE=template1 query -c "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'"
}

# at_rest NAME: what the server does while nobody asks it anything
at_rest() {
	local ns before

	sleep 3			# what was counted before is reported by then
	before=$(transactions)
	ns=$(server_cpu_ns)
	sleep $idle_seconds
	ns=$(($(server_cpu_ns) - ns))
	record "$1_cpu_percent" 100 "$(awk "BEGIN { printf \"%.4f\", $ns / 1e7 / $idle_seconds }")"
	record "$1_transactions" 100 "$(($(transactions) - before))"
}

finish_waiting() {
	query -c "CHECKPOINT"
	at_rest rest_none
	waiters empty 100
	at_rest rest_waiters
	stop_background
}

ms_row() { # WORK WHAT [BAR]
	value_row "$1" "$(values "$2" 1 | median)" "${3:-}" ms
}

table_waiting() {
	value_head "a worker that waits has the row, after the enqueuer has its commit"
	ms_row "half of the tasks within" wake_fanout_p50
	ms_row "99 of 100 within" wake_fanout_p99 "< 0.5"
	ms_row "SKIP LOCKED with NOTIFY and LISTEN: half within" wake_notify_p50
	ms_row "SKIP LOCKED with NOTIFY and LISTEN: 99 of 100 within" wake_notify_p99
	echo
	echo "$wakes tasks, each enqueued when the worker has waited for some milliseconds; medians of the rounds. Below 0: the" \
		"worker had the row before the enqueuer had its answer."
	echo
	rate_head "32 who enqueue, beside 32 who wait"
	row "workers wait for another queue" 32 enqueue_other enqueue_none "nobody waits" 0.97
	row "workers wait for this queue, whose limit is reached" 32 enqueue_limited enqueue_free "nobody waits" 0.97
	echo
	value_head "100 workers that wait, over $idle_seconds s"
	value_row "transactions in the database" "$(values rest_waiters_transactions 100)" "<= 0"
	value_row "processor time of all processes of the server, beyond what they take without the workers" \
		"$(paste <(values rest_waiters_cpu_percent 100) <(values rest_none_cpu_percent 100) | awk '{ printf "%.4f", $1 - $2 }')" \
		"< 0.1" %
	value_row "the same without them: transactions" "$(values rest_none_transactions 100)"
	value_row "the same without them: processor time" "$(values rest_none_cpu_percent 100)" "" %
}
