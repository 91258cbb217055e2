# shellcheck shell=bash
# A transaction that stays open: what its snapshot costs after a while. Autovacuum is on, and quick.

snapshot_seconds=30
[ -z "${LONG:-}" ] || snapshot_seconds=300
snapshot_seconds=${SNAPSHOT_SECONDS:-$snapshot_seconds}

prepare_snapshot() {
	use_server snapshot "autovacuum = on" "autovacuum_naptime = '5s'"
	snapshot_kinds=(fanout_cycle skip_locked_cycle)
}

# The rate in the last third of the time
last_third() {
	awk -v from="$((snapshot_seconds * 2 / 3))" '
		/^progress:/ { if ($2 > from + 0.5) { sum += $4 * ($2 - at); time += $2 - at } at = $2 }
		END { printf "%.0f\n", sum / time }' "$dir/errors"
}

measure_for_long() { # NAME SCRIPT
	fill_skip_locked $head_tasks
	fill_fanout cycle $head_tasks
	bench "$2" 32 --time=$snapshot_seconds --progress=1 >"$dir/pgbench"
	record "$1" 32 "$(last_third)"
}

# Once, as it takes long
finish_snapshot() {
	local script

	for script in "${snapshot_kinds[@]}"; do
		measure_for_long "${script}_free" "$script"
		in_background pgbench --no-vacuum --client=1 --time=86400 --file="$here/snapshot_held.sql"
		wait_until "SELECT count(*) = 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND backend_xmin IS NOT NULL"
		measure_for_long "${script}_held" "$script"
		stop_background
	done
}

table_snapshot() {
	rate_head "one idle REPEATABLE READ transaction, open for $snapshot_seconds s"
	row "enqueue, dequeue, complete" 32 fanout_cycle_held fanout_cycle_free "without it" 0.95
	row "SKIP LOCKED, 3 statements" 32 skip_locked_cycle_held skip_locked_cycle_free "without it"
	echo
	echo "Rates of the last third of that time, beside a run as long without the transaction. Autovacuum looks every 5 s."
}
