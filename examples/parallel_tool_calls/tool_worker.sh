#!/bin/bash
# Runs tool calls of queue "tools", one after the other: as many as its argument says.
set -euo pipefail

worker=$HOSTNAME:$$

sql() {   # SCRIPT [VARIABLE=VALUE ...]
	local script=$1 variable
	local variables=()
	shift
	for variable; do
		variables+=(--set "$variable")
	done
	psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 "${variables[@]}" <<<"$script"
}

# Stands for a call of the world outside: what it does there, it does in a transaction of its own.
run_tool() {   # TOOL ABOUT CALL
	sql "INSERT INTO side_effects (who, what, call) VALUES (:'worker', :'tool', :'call')" \
		worker="$worker" tool="$1" call="$3"
	echo "$1 for $2: fine"
}

calls=$1
while [ "$calls" -gt 0 ]; do
	task=$(sql "SELECT lease, name, args->>'id', args->>'about'
	              FROM fanout.dequeue('tools', worker => :'worker', wait => '20s')" worker="$worker")
	[ -n "$task" ] || continue
	IFS='|' read -r lease tool call about <<<"$task"
	text=$(run_tool "$tool" "$about" "$call")
	sql "SELECT FROM fanout.complete(:lease, jsonb_build_object('text', :'text'))" lease="$lease" text="$text" >/dev/null
	calls=$((calls - 1))
done
