# shellcheck shell=bash
# Limits and lanes, each beside the same work without them.

prepare_flow_control() {
	use_large_server
	batch_keys=$(query -c "SELECT array_agg('customer-' || i) FROM generate_series(1, $batch_size) AS i")
	record lane_bytes 0 "$(lane_bytes)"
	fill_lanes

	# whoever is first to use memory and files that nobody has used since the start has an advantage of a quarter
	fill_fanout batch $batch_head_tasks
	bench fanout_batch $batch_clients --time=$((warm_up + seconds)) -D queue=batch >/dev/null
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

# How much more memory the server asks for with so many more lanes; the server says so in whole megabytes
lane_bytes() {
	local few=8388608 mb_few mb_many

	mb_few=$(shared_memory_mb $few)
	mb_many=$(shared_memory_mb $((few * 2)))
	awk "BEGIN { printf \"%.0f\", ($mb_many - $mb_few) * 1048576 / $few }"
}

# What a server of its own would ask for; the one that runs does not let its directory be used
shared_memory_mb() { # LANES
	local empty=$dir/lanes

	[ -d "$empty" ] || {
		run_as_user mkdir "$empty"
		server_create "$empty"
	}
	run_as_user "$PG_BINDIR/postgres" -D "$empty/data" -c "pg_fanout.max_lanes=$1" -C shared_memory_size
}

measure_flow_control() {
	limits_that_do_not_bind
	limit_of_ten
	many_lanes
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
	top_up backlog $backlog_tasks $backlog_tasks
	top_up ten $backlog_tasks $backlog_tasks
	measure_beside "next_free fanout_next 10 1 -D queue=backlog" "next_ten fanout_next 32 1 -D queue=ten"
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

# Jain's index of what each lane got, while one of them had so many tasks in front that it could have had all
finish_flow_control() {
	local tasks=400 claims=8000

	query -c "SELECT bench.add('fair', $((flood * tasks)), 1, '$args')" \
		-c "SELECT bench.add('fair', $((fair_lanes * tasks)), $fair_lanes, '$args')" >/dev/null
	bench fanout_backlog 32 --transactions=$((claims / 32)) -D queue=fair >/dev/null
	record jain 32 "$(query -c "SELECT round(sum(n) * sum(n) / (count(*) * sum(n * n)), 4) FROM (
		SELECT count(*) AS n FROM fanout.tasks WHERE queue = 'fair' AND state <> 'ready' GROUP BY partition_key) AS shares")"
}

table_flow_control() {
	rate_head "flow control"
	row "concurrency that is not reached, one at a time" 32 free_concurrency free_backlog "no limit" 0.95
	row "concurrency that is not reached, batches of $batch_size" \
		$batch_clients free_batch_concurrency free_batch "no limit" 0.95
	row "rate limit that is not reached, one at a time" 32 free_rate free_backlog "no limit" 0.95
	row "rate limit that is not reached, batches of $batch_size" $batch_clients free_batch_rate free_batch "no limit" 0.95
	row "partition_concurrency that is not reached, one at a time" \
		32 free_partition free_keys "no limit, the same $batch_size partitions" 0.95
	row "partition_concurrency that is not reached, batches of $batch_size" \
		$batch_clients free_batch_partition free_batch_keys "no limit, the same $batch_size partitions" 0.95
	row "concurrency of 10, 32 workers: dequeue(wait => ...), complete" 32 wait_ten wait_free:10 "no limit, 10 workers" 0.9
	row "concurrency of 10, 32 workers: complete_and_dequeue" 32 next_ten next_free:10 "no limit, 10 workers" 0.9
	row "$lanes lanes of $lane_tasks tasks" 32 lanes one_lane "one lane of as many" 0.9
	row "$((lanes * lane_tasks)) tasks in $lanes lanes that are at their limit in front" \
		32 blocked clear "none in front" 0.95
	echo
	echo "Where it says batches, tasks are enqueued, dequeued and completed $batch_size at a time; all others are" \
		"complete_and_dequeue over a backlog, but for the row that says otherwise. With a concurrency of 10, the workers" \
		"without a task wait in dequeue(). The server has max_lanes and max_tracked_tasks so large that everything is in" \
		"memory: both are beyond their defaults."
	echo
	value_head ""
	value_row "Jain's index of the shares of $((fair_lanes)) lanes, one of which has $flood times as many tasks" \
		"$(values jain 32)" ">= 0.99"
	value_row "bytes of shared memory for each of max_lanes" "$(values lane_bytes 0)" "<= 128"
}
