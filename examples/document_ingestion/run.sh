#!/bin/bash
# Indexes the documents of this machine with workers in Python and bash, on a private server. Half-way it kills one
# worker and crashes the server, and goes on. Status 0 if in the end every document is indexed exactly once.
#
#     DOCS=DIRECTORY   what to index; by default the files below /usr/share/doc and the man pages
#     LIMIT=NUMBER     how many files, evenly out of all; 0: all of them. By default 5000, or all of DOCS
#     QUERY=WORDS      what to search for in the end
#     SMALL=1          a small and quick run, for tests
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../test/harness/lib.sh"

python_workers=3
bash_workers=2
query=${QUERY:-regular expression}
lease='10 s'
if [ -n "${DOCS:-}" ]; then
	docs=("$(realpath -- "$DOCS")")
	limit=${LIMIT:-0}
else
	docs=(/usr/share/doc /usr/share/man)
	limit=${LIMIT:-5000}
fi
if [ -n "${SMALL:-}" ]; then
	limit=${LIMIT:-600}
	lease='4 s'
fi

declare -A pid_of=() job_of=()      # of the workers that run, by the names of their files
killed='' crashed_at=0 sampled=0

# ---- the parts -----------------------------------------------------------------------------------------------------

# File names that the workers' user can read and that are text, one a line, evenly down to the limit.
list_documents() {
	{ run_as_user find "${docs[@]}" -type f -readable ! -name $'*\n*' 2>/dev/null || true; } |
		LC_ALL=C.UTF-8 grep --text --line-regexp '.*' | LC_ALL=C sort >"$dir/all"
	awk -v all="$(wc -l <"$dir/all")" -v limit="$limit" \
		'limit == 0 || all <= limit || int(NR * limit / all) > int((NR - 1) * limit / all)' "$dir/all"
}

sql() {
	psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 "$@"
}

start_worker() {   # NAME PROGRAM
	# The process that becomes the worker notes its pid: the job may be a shell around it.
	# shellcheck disable=SC2016
	run_as_user bash -c 'echo $$ >"$1"; WORKER_LOG=$2 exec "$3"' bash "$dir/$1.pid" "$dir/$1.log" "$dir/programs/$2" \
		2>>"$dir/workers.err" &
	job_of[$1]=$!
	until [ -s "$dir/$1.pid" ]; do sleep 0.02; done
	pid_of[$1]=$(<"$dir/$1.pid")
}

