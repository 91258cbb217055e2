# shellcheck shell=bash
# Bytes of WAL that a task takes over its whole life.

prepare_wal() {
	use_large_server
	query -c "CREATE EXTENSION pg_walinspect"
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

# wal_of NAME SCRIPT CLIENTS TASKS TRANSACTIONS WORK QUEUE: bytes of WAL a task, and how many of them are page images
wal_of() {
	local from to

	from=$(settled_lsn)
	bench "$2" "$3" --transactions=$(($5 / $3)) -D work="$6" -D queue="$7" >/dev/null
	to=$(settled_lsn)
	record "$1" "$3" "$(query -c "SELECT round(('$to'::pg_lsn - '$from'::pg_lsn) / $4)")"
	record "$1_images" "$3" \
		"$(query -c "SELECT round(sum(fpi_size) / $4) FROM pg_get_wal_stats('$from', '$to')")"
	[ -z "${WAL_BY_TYPE:-}" ] || query -c "SELECT \"resource_manager/record_type\", count, record_size + fpi_size
		FROM pg_get_wal_stats('$from', '$to', true) WHERE count > 0 ORDER BY 3 DESC LIMIT 12" >&2
}

finish_wal() {
	fill_skip_locked $head_tasks
	wal_of wal_skip_locked skip_locked_cycle 32 $wal_tasks $wal_tasks $journaled_ms cycle
	fill_fanout cycle $head_tasks
	wal_of wal_fanout fanout_cycle 32 $wal_tasks $wal_tasks $journaled_ms cycle
	fill_fanout cycle $head_tasks
	wal_of wal_fanout_quick fanout_cycle 32 $wal_tasks $wal_tasks 0 cycle

	fill_skip_locked $batch_head_tasks
	wal_of wal_skip_locked_batch skip_locked_batch $batch_clients $wal_batch_tasks \
		$((wal_batch_tasks / batch_size)) $journaled_ms batch
	fill_fanout batch $batch_head_tasks
	wal_of wal_fanout_batch fanout_batch $batch_clients $wal_batch_tasks \
		$((wal_batch_tasks / batch_size)) $journaled_ms batch
	fill_fanout batch $batch_head_tasks
	wal_of wal_fanout_batch_quick fanout_batch $batch_clients $wal_batch_tasks \
		$((wal_batch_tasks / batch_size)) 0 batch
}

wal_row() { # WORK CLIENTS WHAT [BAR]
	awk -v work="$1" -v bytes="$(values "$3" "$2")" -v images="$(values "$3_images" "$2")" -v bar="${4:-}" \
		'BEGIN {
			printf "| %s | %d | %d | %s | %s |\n", work, bytes, images,
				bar == "" ? "" : "<= " bar, bar == "" ? "" : bytes <= bar ? "met" : "not met"
		}'
}

table_wal() {
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
