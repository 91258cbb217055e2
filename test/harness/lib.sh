# shellcheck shell=bash
# Functions shared by the tests, the examples and the benchmark.
#
#     set -euo pipefail
#     . "$(dirname "$0")/../../test/harness/lib.sh"      # as far up as it takes
#
#     dir=$(scratch_dir demo)
#     trap 'server_remove "$dir"' EXIT
#     server_create "$dir" "work_mem = '64MB'"
#     server_start "$dir"
#     psql -c 'CREATE EXTENSION pg_fanout'               # PGHOST and the rest are set
#     server_stop "$dir" immediate
#     server_start "$dir"
#
# need_packages PACKAGE...      install with apt those that are missing; asks nothing
# as_root CMD...                run CMD as root, through sudo when we are not root
# run_as_user CMD...            run CMD as the user that owns private servers: postgres when we are root (initdb
#                               refuses root), else ourselves. CMD starts in /tmp: give it absolute paths
# scratch_dir NAME              make a directory of that user in /tmp, print its name
# server_create DIR [LINE...]   initdb in DIR/data and preload pg_fanout; LINEs are added to postgresql.conf, where
#                               the last one of a name wins. Only a unix socket in DIR, trusted, superuser postgres
# server_start DIR              start it, wait until it takes connections, and do server_env; its log is DIR/server.log
# server_env DIR                export PGHOST, PGPORT, PGUSER and PGDATABASE for it
# server_stop DIR [MODE]        stop it: fast (the default), smart or immediate (a crash)
# server_running DIR            true while it runs
# server_pid DIR                print the postmaster's pid
# server_remove DIR             stop it if it runs, and delete DIR; for an EXIT trap
# use_checked_build DIR         build with CHECKED=1, install into a copy of PostgreSQL in DIR, and use that from now on;
#                               with CHECKED_BUILD=DIR in the environment use what is there already
# checked_server DIR [LINE...]  use a checked build, and start a server of it in DIR/server that has the extension
# count_lines FILE LAST AGAIN KEPT...
#                               how a test went whose lines "ok ..." and "not ok ..." are in FILE, which ends early unless
#                               one matches LAST; if not well, how to run it AGAIN, and copy what is KEPT to the directory
#                               KEEP. True if it went well
#
# The library must be installed first (make install). Clients may run as any user who can enter DIR: root, and the
# user of run_as_user. Nothing here stops or uses a server that it did not create.
#
# Sets: REPO_DIR (the checkout), PG_CONFIG, PG_BINDIR (first in PATH), PG_MAJOR (whose Debian packages are asked for: the version
# in PG_CONFIG's path, 15 if it has none), PYTHON (the one that has Debian's psycopg).

REPO_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
PG_BINDIR=$(dirname "$PG_CONFIG")
PG_MAJOR=15
[[ ! $PG_CONFIG =~ /postgresql/([0-9]+)/ ]] || PG_MAJOR=${BASH_REMATCH[1]}
PYTHON=${PYTHON:-/usr/bin/python3}
PATH=$PG_BINDIR:$PATH
export REPO_DIR PG_CONFIG PG_BINDIR PG_MAJOR PYTHON PATH

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	elif command -v sudo >/dev/null; then
		sudo "$@"
	else
		die "this needs root, and there is no sudo: $*"
	fi
}

run_as_user() {
	if [ "$(id -u)" = 0 ]; then
		(cd /tmp && exec setpriv --reuid=postgres --regid=postgres --init-groups \
			env HOME=/tmp USER=postgres LOGNAME=postgres "$@")
	else
		(cd /tmp && exec "$@")
	fi
}

scratch_dir() {
	run_as_user mktemp -d "/tmp/pg_fanout.$1.XXXXXX"
}

