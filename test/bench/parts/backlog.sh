# shellcheck shell=bash
# A server that has much of everything, with the default pool: twice ROWS ready tasks, as many as ROWS in partitions of
# one task, as many delayed, and a queue that has nothing. Beside a server where nothing is in front.

prepare_backlog() {
	use_plain_server
	use_server backlog
	say "$((2 * rows)) ready tasks, $rows partitions, $rows delayed tasks"
	fill_ranked ranked $((2 * rows))
	fill lanes "$rows" "$rows"
	fill backlog "$rows" 0 '1 day'
	query -c "CHECKPOINT" -c "VACUUM ANALYZE"
}

# begin_with_head SERVER QUEUE...: enough that a cycle finds no queue empty
begin_with_head() {
	local queue

	use_server "$1"
	for queue in "${@:2}"; do
		query -c "SELECT bench.add('$queue', $head_tasks, 0, '$args')" >/dev/null
	done
	query -c "CHECKPOINT"
}

measure_backlog() {
	use_server plain
	query -c "VACUUM ANALYZE"
	[ "$(query -c "SELECT ready >= $backlog_tasks FROM fanout.queues WHERE queue = 'ranked'")" = t ] ||
		fill_ranked ranked $backlog_tasks
	top_up lanes $backlog_tasks $backlog_tasks $backlog_tasks
	begin_with_head plain empty cycle
	begin_with_head backlog empty backlog
	measure_beside "backlog_empty_free@plain fanout_cycle 32 1 -D queue=empty" \
		"backlog_empty@backlog fanout_cycle 32 1 -D queue=empty"
	measure_beside "backlog_delayed_free@plain fanout_cycle 32 1 -D queue=cycle" \
		"backlog_delayed@backlog fanout_cycle 32 1 -D queue=backlog"
	measure_beside "backlog_ranked_free@plain fanout_over 32 1 -D queue=ranked" \
		"backlog_ranked@backlog fanout_over 32 1 -D queue=ranked"
	measure_beside "backlog_lanes_free@plain fanout_over 32 1 -D queue=lanes" \
		"backlog_lanes@backlog fanout_over 32 1 -D queue=lanes"
}

finish_backlog() {
	use_server backlog
	record backlog_disorder 32 "$(query -c "SELECT bench.out_of_order('ranked')")"
	record backlog_twice 32 "$(query -c "SELECT count(*) FROM (SELECT FROM (SELECT task FROM fanout.outcome
		UNION ALL SELECT task FROM fanout.leases) AS claimed GROUP BY task HAVING count(*) > 1) AS twice")"
	drop_server backlog
}

table_backlog() {
	rate_head "$((2 * rows)) ready, $rows partitions, $rows delayed, one queue each"
	row "three calls, in a queue that is empty" 32 backlog_empty backlog_empty_free "nothing in the others" 0.95
	row "three calls, in the queue of the delayed tasks" 32 backlog_delayed backlog_delayed_free "nothing in front" 0.95
	row "complete_and_dequeue over the ready tasks" 32 backlog_ranked backlog_ranked_free "a backlog in memory" 0.95
	row "complete_and_dequeue over the partitions" 32 backlog_lanes backlog_lanes_free "partitions in memory" 0.95
	echo
	value_head "these queues"
	value_row "ready tasks claimed out of their order" "$(values backlog_disorder 32)" "<= 0"
	value_row "tasks claimed twice" "$(values backlog_twice 32)" "<= 0"
	echo
	echo "With the default pg_fanout.max_tracked_tasks and pg_fanout.max_lanes. The ready tasks have priorities from 0 to 9."
}
