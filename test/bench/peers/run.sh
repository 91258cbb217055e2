#!/usr/bin/env bash
# make bench-peers: the queue beside others for PostgreSQL, each as its own documentation would have it, and a table.
#
#     SYSTEMS="NAME..."        these only, of: pg_fanout pg_fanout_single skip_locked dbos graphile_worker pg_boss
#     ONLY="ROW..."            these rows only, of: run fan_out backlog latency idle snapshot
#     JOBS=10000               jobs of the rows run and fan_out
#     SECONDS_PER_RUN=5        of the backlog
#     SNAPSHOT_SECONDS=30      how long a REPEATABLE READ transaction is open
#     OUT=FILE                 write the table there as well
#     RESULTS=1                and make it the part of test/bench/RESULTS.md that is of make bench-peers
#
# All of it takes some 12 minutes. Node and the packages come from the npm registry, as package-lock.json says; only npm
# has to be there, and is installed if it is not. Each system has a file in systems/, a database of its own in the same
# private server, and two worker processes. The handler does nothing, so this measures the queues.
set -euo pipefail
# shellcheck source=test/harness/lib.sh
. "$(dirname "$0")/../../harness/lib.sh"

here=$REPO_DIR/test/bench/peers
all_systems="pg_fanout pg_fanout_single skip_locked dbos graphile_worker pg_boss"
systems=${SYSTEMS:-$all_systems}
export JOBS=${JOBS:-10000} SECONDS_PER_RUN=${SECONDS_PER_RUN:-5} SNAPSHOT_SECONDS=${SNAPSHOT_SECONDS:-30}
for system in $systems; do
	[[ " $all_systems " = *" $system "* ]] || die "there is no system \"$system\"; there are: $all_systems"
done

need_packages "postgresql-$PG_MAJOR"
command -v npm >/dev/null || need_packages nodejs npm

dir=$(scratch_dir peers)
trap 'server_remove "$dir"' EXIT
trap 'exit 130' INT TERM
results=$dir/results

# As root or not: in a directory of our own, for the checkout may not be ours
mkdir "$dir/node"
cp -r "$here"/*.mjs "$here"/*.json "$here/systems" "$dir/node"
(cd "$dir/node" && npm ci --silent --no-audit --no-fund --ignore-scripts --loglevel=error --cache "$dir/npm") >&2 ||
	die "npm ci failed"
node=$(echo "$dir"/node/node_modules/node-linux-*/bin/node)
[ -x "$node" ] || die "there is no Node for this machine in package.json"

# As in make bench, but for autovacuum, which other queues need
server_create "$dir" "shared_buffers = '512MB'" "max_wal_size = '16GB'" "checkpoint_timeout = '1h'" \
	"max_connections = 300" "autovacuum_naptime = '5s'" "jit = off" "synchronous_commit = on"
server_start "$dir"
export PID_FILE=$dir/data/postmaster.pid NODE_NO_WARNINGS=1

for system in $systems; do
	say "$system"
	psql -Xq -v ON_ERROR_STOP=1 -c "CREATE DATABASE $system" -c "CHECKPOINT"
	PGDATABASE=$system "$node" "$dir/node/main.mjs" "$system" >>"$results" || die "$system failed"
	psql -Xq -c "DROP DATABASE $system WITH (FORCE)" >/dev/null
done

value() { # SYSTEM WHAT
	awk -v who="$1" -v what="$2" '$1 == who && $2 == what { print $3 }' "$results"
}

version() {
	sed -n 's/^  "version": "\(.*\)",$/\1/p' "$dir/node/node_modules/$1/package.json" | head -n 1
}

label() {
	case $1 in
		pg_fanout) echo "pg_fanout" ;;
		pg_fanout_single) echo "pg_fanout, one at a time" ;;
		skip_locked) echo "SKIP LOCKED" ;;
		dbos) echo "DBOS" ;;
		graphile_worker) echo "graphile-worker" ;;
		pg_boss) echo "pg-boss" ;;
	esac
}

