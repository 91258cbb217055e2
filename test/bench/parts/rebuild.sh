# shellcheck shell=bash
# The server crashes and starts: how long until memory is there again, with the default pool.

prepare_rebuild() {
	local i

	use_server unfinished
	say "$rows ready tasks"
	fill backlog "$rows"
	use_server mixed
	say "$rows tasks of all kinds"
	fill cycle $((rows / 20))
	for ((i = 0; i < rows / 20; i += 10000)); do
		query -c "SELECT count(*) FROM fanout.dequeue('cycle', 'stuck', max_tasks => $((rows / 20 - i < 10000 ? rows / 20 - i : 10000)))" >/dev/null
	done
	fill backlog $((rows * 9 / 20))
	fill lanes $((rows / 4)) $((rows / 10 + 1))
	fill keys $((rows / 4)) 0 '1 day'
	wait_until "SELECT value = '0 leases' FROM fanout.status() WHERE item = 'journal lag'"
}

# As after any crash: what was written before the last checkpoint is not read again
measure_rebuild() {
	local kind

	for kind in unfinished mixed; do
		use_server $kind
		query -c "CHECKPOINT"
		server_stop "$server" immediate
		server_start "$server"
		wait_until "SELECT value = 'ready' FROM fanout.status() WHERE item = 'state'"
		record "rebuild_$kind" 1 "$(query -c "SELECT split_part(value, ' ', 1)::numeric / 1000 FROM fanout.status()
			WHERE item = 'rebuild time'")"
		[ "$(query -c "SELECT sum(ready + scheduled + running) FROM fanout.queues")" = "$rows" ] ||
			die "not all tasks are there after a crash"
	done
}

finish_rebuild() {
	drop_server unfinished
	drop_server mixed
}

table_rebuild() {
	value_head "rebuild of memory after a crash"
	value_row "$rows ready tasks" "$(values rebuild_unfinished 1 | median | xargs printf '%.2f')" "<= 2" s
	value_row "$rows tasks: 45 % ready, 25 % in $((rows / 10)) partitions, 25 % delayed, 5 % leased" \
		"$(values rebuild_mixed 1 | median | xargs printf '%.2f')" "<= 2" s
	echo
	echo "As the keeper measures it (status(), \"rebuild time\"), with the default pool; the server's own recovery comes before."
}
