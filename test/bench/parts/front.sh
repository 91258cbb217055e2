# shellcheck shell=bash
# What waits or is leased in front of the work, with the default pool; leases need a larger one. Beside a server where
# nothing is in front and all is in memory.

prepare_front() {
	local i

	use_plain_server
	say "$rows ready tasks"
	use_server ready
	fill backlog "$rows"
	fill_ranked ranked "$rows"
	say "$rows delayed tasks"
	use_server delayed
	fill cycle "$rows" 0 '1 day'
	fill backlog "$rows" 0 '1 day'
	say "$rows leased tasks"
	use_server leased "pg_fanout.max_tracked_tasks = $((4 * rows + 8 * backlog_tasks))"
	fill cycle "$rows"
	for ((i = 0; i < rows; i += 10000)); do
		query -c "SELECT count(*) FROM fanout.dequeue('cycle', 'stuck', max_tasks => 10000)" >/dev/null
	done
	wait_until "SELECT value = '0 leases' FROM fanout.status() WHERE item = 'journal lag'"
	query -c "CHECKPOINT"
}

# SERVER: what the cycle and the backlog of these servers begin with
begin_cycle() {
	use_server "$1"
	query -c "VACUUM ANALYZE" -c "SELECT bench.add('cycle', $head_tasks, 0, '$args')" -c "CHECKPOINT" >/dev/null
}

begin_backlog() {
	use_server "$1"
	top_up "$2" $backlog_tasks $backlog_tasks
}

measure_front() {
	local kind

	begin_backlog plain backlog
	use_server plain
	[ "$(query -c "SELECT ready >= $backlog_tasks FROM fanout.queues WHERE queue = 'ranked'")" = t ] ||
		fill_ranked ranked $backlog_tasks
	measure_beside "front_backlog@plain fanout_over 32 1 -D queue=backlog" \
		"front_ready_backlog@ready fanout_over 32 1 -D queue=backlog"
	measure_beside "front_ranked@plain fanout_over 32 1 -D queue=ranked" \
		"front_ready_ranked@ready fanout_over 32 1 -D queue=ranked"
	use_server plain
	query -c "SELECT bench.add('empty', $head_tasks, 0, '$args')" >/dev/null
	measure_beside "front_urgent@plain fanout_urgent 32 1 -D queue=empty" \
		"front_ready_urgent@ready fanout_urgent 32 1 -D queue=backlog"

	for kind in delayed leased; do
		begin_cycle plain
		begin_cycle $kind
		measure_beside "front_cycle_$kind@plain fanout_cycle 32 1 -D queue=cycle" \
			"front_$kind@$kind fanout_cycle 32 1 -D queue=cycle"
	done
	begin_backlog plain backlog
	begin_backlog delayed backlog
	measure_beside "front_backlog_delayed@plain fanout_over 32 1 -D queue=backlog" \
		"front_delayed_backlog@delayed fanout_over 32 1 -D queue=backlog"
}

finish_front() {
	drop_server delayed
	drop_server leased
	use_server ready
	record front_disorder 32 "$(query -c "SELECT bench.out_of_order('ranked')")"
	record front_memory 32 "$(query -c "SELECT in_memory FROM fanout.queues WHERE queue = 'backlog'")"
	drop_server ready
}

table_front() {
	rate_head "$rows tasks in front"
	row "ready: complete_and_dequeue over them" 32 front_ready_backlog front_backlog "a backlog in memory" 0.95
	row "ready, with priorities: complete_and_dequeue over them" 32 front_ready_ranked front_ranked \
		"a backlog in memory, with priorities" 0.95
	row "ready: three calls, with tasks more urgent than they" 32 front_ready_urgent front_urgent "none in front" 0.95
	row "delayed: three calls" 32 front_delayed front_cycle_delayed "none in front" 0.95
	row "delayed: complete_and_dequeue over a backlog" 32 front_delayed_backlog front_backlog_delayed "none in front" 0.95
	row "leased: three calls" 32 front_leased front_cycle_leased "none in front" 0.95
	echo
	value_head "ready tasks with priorities"
	value_row "tasks claimed out of their order" "$(values front_disorder 32)" "<= 0"
	echo
	echo "Ready and delayed tasks with the default pg_fanout.max_tracked_tasks, of which a queue may have a quarter:" \
		"most of them are on disk, and read when their turn comes. Leases have to be in memory."
}