is_installed() {
	[ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# A copy of PostgreSQL finds its files by their place relative to its programs.
use_checked_build() {
	local dir=${CHECKED_BUILD:-$1}
	local part

	[[ $PG_CONFIG != "$dir"/* ]] || return 0	# in use already
	if [ -z "${CHECKED_BUILD:-}" ]; then
		say "building with CHECKED=1"
		run_as_user mkdir -p "$dir/source"
		for part in bindir pkglibdir sharedir; do
			part=$("$PG_CONFIG" "--$part")
			run_as_user mkdir -p "$dir/root$part"
			tar -C "$part" --exclude=./bitcode --exclude=./man -cf - . | run_as_user tar -C "$dir/root$part" -xf -
		done
		tar -C "$REPO_DIR" --exclude=./.git --exclude=./tmp_check --exclude='*.o' --exclude='*.so' -cf - . |
			run_as_user tar -C "$dir/source" -xf -
		run_as_user make --no-print-directory --silent -C "$dir/source" -j"$(nproc)" PG_CONFIG="$PG_CONFIG" CHECKED=1 all \
			>"$dir/make.log" 2>&1 || { tail -n 20 "$dir/make.log" >&2; die "the checked build failed"; }
		run_as_user make --no-print-directory --silent -C "$dir/source" PG_CONFIG="$PG_CONFIG" CHECKED=1 DESTDIR="$dir/root" install \
			>>"$dir/make.log" 2>&1 || { tail -n 20 "$dir/make.log" >&2; die "the checked build was not installed"; }
	fi
	PG_BINDIR=$dir/root$("$PG_CONFIG" --bindir)
	PG_CONFIG=$PG_BINDIR/pg_config
	PATH=$PG_BINDIR:$PATH
}

need_packages() {
	local package
	local missing=()

	for package in "$@"; do
		is_installed "$package" || missing+=("$package")
	done
	if [ ${#missing[@]} -gt 0 ]; then
		say "installing ${missing[*]}"
		as_root "$REPO_DIR/test/harness/apt_install" "${missing[@]}"
	fi
}

server_create() {
	local dir=$1
	shift

	run_as_user test -w "$dir" || die "\"$dir\" is not a directory of the user that runs the server: use scratch_dir"
	run_as_user "$PG_BINDIR/initdb" --pgdata="$dir/data" --username=postgres --auth=trust \
		--encoding=UTF8 --no-locale --no-sync >"$dir/initdb.log" 2>&1 || {
		cat "$dir/initdb.log" >&2
		die "initdb failed"
	}
	printf '%s\n' \
		"listen_addresses = ''" \
		"unix_socket_directories = '$dir'" \
		"port = 5432" \
		"shared_preload_libraries = 'pg_fanout'" \
		"$@" | run_as_user tee -a "$dir/data/postgresql.conf" >/dev/null
}

server_start() {
	local dir=$1

	run_as_user "$PG_BINDIR/pg_ctl" --pgdata="$dir/data" --log="$dir/server.log" --timeout=120 --wait start \
		</dev/null >/dev/null || {
		tail -n 20 "$dir/server.log" >&2
		die "the private server in $dir did not start"
	}
	server_env "$dir"
}

server_env() {
	unset PGSERVICE PGSERVICEFILE PGPASSWORD PGPASSFILE PGOPTIONS PGHOSTADDR PGDATA PGSSLMODE PGTZ
	export PGHOST=$1 PGPORT=5432 PGUSER=postgres PGDATABASE=postgres
}

server_stop() {
	run_as_user "$PG_BINDIR/pg_ctl" --pgdata="$1/data" --mode="${2:-fast}" --timeout=120 --wait stop >/dev/null
}

server_running() {
	run_as_user "$PG_BINDIR/pg_ctl" --pgdata="$1/data" status >/dev/null 2>&1
}

server_pid() {
	run_as_user head -n 1 "$1/data/postmaster.pid"
}

server_remove() {
	[ -d "$1" ] || return 0
	if server_running "$1"; then
		server_stop "$1" immediate || say "the private server in $1 did not stop"
	fi
	rm -rf -- "${1:?}"
}

checked_server() {
	local dir=$1
	shift

	use_checked_build "$dir/checked"
	run_as_user mkdir "$dir/server"
	server_create "$dir/server" "fsync = off" "log_line_prefix = '%m [%p] %b %e '" "$@"
	server_start "$dir/server"
	psql --no-psqlrc --quiet --command 'CREATE EXTENSION pg_fanout'
}

count_lines() {
	local file=$1 last=$2 again=$3
	local passed failed
	shift 3

	grep -q "$last" "$file" || echo "not ok - it came to its end" >>"$file"
	passed=$(grep -c '^ok ' "$file") || true
	failed=$(grep -c '^not ok ' "$file") || true
	if [ "$failed" != 0 ]; then
		echo "$again"
		[ -z "${KEEP:-}" ] || { mkdir -p "$KEEP"; cp -r "$@" "$KEEP"; }
	fi
	echo "$passed passed, $failed failed"
	[ "$failed" = 0 ]
}
