#!/bin/bash
# Runs the example and looks at what it printed.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
passed=0 failed=0

report() {   # STATUS WHAT
	if [ "$1" = 0 ]; then
		passed=$((passed + 1))
		echo "ok $((passed + failed)) - $2"
	else
		failed=$((failed + 1))
		echo "not ok $((passed + failed)) - $2"
	fi
}

output=$("$here/run.sh" 2>&1)
status=$?

has() {   # REGEXP, of a whole line
	grep --quiet --line-regexp --extended-regexp -- "$1" <<<"$output"
	report $? "$2"
}

report $status 'parallel_tool_calls: run.sh succeeds'
has 'yes: the workflow ended, at its second attempt' 'the workflow ends at its second attempt'
has 'yes: the model was asked once for each step' 'the model is asked once for each step'
has 'yes: five tool calls were issued, in one batch' 'no tool call is issued again'
has 'yes: each of them ran once' 'each tool call runs once'
has 'yes: all five were collected, in order' 'the results are collected in order'
has 'model-1: had been answered' 'the second attempt takes the answer from its checkpoint'
[ "$(grep -c '^tools-1: batch ' <<<"$output")" = 2 ] && [ "$(grep '^tools-1: batch ' <<<"$output" | sort -u | wc -l)" = 1 ]
report $? 'the second attempt gets the batch of the first'

[ $failed = 0 ] || sed 's/^/# /' <<<"$output"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
