#!/usr/bin/env bash
# Runs the queries in a private server: each returns rows, and the columns and types that its metrics say.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../../test/harness/lib.sh"

dir=$(scratch_dir monitoring)
trap 'server_remove "$dir"' EXIT
server_create "$dir" "fsync = off" >/dev/null
server_start "$dir" >/dev/null
psql --quiet --no-psqlrc <<'EOS' >/dev/null
CREATE EXTENSION pg_fanout;
SELECT fanout.create_queue('jobs', concurrency => 2);
SELECT fanout.fan_out('jobs', 'x', '{1,2,3}');
SELECT FROM fanout.dequeue('jobs', 'w');
EOS

"$PYTHON" - "$here/queries.yaml" <<'EOP'
import re
import subprocess
import sys

NUMBERS = {"bigint", "integer", "double precision", "numeric"}
passed = failed = 0


def report(good, what, detail=""):
    global passed, failed
    passed, failed = passed + good, failed + (not good)
    print(f"{'ok' if good else 'not ok'} {passed + failed} - {what} {detail if not good else ''}")


def psql(sql):
    done = subprocess.run(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1"], input=sql, text=True, capture_output=True)
    return done.stdout.splitlines() if done.returncode == 0 else [done.stderr]


# as much of YAML as the file uses
for part in re.split(r"(?m)^(?=\w+:\n)", open(sys.argv[1]).read())[1:]:
    name = part.split(":")[0]
    query = re.search(r"  query: \|\n((?:    .*\n)+)", part).group(1)
    metrics = re.findall(r'    - (\w+):\n        usage: "(\w+)"\n        description: ".+"\n', part)
    columns = [line.split("|") for line in psql(query + " \\gdesc\n")]
    report([c[0] for c in columns] == [m[0] for m in metrics], f"{name}: its columns are its metrics", f"{columns} {metrics}")
    report(all(len(c) == 2 and ((c[1] in NUMBERS) if usage != "LABEL" else c[1] in ("text", "name"))
               for c, (_, usage) in zip(columns, metrics)), f"{name}: labels are text, all else numbers", columns)
    report(len(psql(query)) > 0 and "ERROR" not in psql(query)[0], f"{name}: it returns rows", psql(query))
rows = dict(line.split("|", 1) for line in psql("SELECT pool, used FROM fanout.pools; SELECT queue, ready || ' ' || running FROM fanout.queues"))
report(rows["tasks"] == "3" and rows["leases"] == "1" and rows["jobs"] == "2 1", "the numbers are those of the server", rows)
print(f"{passed} passed, {failed} failed")
sys.exit(failed > 0)
EOP
