#!/bin/bash
# The same worker as worker.py, in nothing but bash and psql.
#
# It connects as libpq does (PGHOST, PGDATABASE, ...) and ends on SIGTERM, once it has finished what it has in hand.
# With WORKER_LOG set it notes in that file when it took and finished what.
set -uo pipefail

worker=$HOSTNAME:$$
max_tasks=10                  # to ask for at once; the queue's worker_concurrency is the limit
heartbeat=1                   # seconds; well below the queue's lease
max_text=200000               # bytes; a tsvector has room for 1 MB
reconnect_for=120             # seconds

to_read=() to_index=()        # leases
declare -A task_of path_of
last_heartbeat=$SECONDS
stopping=
trap 'stopping=yes' TERM
text=$(mktemp)
errors=$(mktemp)
trap 'rm -f "$text" "$errors"' EXIT

log() {   # EVENT LEASE
	echo "$worker $EPOCHREALTIME $1 $2 ${task_of[$2]}" >>"${WORKER_LOG:-/dev/null}"
}

# Runs a script with psql; again, if the connection breaks meanwhile. Whether a commit that was under way went through
# is then unknown, so a script must bear to run twice. Status 1: the lease is lost. Status 3: another error.
sql() {   # SCRIPT [VARIABLE=VALUE ...]
	local script=$1 status variable give_up=$((SECONDS + reconnect_for))
	local variables=()
	shift
	for variable; do
		variables+=(--set "$variable")
	done
	while true; do
		PGOPTIONS='-c client_min_messages=error' psql --no-psqlrc --quiet --tuples-only --no-align \
			--set ON_ERROR_STOP=1 --set VERBOSITY=verbose "${variables[@]}" <<<"$script" 2>"$errors"
		status=$?
		case $status in
			0)	return ;;
			2)	if [ $SECONDS -gt $give_up ]; then
					cat "$errors" >&2
					exit 1
				fi
				sleep 0.2 ;;
			*)	grep -q 'ERROR:  FO001:' "$errors" && return 1
				return 3 ;;
		esac
	done
}

in_hand() {
	echo $((${#to_read[@]} + ${#to_index[@]}))
}

# Leases what there is, waiting for it if there is nothing else to do.
take() {
	local wait=0 lease task read path rows
	[ "$(in_hand)" -gt 0 ] || wait=2s
	rows=$(sql "SELECT lease, task, checkpoints ? 'read', args->>'path'
	              FROM fanout.dequeue('indexing', worker => :'worker', max_tasks => :max_tasks, wait => :'wait')" \
		worker="$worker" max_tasks=$max_tasks wait=$wait) || fatal
	[ -n "$rows" ] || return
	while IFS='|' read -r lease task read path; do
		task_of[$lease]=$task
		path_of[$lease]=$path
		log claim "$lease"
		if [ "$read" = t ]; then      # somebody did that step before us
			to_index+=("$lease")
		else
			to_read+=("$lease")
		fi
	done <<<"$rows"
}

# Extends the leases in hand, and drops the tasks whose leases are lost.
heartbeat() {
	local held leases=("${to_read[@]}" "${to_index[@]}")
	[ $((SECONDS - last_heartbeat)) -ge $heartbeat ] && [ ${#leases[@]} -gt 0 ] || return
	held=$(sql "SELECT fanout.extend(string_to_array(:'leases', ' ')::bigint[])" leases="${leases[*]}") || fatal
	drop_lost to_read
	drop_lost to_index
	last_heartbeat=$SECONDS
}

drop_lost() {   # NAME OF ARRAY
	local -n tasks=$1
	local lease kept=()
	for lease in "${tasks[@]}"; do
		if [[ $'\n'$held$'\n' == *$'\n'$lease$'\n'* ]]; then
			kept+=("$lease")
		else
			log lost "$lease"
		fi
	done
	tasks=("${kept[@]}")
}

# Runs one step of the task; true if the task goes on.
run() {   # STEP LEASE
	local lease=$2
	"$1" "$lease"
	case $? in
		0)	return 0 ;;
		1)	log lost "$lease" ;;
		*)	sql "SELECT fanout.fail(:lease, :'error')" lease="$lease" error="$(<"$errors")" >"$text" || fatal
			log failed "$lease" ;;
	esac
	return 1
}

# Step "read": the text, with size and digest of the file as the checkpoint.
read_file() {   # LEASE
	local path=${path_of[$1]} bytes sha256
	log read "$1"
	bytes=$(stat --format=%s -- "$path" 2>"$errors") || return 2
	sha256=$(sha256sum <"$path" 2>"$errors") || return 2
	# The beginning of the text, unpacked; without what a text in the database cannot hold. UTF-16 has room for nothing
	# but characters, while iconv lets the longer sequences of old pass from UTF-8 to UTF-8.
	gzip --decompress --stdout --force <"$path" 2>"$errors" | head --bytes=$max_text | tr -d '\000' |
		iconv --from-code=UTF-8 --to-code=UTF-16LE -c 2>>"$errors" |
		iconv --from-code=UTF-16LE --to-code=UTF-8 -c >"$text" 2>>"$errors"
	export text
	sql "
		\\set content \`cat \"\$text\"\`
		BEGIN;
		SELECT fanout.checkpoint(:lease, 'read', jsonb_build_object('bytes', :bytes, 'sha256', :'sha256')) AS stored \\gset
		INSERT INTO document_text VALUES (:task, :lease, :'content') ON CONFLICT DO NOTHING;
		COMMIT;" \
		lease="$1" task="${task_of[$1]}" bytes="$bytes" sha256="${sha256%% *}"
}

# Step "index", the last one: the entry and the task's outcome in one transaction. complete() says false if it had gone
# through the first time, when the connection broke.
index_text() {   # LEASE
	log index "$1"
	sql "
		BEGIN;
		INSERT INTO documents
		SELECT :'path', task, :lease, :'worker', to_tsvector('english', content) FROM document_text WHERE task = :task
		RETURNING length(words) AS words \\gset
		SELECT fanout.complete(:lease, jsonb_build_object('path', :'path', 'words', :words)) AS done \\gset
		\\if :done
			COMMIT;
		\\else
			ROLLBACK;
		\\endif" \
		lease="$1" task="${task_of[$1]}" path="${path_of[$1]}" worker="$worker" || return
	log 'done' "$1"
}

fatal() {
	cat "$errors" >&2
	exit 1
}

while [ "$(in_hand)" -gt 0 ] || [ -z "$stopping" ]; do
	if [ "$(in_hand)" -le $((max_tasks / 2)) ] && [ -z "$stopping" ]; then
		take
	fi
	heartbeat
	if [ ${#to_read[@]} -gt 0 ]; then
		lease=${to_read[0]}
		to_read=("${to_read[@]:1}")
		if run read_file "$lease"; then
			to_index+=("$lease")
		fi
	elif [ ${#to_index[@]} -gt 0 ]; then
		lease=${to_index[0]}
		to_index=("${to_index[@]:1}")
		run index_text "$lease"
	fi
done