clean_up() {
	[ ${#pid_of[@]} -eq 0 ] || kill -KILL "${pid_of[@]}" 2>/dev/null || true
	server_remove "$dir"
}

give_up() {   # WHY
	tail -n 20 "$dir/workers.err" "$dir/server.log" >&2
	die "$1"
}

# Kills the first Python worker, at a moment when it has tasks in hand that it has read but not indexed. False if there
# is no such task just now.
kill_a_worker() {
	local pid=${pid_of[python-1]} held
	kill -STOP "$pid"
	held=$(sql --set worker="$HOSTNAME:$pid" <<<"SELECT count(*), count(t.task)
	         FROM fanout.leases LEFT JOIN document_text t USING (task) WHERE worker = :'worker'")
	if [ "${held#*|}" = 0 ]; then
		kill -CONT "$pid"
		return 1
	fi
	kill -KILL "$pid"
	killed=$HOSTNAME:$pid
	unset 'pid_of[python-1]' 'job_of[python-1]'
	message "killed worker $killed: it had ${held%|*} tasks in hand, ${held#*|} of them read; another one starts"
	start_worker "python-$((python_workers + 1))" worker.py
}

crash_the_server() {
	local back
	crashed_at=$EPOCHREALTIME
	server_stop "$dir" immediate
	server_start "$dir"
	back=$EPOCHREALTIME
	message "crashed the server, and it is back after $(awk "BEGIN { printf \"%.1f\", $back - $crashed_at }") s"
}

message() {
	if [ -t 1 ]; then printf '\r\033[K'; fi
	echo "$*"
}

# On a terminal a line that is drawn again and again, elsewhere a line for each tenth.
drawn=-1
progress_bar() {   # DONE TOTAL PER_SECOND TIME_LEFT
	local percent=$((100 * $1 / $2)) bar
	[ -t 1 ] || [ $((percent / 10)) -gt $drawn ] || return 0
	drawn=$((percent / 10))
	printf -v bar '%*s' $((percent * 40 / 100)) ''
	printf -v bar '[%-40s] %3d %%  %d of %d, %s/s, %s s left' "${bar// /#}" $percent "$1" "$2" "$3" "$4"
	if [ -t 1 ]; then printf '\r\033[K%s' "$bar"; else echo "$bar"; fi
}

# ---- the story -----------------------------------------------------------------------------------------------------

need_packages python3-psycopg gzip
[ -e "$("$PG_CONFIG" --pkglibdir)/pg_fanout.so" ] || die "install the extension first: make && make install"

dir=$(scratch_dir demo)
trap clean_up EXIT
trap 'exit 130' INT TERM
run_as_user mkdir "$dir/programs"       # where the workers' user can read them, wherever this checkout is
cp "$here"/worker.* "$dir/programs/"
chmod -R a+rX "$dir/programs"
server_create "$dir"
server_start "$dir"
sql --set lease="$lease" --file "$here/schema.sql" >/dev/null

list_documents >"$dir/documents"
[ -s "$dir/documents" ] || die "no documents that could be read below ${docs[*]}"
batch=$("$here/produce.sh" <"$dir/documents")
message "fanned out $(wc -l <"$dir/documents") documents of ${docs[*]} as batch $batch," \
	"for $python_workers workers in Python and $bash_workers in bash"

for ((i = 1; i <= python_workers; i++)); do start_worker "python-$i" worker.py; done
for ((i = 1; i <= bash_workers; i++)); do start_worker "bash-$i" worker.sh; done

last_done=-1
while true; do
	if look=$(sql --field-separator=' ' --command "
		SELECT succeeded + failed + cancelled, total, round(coalesce(per_second, 0)),
		       coalesce(round(extract(epoch FROM time_left))::text, '?'),
		       (SELECT coalesce(max(leases), 0) FROM fanout.workers), ended
		  FROM fanout.progress($batch)" 2>"$dir/look.err")
	then
		read -r finished total per_second time_left most ended <<<"$look"
		progress_bar "$finished" "$total" "$per_second" "$time_left"
		if [ "$most" -gt "$sampled" ]; then sampled=$most; fi
		if [ "$ended" = t ]; then break; fi
		if [ -z "$killed" ] && [ $((finished * 2)) -ge "$total" ] && kill_a_worker; then
			crash_the_server
		fi
		if [ "$finished" -ne "$last_done" ]; then
			last_done=$finished last_change=$SECONDS
		elif [ $((SECONDS - last_change)) -gt 120 ]; then
			give_up "nothing was finished for two minutes"
		fi
	else
		give_up "the server does not answer: $(<"$dir/look.err")"
	fi
	for name in "${!pid_of[@]}"; do
		kill -0 "${pid_of[$name]}" 2>/dev/null || give_up "worker $name has died"
	done
	sleep 0.1
done
message "all tasks have ended"
[ -n "$killed" ] || message "too few documents: they were done before a worker could be killed half-way"

kill -TERM "${pid_of[@]}"
for name in "${!job_of[@]}"; do
	wait "${job_of[$name]}" || give_up "worker $name ended with status $?"
	unset "pid_of[$name]"
done

sql --command "CREATE TABLE worker_log (ordinal bigint GENERATED ALWAYS AS IDENTITY,
	               worker text, at float8, event text, lease bigint, task bigint)"
cat "$dir"/*-*.log | sql --command "COPY worker_log (worker, at, event, lease, task) FROM STDIN (DELIMITER ' ')"
sql --set batch="$batch" --set killed="$killed" --set crashed_at="$crashed_at" --set sampled="$sampled" \
	--file "$here/report.sql" || give_up "the figures are not as they should be"
echo
echo "search: $query"
found=$(sql --field-separator=$'\n      ' --set query="$query" --file "$here/search.sql" | sed 's/^\//  &/')
echo "${found:-  nothing}"
