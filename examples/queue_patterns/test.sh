#!/bin/bash
# Runs the programs, faster than they are by themselves, and looks at what they printed.
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

output=$(SCALE=${SCALE:-0.2} "$here/run.sh" 2>&1)
report $? 'queue_patterns: run.sh succeeds'

of() {   # PROGRAM: what it has printed
	awk -v program="== $1" '/^==/ { on = $0 == program; next } on' <<<"$output"
}

fair=$(of fair_queue)
[ "$(grep -c ' starts; ' <<<"$fair")" = 13 ]
report $? 'the fair queue: 13 tasks start'
grep -q 'all is done; at most [1-5] ran at once' <<<"$fair"
report $? 'the fair queue: five at once (on a busy machine fewer), and no more'
twice=$(grep -oE 'run: .*' <<<"$fair" | awk -F': |, ' '{ for (i = 3; i <= NF; i++) if ($i == $(i - 1)) n++ } END { print n + 0 }')
[ "$twice" = 0 ]
report $? 'the fair queue: one of each tenant'
[ "$(grep ' starts; ' <<<"$fair" | head -n 5 | awk '{ print $3 }' | sort -u | wc -l)" = 5 ]
report $? 'the fair queue: the first five are of five tenants'

rated=$(of rate_limited_queue)
[ "$(grep -oE 'call [1-6] starts' <<<"$rated" | sort -u | wc -l)" = 6 ]
report $? 'the rate-limited queue: six calls start'
awk '/ starts/ { t[++n] = $1 } END { for (i = 3; i <= n; i++) if (t[i] - t[i - 2] < 7) exit 1; exit n != 6 }' <<<"$rated"
report $? 'the rate-limited queue: two in ten seconds, as far as lines can tell that are printed a moment later'
awk '/ starts/ { last = $1 } END { exit !(last > 19 && last < 40) }' <<<"$rated"
report $? 'the rate-limited queue: and no fewer'

debounced=$(of debounced_queue)
awk -F'"' '/ index: / && $2 == "Once upon a time" { found = 1 } / edit: / && $2 == "Version 1" { exit } END { exit !found }' <<<"$debounced"
report $? 'the debounced queue: the last edit is indexed'
# a machine that is busy may need longer than two seconds between two edits, so any of them may be the last of its series
awk -F'"' '{ split($1, words, " "); time = words[1] }
	/ edit: / { edit[++edits] = $2; at[$2] = time; place[$2] = edits }
	/ index: / { if (time - at[$2] < 1.9 && time - at[edit[last + 1]] < 6.4) early = 1; last = place[$2] }
	END { exit early || !last }' <<<"$debounced"
report $? 'the debounced queue: two seconds after it at the earliest, or 6.5 seconds after the first one'
grep -q 'index: "Version ' <<<"$debounced"
report $? 'the debounced queue: also while edits go on'
[ "$(grep -o 'index: .*' <<<"$debounced" | tail -n 1)" = 'index: "The end"' ]
report $? 'the debounced queue: and the last version in the end'

[ $failed = 0 ] || sed 's/^/# /' <<<"$output"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
