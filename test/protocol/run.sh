#!/usr/bin/env bash
# make model: check the model of a task's life (lease.pml) in all interleavings, with spin.
#
#     FULL=1       larger runs as well: minutes, and some GB of memory
#
# Each run has a part of what may happen, since the product of all is too much; each pair of these is in one of the
# runs. Then each error that is planted must be found.
set -euo pipefail
# shellcheck source=test/harness/lib.sh
. "$(dirname "$0")/../harness/lib.sh"

need_packages spin gcc libc6-dev
dir=$(scratch_dir model)
trap 'rm -rf -- "$dir"' EXIT
cp "$(dirname "$0")/lease.pml" "$dir"
cd "$dir"
passed=0
failed=0

# check NAME FOUND DEFINE...: does the checker find an error (1) or none (0)?
check() {
	local name=$1 found=$2 errors
	shift 2

	rm -f pan
	spin -a "$@" lease.pml >spin.out || { cat spin.out; exit 1; }
	gcc -O2 -w -DSAFETY -DCOLLAPSE "$@" -o pan pan.c
	./pan -m1000000 >pan.out
	errors=$(sed -n 's/.*errors: \([0-9]*\)$/\1/p' pan.out)
	if [ "$errors" = "$found" ] && ! grep -q 'Search not completed' <<<"$(if [ "$found" = 0 ]; then cat pan.out; fi)"; then
		passed=$((passed + 1))
		echo "ok   $name: $(sed -n 's/^ *\([0-9]*\) states, stored.*/\1/p' pan.out) states, $errors errors"
	else
		failed=$((failed + 1))
		echo "FAIL $name"
		cat pan.out
		[ ! -e lease.pml.trail ] || spin -t -p "$@" lease.pml | tail -n 100
	fi
}

check "expiries, rollbacks, lost leases" 0 -DRELEASES=0 -DCOPIES=0
check "expiries, releases, lost leases" 0 -DROLLBACKS=0 -DCOPIES=0
check "rollbacks, releases, copied leases" 0 -DEXPIRIES=0 -DFAILURES=0
check "expiries, copied and lost leases" 0 -DRELEASES=0 -DROLLBACKS=0
if [ -n "${FULL:-}" ]; then
	check "expiries, rollbacks, releases, lost leases" 0 -DCOPIES=0
	check "expiries, rollbacks, releases, copied leases" 0 -DFAILURES=0
fi
check "planted: a pinned lease expires" 1 -DBUG=1
check "planted: memory changes before the commit" 1 -DBUG=2
check "planted: numbers go on from the journal after a crash" 1 -DBUG=3 -DRELEASES=0 -DCOPIES=0
check "planted: an expiry keeps the permit" 1 -DBUG=4
check "planted: two may end a lease" 1 -DBUG=5
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