# Where another system is better than ours, in words; more is better, but for latency and cost
slower() {
	local what system ours theirs

	for what in run:more fan_out:more backlog:more latency_p50:less latency_p99:less idle_transactions:less idle_cpu:less \
		steady:more steady_held:more; do
		ours=$(value pg_fanout "${what%:*}")
		[ -n "$ours" ] || continue
		for system in $systems; do
			[[ $system != pg_fanout* ]] || continue
			theirs=$(value "$system" "${what%:*}")
			[ -n "$theirs" ] || continue
			awk -v a="$ours" -v b="$theirs" -v way="${what#*:}" 'BEGIN { exit !(way == "more" ? b > a : b < a) }' || continue
			echo "- $(title "${what%:*}"): $(label "$system") $theirs, pg_fanout $ours"
		done
	done
}

title() {
	case $1 in
		run) echo "$JOBS jobs enqueued at once and done, jobs/s" ;;
		fan_out) echo "fan-out of $JOBS, results collected in order, jobs/s" ;;
		backlog) echo "over a backlog, jobs/s" ;;
		latency_p50) echo "from enqueued to handled, half within, ms" ;;
		latency_p99) echo "from enqueued to handled, 99 of 100 within, ms" ;;
		idle_transactions) echo "room for 100 jobs and none there: transactions/s" ;;
		idle_cpu) echo "room for 100 jobs and none there: processor time of the server, %" ;;
		steady) echo "enqueued and done all the time, jobs/s" ;;
		steady_held) echo "the same with a REPEATABLE READ transaction open for $SNAPSHOT_SECONDS s" ;;
	esac
}

table() {
	local what system worse

	echo "pg_fanout $(sed -n "s/^default_version *= *'\(.*\)'/\1/p" "$REPO_DIR/pg_fanout.control")," \
		"$("$PG_CONFIG" --version), Node $("$node" --version), @dbos-inc/dbos-sdk $(version @dbos-inc/dbos-sdk)," \
		"graphile-worker $(version graphile-worker), pg-boss $(version pg-boss), pg $(version pg); $(date -u +%F)."
	echo "$(nproc) processors ($(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1))," \
		"$(awk '/^MemTotal/ { printf "%.0f", $2 / 1024 / 1024 }' /proc/meminfo) GB, clients on the same machine," \
		"synchronous_commit on. Two worker processes; the first two rows are medians of five, after three that do not count."
	echo
	worse=$(slower)
	if [ -n "$worse" ]; then
		echo "Where pg_fanout is behind:"
		echo
		echo "$worse"
	else
		echo "pg_fanout is behind in no row."
	fi
	echo
	printf '|'
	for system in "" $systems; do printf ' %s |' "$([ -z "$system" ] || label "$system")"; done
	printf '\n|---|'
	for system in $systems; do printf -- '--:|'; done
	echo
	for what in run fan_out backlog latency_p50 latency_p99 idle_transactions idle_cpu steady steady_held; do
		[ -n "$(awk -v what="$what" '$2 == what' "$results")" ] || continue
		printf '| %s |' "$(title "$what")"
		for system in $systems; do printf ' %s |' "$(value "$system" "$what")"; done
		echo
	done
	echo
	fan_out_bar
	echo
	echo "pg_fanout and SKIP LOCKED take up to 250 jobs in a call, one loop a process; \"one at a time\" is ten loops a" \
		"process. A fan-out of pg_fanout is enqueued 2000 at a time, one of DBOS 1000. graphile-worker: local queue of" \
		"500, completions in batches, 24 jobs at a time; pg-boss: batches of 500, notify; DBOS: bulk enqueue, polled every 100 ms (default: 1 s), 200 workflows at a time in a process. A workflow of" \
		"DBOS keeps its result, as a task of pg_fanout does; the others keep none."
}

fan_out_bar() {
	local ours theirs

	ours=$(value pg_fanout fan_out)
	theirs=$(value dbos fan_out)
	[ -n "$ours" ] && [ -n "$theirs" ] || return 0
	awk -v ours="$ours" -v theirs="$theirs" 'BEGIN {
		printf "Fan-out beside DBOS: %.1fx; bar >= 50x: %s.\n", ours / theirs, (ours / theirs >= 50) ? "met" : "not met" }'
}

table >"$dir/table"
[ -z "${OUT:-}" ] || cp "$dir/table" "$OUT"
[ -z "${RESULTS:-}" ] || "$REPO_DIR/test/bench/results" peers "$dir/table"
cat "$dir/table"
