# shellcheck shell=bash
# One task at a time, batches, and a wide fan-out; beside the floor, SKIP LOCKED and COPY. CPU of the same runs.

prepare_single_calls() {
	use_large_server
	query <<-SQL
		INSERT INTO bench.wide SELECT args, args::text FROM (
			SELECT array_agg(jsonb_build_object('url', 'https://docs.example.org/pages/' || lpad(i::text, 10, '0')
					|| '/index.html', 'digest', lpad(to_hex(i), 15, '0')) ORDER BY i)
				FROM generate_series(1, $wide_tasks) AS i) AS wide (args);
		COPY (SELECT i, 1, 0, 'index_document', a FROM bench.wide, unnest(args) WITH ORDINALITY AS t (a, i))
			TO '$server/wide.copy';
	SQL
}

measure_single_calls() {
	query -c "VACUUM ANALYZE"
	one_at_a_time
	batches
	wide
}

one_at_a_time() {
	local n

	for n in $clients; do
		fill_floor
		measure floor floor "$n"
		fill_floor
		measure floor_three_calls floor_three_calls "$n"
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

# The milliseconds of one statement and its commit, turned into rows a second
measure_wide() {
	local ms

	ms=$(query -c '\timing on' -c "$2" | sed -n 's/^Time: \([0-9.]*\) ms.*/\1/p')
	record "$1" 1 "$(awk "BEGIN { printf \"%.0f\", $wide_tasks * 1000 / $ms }")"
}

wide() {
	fill_floor
	measure_wide copy "COPY bench.copied (id, queue, priority, name, args) FROM '$server/wide.copy'"
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

table_single_calls() {
	local n at_32

	rate_head work
	for n in $clients; do
		at_32=
		[ "$n" != 32 ] || at_32=yes
		row "enqueue, dequeue, complete" "$n" fanout_cycle floor "floor" ${at_32:+0.37}
		row "enqueue, dequeue, complete" "$n" fanout_cycle floor_three_calls "INSERT, SELECT by key, INSERT"
		row "enqueue, dequeue, complete" "$n" fanout_cycle skip_locked_cycle "SKIP LOCKED, 3 statements" ${at_32:+1.75}
		row "INSERT, SELECT by key, INSERT" "$n" floor_three_calls floor "floor"
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
	echo "The floor is an INSERT of one row and its commit. INSERT, SELECT by key, INSERT is what is left of three calls" \
		"without a queue: a row for the task, a look at it, a row for its outcome, each in a transaction of its own. The" \
		"bars hold at 32 clients; those of SKIP LOCKED are for a queue that works in three statements. COPY reads (and" \
		"so parses) a file on the server, into a table with one index; fan_out takes an array that is in a table: at hand" \
		"as jsonb[], or as text that has to be parsed as well, which the server does before fan_out is called. No array" \
		"is built while the clock runs."
	echo
	table_cpu
}

# cpu_row WORK CLIENTS OURS THEIRS NAME-OF-THEIRS
cpu_row() {
	local ours theirs

	ours=$(values "$3_cpu" "$2" | median)
	theirs=$(values "$4_cpu" "$2" | median)
	[ -n "$ours" ] && [ -n "$theirs" ] || return 0
	awk -v work="$1" -v n="$2" -v ours="$ours" -v theirs="$theirs" -v beside="$5" \
		'BEGIN { printf "| %s | %d | %.1f us | %s | %.1f us | %.2fx |\n", work, n, ours, beside, theirs, ours / theirs }'
}

table_cpu() {
	local n=32

	[[ " $clients " = *" 32 "* ]] || n=${clients##* }
	echo "| CPU of the server a task | clients | CPU | beside | its CPU | ratio |"
	echo "|---|--:|--:|---|--:|--:|"
	cpu_row "enqueue, dequeue, complete" "$n" fanout_cycle floor "floor"
	cpu_row "enqueue, dequeue, complete" "$n" fanout_cycle floor_three_calls "INSERT, SELECT by key, INSERT"
	cpu_row "enqueue, dequeue, complete" "$n" fanout_cycle skip_locked_cycle "SKIP LOCKED, 3 statements"
	cpu_row "enqueue, complete_and_dequeue" "$n" fanout_two_calls skip_locked_cycle "SKIP LOCKED, 3 statements"
	cpu_row "enqueue, complete_and_dequeue" "$n" fanout_two_calls skip_locked_two_calls "SKIP LOCKED, 2 with a CTE"
	cpu_row "complete_and_dequeue over a backlog" "$n" fanout_backlog floor "floor"
	cpu_row "complete_and_dequeue over a backlog" "$n" fanout_backlog skip_locked_backlog "SKIP LOCKED, 1 with a CTE"
	cpu_row "the three calls in batches of $batch_size" $batch_clients fanout_batch skip_locked_batch "SKIP LOCKED"
	echo
	echo "User and system time of all processes of the server, sessions and background, while the rates above were" \
		"measured. The VACUUM that a SKIP LOCKED queue needs is not in it."
}
