#!/usr/bin/env bash
# make soak: full rate for long with a short retention: are the sizes of the log and the rate flat?
#
#     SECONDS=NUMBER    how long; 1800 by default
#     RETENTION=NUMBER  seconds; 60 by default
#     CLIENTS=NUMBER    8 by default
#     OUT=FILE          write the lines there as well
#
# In the second third a REPEATABLE READ transaction is open, with a snapshot and no lock on the log. Each line tells of one
# minute, or of ten seconds of a run that takes less than ten: the rate, the bytes and dead rows of the log, the bytes of
# the other tables, and which segments there are. The first samples, until a segment was retired and half a retention
# more, are not compared.
seconds=$SECONDS      # before bash counts it on
[ "$seconds" -gt 0 ] || seconds=1800
set -euo pipefail
# shellcheck source=test/harness/lib.sh
. "$(dirname "$0")/../harness/lib.sh"

here=$REPO_DIR/test/soak
retention=${RETENTION:-60}
clients=${CLIENTS:-8}
sample=60
[ "$seconds" -ge 600 ] || sample=10
args='{"url": "https://docs.example.org/pages/0123456789/index.html", "digest": "012345678901234"}'

need_packages "postgresql-$PG_MAJOR"
dir=$(scratch_dir soak)
trap 'server_remove "$dir"' EXIT
trap 'exit 130' INT TERM
server_create "$dir" "pg_fanout.retention = ${retention}s" "max_wal_size = 4GB" "max_connections = 60"
server_start "$dir"

query() { psql -XAtq -v ON_ERROR_STOP=1 "$@"; }

query -f "$here/schema.sql" >/dev/null
# nobody is to find the queue empty
query -c "SELECT count(*) FROM fanout.enqueue_many('soak', 'page', array_fill('$args'::jsonb, '{1000}'))" >/dev/null
samples=$dir/samples
begin=$(date +%s)
holder=
old_finished=0
failed=0

check() { # OK NAME
	if [ "$1" = 0 ]; then
		echo "ok - $2"
	else
		echo "not ok - $2"
		failed=$((failed + 1))
	fi
}

finished() { query -c "SELECT succeeded + failed FROM fanout.queues WHERE queue = 'soak'"; }

report() {
	local load last=0

	pgbench --no-vacuum --protocol=prepared --client="$clients" --jobs=2 --time="$seconds" --file="$here/work.sql" \
		-D args="$args" -D lease=0 >"$dir/pgbench" 2>&1 &
	load=$!
	echo "retention $retention s, $clients clients, $seconds s"
	printf '%6s %9s %10s %10s %10s  %s\n' second tasks/s "log MB" "dead rows" "other MB" segments
	while kill -0 "$load" 2>/dev/null; do
		for ((i = 0; i < sample; i++)); do
			query -c "CALL probe()" || check 1 "a probe"
			sleep 1
			kill -0 "$load" 2>/dev/null || break 2
			now=$(($(date +%s) - begin))
			if [ -z "$holder" ] && [ "$now" -ge $((seconds / 3)) ] && [ "$now" -lt $((seconds * 2 / 3)) ]; then
				query -c "BEGIN ISOLATION LEVEL REPEATABLE READ" -c "SELECT count(*) FROM pg_class" \
					-c "SELECT pg_sleep($((seconds / 3)))" >/dev/null &
				holder=$!
			fi
		done
		now=$(($(date +%s) - begin))
		new_finished=$(finished)
		line=$(query -F ' ' -c "SELECT round(log_bytes / 1e6, 1), dead_rows, round(other_bytes / 1e6, 1),
			(SELECT string_agg(segment || ':' || state, ',' ORDER BY first_task) FROM fanout.segments) FROM size")
		rate=$(((new_finished - old_finished) / (now - last)))
		last=$now
		old_finished=$new_finished
		# shellcheck disable=SC2086
		printf '%6d %9d %10s %10s %10s  %s\n' "$now" "$rate" $line
		echo "$now $rate $line" >>"$samples"
		lost=$(query -c "SELECT * FROM lost('$retention s') LIMIT 5")
		[ -z "$lost" ] || check 1 "nothing is lost: $lost"
	done
	wait "$load" && ok=0 || ok=$?
	check "$ok" "the load came to its end"
	[ "$ok" = 0 ] || tail -n 5 "$dir/pgbench"
	[ -z "$holder" ] || wait "$holder" || true
	query -c "SELECT item || ': ' || value FROM fanout.status() WHERE item ~ 'retire|carried'"
	retired=$(query -c "SELECT value FROM fanout.status() WHERE item = 'retired segments'")
	[ "$retired" -ge 2 ] && ok=0 || ok=1
	check $ok "segments were retired: $retired"
	compare
	[ -z "$(query -c "SELECT * FROM lost('$retention s') LIMIT 5")" ] && ok=0 || ok=1
	check $ok "no unfinished task is lost, no outcome too early"
}

# Of the samples after the first two and a half retentions: the last half beside the first
compare() {
	awk -v from=$((retention * 5 / 2)) -v third=$((seconds / 3)) -v sample=$sample '
		$1 >= from { n++; t[n] = $1; rate[n] = $2; mb[n] = $3; if ($4 > dead) dead = $4 }
		END {
			half = int(n / 2)
			for (i = 1; i <= n; i++) {
				if (i <= half) { a += rate[i]; if (mb[i] > first) first = mb[i] }
				else if (i > n - half) { b += rate[i]; if (mb[i] > last) last = mb[i] }
				if (t[i] > third + sample && t[i] <= 2 * third) { held += rate[i]; h++ } else { free += rate[i]; f++ }
			}
			if (half == 0) { print "not ok - too few samples"; exit }
			verdict(last <= first * 1.25, sprintf("the log is flat: %.1f MB at most in the first half, %.1f in the second", first, last))
			verdict(b >= a * 0.85, sprintf("the rate is flat: %d and %d tasks/s", a / half, b / half))
			if (h > 0 && f > 0)
				verdict(held / h >= 0.85 * free / f, sprintf("also with a transaction open: %d tasks/s, %d without", held / h, free / f))
			verdict(dead <= 5000, sprintf("%d dead rows at most", dead))
		}
		function verdict(ok, what) { print (ok ? "ok - " : "not ok - ") what }' "$samples"
}

report | tee "$dir/lines"
[ -z "${OUT:-}" ] || cp "$dir/lines" "$OUT"
passed=$(grep -c '^ok ' "$dir/lines") || true
failed=$(grep -c '^not ok ' "$dir/lines") || true
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
