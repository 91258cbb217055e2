# shellcheck shell=bash
# A fan-out from its call to the last result at the client, in order, with two workers.

collected_tasks=$((rows / 100 < 100 ? 100 : rows / 100))

prepare_collected() {
	use_plain_server
}

collect() { # NAME BATCH
	local worker seconds

	for worker in 1 2; do
		in_background pgbench --no-vacuum --protocol=prepared --client=1 --time=86400 --file="$here/fanout_collected.sql" \
			-D worker="$worker" -D batch="$2" -D leases='{}' -D results='{}'
	done
	wait_until "SELECT waiting_workers = 2 FROM fanout.queues WHERE queue = 'collected'"
	query -f "$here/collect.sql" -v tasks="$collected_tasks" >"$dir/collected"
	stop_background
	seconds=$(tail -n 1 "$dir/collected")
	# the results are the numbers of the tasks, and so have to be those of the lines
	[ "$(awk -F '|' '$1 == NR && $2 == "succeeded" && $3 == NR { n++ } END { print n }' "$dir/collected")" = "$collected_tasks" ] ||
		die "the results are not complete, or not in order"
	record "$1" 2 "$(awk "BEGIN { printf \"%.0f\", $collected_tasks / $seconds }")"
}

measure_collected() {
	query -c "VACUUM ANALYZE" -c "CHECKPOINT"
	collect collected_one 1
	collect collected_batch $batch_size
}

table_collected() {
	echo "| a fan-out of $collected_tasks, 2 workers, results in order | tasks/s |"
	echo "|---|--:|"
	echo "| workers take $batch_size at a time | $(values collected_batch 2 | median) |"
	echo "| workers take one at a time | $(values collected_one 2 | median) |"
	echo
	echo "From the call of fan_out to the last row of collect at the client. Its bar is beside DBOS: make bench-peers."
}
