#!/bin/bash
# Runs the example on some hundred documents of its own making and looks at what it printed.
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

# Text, packed text, and what makes trouble: bytes that are no UTF-8, NUL, an empty file, a broken archive, a large
# file, odd names.
docs=$(mktemp -d)
trap 'rm -rf "$docs"' EXIT
mkdir "$docs/plain" "$docs/packed" "$docs/odd"
for ((i = 1; i <= 250; i++)); do
	printf 'The %dth document is about herons, and number%d is its own word.\n' $i $i >"$docs/plain/$i.txt"
	printf '.TH PAGE%d\nA manual page that tells of kingfishers.\n' $i | gzip >"$docs/packed/$i.gz"
done
: >"$docs/odd/empty"
for ((i = 1; i <= 100; i++)); do       # so that workers of both kinds get some
	printf 'too long \xf8\x88\x80\x80\x80 \xf4\x90\x80\x80, surrogate \xed\xa0\x80, nul \0, %d, cut \xc3' $i \
		>"$docs/odd/bytes$i"
done
printf 'latin \xe9\xe8 and heron' >"$docs/odd/latin"
printf '\x1f\x8b\x08 no archive, but herons' >"$docs/odd/broken.gz"
printf 'it'\''s "quoted" \\n text, | and $HOME: herons' >"$docs/odd/it's a \"name\" | with \\ and, \$HOME.txt"
yes 'many herons, again and again' | head -c 3000000 >"$docs/odd/large.txt"
seq 1 400000 >"$docs/odd/words.txt"
chmod -R a+rX "$docs"

output=$(SMALL=1 LIMIT=0 DOCS=$docs QUERY='latin heron' "$here/run.sh" 2>&1)
status=$?

has() {   # REGEXP, of a whole line
	grep --quiet --line-regexp --extended-regexp -- "$1" <<<"$output"
	report $? "$2"
}

report $status 'document_ingestion: run.sh succeeds'
has 'documents +606' 'every document is fanned out'
has 'indexed +606 \(0 missing, 0 twice\)' 'every document is indexed exactly once'
has 'attempts +606 completed, [0-9]+ expired, 0 failed' 'no attempt fails'
has 'results in order +606' 'the results are collected in order'
has 'killed worker .* of them read; another one starts' 'a worker is killed with tasks in hand'
has 'crashed the server, and it is back after .*' 'the server crashes and comes back'
has 'steps redone +0 of those checkpointed .*' 'no step that was checkpointed is done again'
has 'leases after crash +[1-9][0-9]* gone on with, .*' 'workers go on with their leases after the crash'
has 'highest concurrency +([1-9]|10) leases of one worker, ([1-9]|10) by its own count \(limit 10\)' 'the limit of each worker holds'
has " *$docs/odd/latin" 'the search finds the one document that it should'

[ $failed = 0 ] || sed 's/^/# /' <<<"$output"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
