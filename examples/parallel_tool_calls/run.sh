#!/bin/bash
# An agent calls five tools in parallel and is killed when two of them have completed. Started again, it issues none
# of them again and collects all five in order. Status 0 if the log of side effects proves it.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../test/harness/lib.sh"

agent=''      # the pid of the agent that runs

sql() {
	psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 "$@"
}

until_true() {   # QUERY
	local give_up=$((SECONDS + 60))
	until [ "$(sql --command "SELECT $1")" = t ]; do
		[ $SECONDS -lt $give_up ] || die "this did not come true within a minute: $1"
		sleep 0.05
	done
}

# shellcheck disable=SC2317
clean_up() {
	[ -z "$agent" ] || kill -KILL "$agent" 2>/dev/null || true
	server_remove "$dir"
}

check() {   # WHAT QUERY
	if [ "$(sql --command "SELECT $2")" = t ]; then
		echo "yes: $1"
	else
		echo "NO: $1"
		wrong=1
	fi
}

need_packages python3-psycopg
[ -e "$("$PG_CONFIG" --pkglibdir)/pg_fanout.so" ] || die "install the extension first: make && make install"

dir=$(scratch_dir tools)
trap clean_up EXIT
trap 'exit 130' INT TERM
server_create "$dir"
server_start "$dir"
sql --file "$here/schema.sql" >/dev/null

task=$(sql --command "SELECT fanout.enqueue('agents', 'converse', '{\"question\": \"Is Oslo worth a weekend?\"}')")

"$here/agent.py" &
agent=$!
"$here/tool_worker.sh" 2
until_true "count(*) = 2 FROM fanout.tasks WHERE queue = 'tools' AND state = 'succeeded'"
kill -KILL $agent
wait $agent 2>/dev/null || true
echo "two of five tool calls have completed: killed the agent"

"$here/agent.py" &
agent=$!
until_true "state = 'running' AND attempt = 2 FROM fanout.tasks WHERE task = $task"
"$here/tool_worker.sh" 3
wait $agent
agent=''

wrong=0
echo
check 'the workflow ended, at its second attempt' \
	"state = 'succeeded' AND attempt = 2 FROM fanout.tasks WHERE task = $task"
check 'the model was asked once for each step' \
	"array_agg(call ORDER BY call) = '{model-1,model-2}' FROM side_effects WHERE what = 'model'"
check 'five tool calls were issued, in one batch' \
	"count(*) = 5 AND count(DISTINCT batch) = 1 FROM fanout.tasks WHERE queue = 'tools'"
check 'each of them ran once' \
	"count(*) = 5 AND count(DISTINCT call) = 5 FROM side_effects WHERE what <> 'model'"
check 'all five were collected, in order' \
	"result->>'answer' = 'weather for Lisbon: fine; weather for Oslo: fine; flights for Lisbon - Oslo: fine; '
	 'exchange_rate for EUR - NOK: fine; hotels for Oslo: fine.' FROM fanout.result($task, timeout => '0')"
exit $wrong
