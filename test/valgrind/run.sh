#!/bin/bash
# The main scenarios, which are regress and isolation tests, in a server that runs under valgrind: a report with a frame of
# pg_fanout.so is a failure. What the server itself does is not looked at: a server of packages has not told valgrind about
# its memory contexts, so that an error is seen where memory comes from or goes back to malloc, and the checks of a server
# with assertions see more (PG_CONFIG).
#
#     REGRESS="NAME..." ISOLATION="NAME..."    other tests
#     KEEP=DIRECTORY                           copy the reports and what tests left to it
#
# Everything is some thirty times slower, so an output that differs is shown, and does not count.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
. "$here/../harness/lib.sh"

regress=(${REGRESS:-queues enqueue batches workers checkpoints results cancel_retry changes limits rates partitions keys segments retention views})
isolation=(${ISOLATION:-claims lease_ends changes keys visibility})
need_packages valgrind
tests=$(dirname "$("$PG_CONFIG" --pgxs)")/../test
dir=$(scratch_dir valgrind)
trap 'server_remove "$dir"' EXIT
trap 'exit 130' INT TERM
use_checked_build "$dir/checked"

# Children are traced as well. The pools are large, as a checked build counts all of a small one at each step; the postmaster finds its files by the name of the program
run_as_user mkdir "$dir/reports" "$dir/repo"
printf '#!/bin/sh\nexec valgrind --quiet --trace-children=yes --leak-check=no --error-limit=no --num-callers=30 --fullpath-after= --suppressions=%q --log-file=%q %q "$@"\n' \
	"$dir/repo/test/valgrind/server.supp" "$dir/reports/%p" "$PG_BINDIR/postgres" | run_as_user tee "$dir/postgres" >/dev/null
run_as_user chmod +x "$dir/postgres"
tar -C "$REPO_DIR" --exclude=./.git --exclude=./tmp_check --exclude='*.o' -cf - . | run_as_user tar -C "$dir/repo" -xf -
run_as_user ln -s "$dir/repo/test/isolation" "$dir/repo/test/isolation/specs"

server_create "$dir" "fsync = off" "autovacuum = off" "max_prepared_transactions = 5"
run_as_user "$PG_BINDIR/pg_ctl" -p "$dir/postgres" --pgdata="$dir/data" --log="$dir/server.log" --timeout=300 --wait start </dev/null >/dev/null || {
	tail -n 20 "$dir/server.log" >&2
	die "the server did not start under valgrind"
}
server_env "$dir"

run() {   # PROGRAM DIRECTORY DATABASE TEST...
	local program=$1 input=$2 database=$3
	shift 3
	psql --no-psqlrc --quiet --command "CREATE DATABASE $database"
	run_as_user mkdir "$dir/$database"
	run_as_user env -C "$dir/repo" LANG=C.UTF-8 PGTZ=PST8PDT PGDATESTYLE='Postgres, MDY' "$program" --use-existing --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" --dbname="$database" \
		--bindir="$PG_BINDIR" --inputdir="$input" --outputdir="$dir/$database" "$@" || echo "$database: an output differs, see above"
}

run "$tests/regress/pg_regress" "$dir/repo" contrib_regression "${regress[@]}"
run "$tests/isolation/pg_isolation_regress" "$dir/repo/test/isolation" isolation_regression "${isolation[@]}"
run_as_user "$PG_BINDIR/pg_ctl" --pgdata="$dir/data" --mode=fast --timeout=300 --wait stop >/dev/null

# A report is a paragraph
found=$(awk 'BEGIN { RS = "==[0-9]+== *\n"; ORS = "\n" } /pg_fanout\.so\)|\/source\/src\/[a-z_]*\.c:/ && /(at|by) 0x/' "$dir"/reports/* | sort | uniq -c | head -n 200)
crashes=$(grep -cE 'terminated by signal|PANIC:|TRAP:|pg_fanout violation' "$dir/server.log" || true)
[ -z "${KEEP:-}" ] || { mkdir -p "$KEEP"; cp -r "$dir/reports" "$dir/server.log" "$dir/contrib_regression" "$dir/isolation_regression" "$KEEP"; }
if [ -n "$found" ] || [ "$crashes" != 0 ]; then
	printf '%s\n' "$found"
	echo "0 passed, 1 failed"
	exit 1
fi
echo "$(find "$dir/reports" -type f | wc -l) processes, no report of pg_fanout.so"
echo "1 passed, 0 failed"
