#!/usr/bin/python3
"""Puts a private server under stress for some time, and looks whether all that is promised has held.

    chaos.py SEED SECONDS DIRECTORY

Connects as libpq does, to a server in the directory with the extension in an empty database. Prints a line "ok" or
"not ok" for each thing it looks at.
"""
import os
import random
import signal
import subprocess
import sys
import time

import psycopg

from actors import NOW, QUEUES, RATES
from check import Logs

HERE = os.path.dirname(os.path.abspath(__file__))
WORKERS, ENQUEUERS = 6, 1
FIRST_STOP = 4.0                    # seconds
BETWEEN_STOPS = (3.5, 7.0)          # longer than the windows of rates: several crashes in one forget more, see README
PATIENCE = 60.0


class Chaos:
    def __init__(self, seed, seconds, directory):
        self.random = random.Random(seed)
        self.seconds, self.directory = seconds, directory
        self.actors = {}
        self.made = 0
        self.stops = []             # times between which the server went away and came back, in microseconds
        self.counts = {"terminated": 0, "workers killed": 0, "fast": 0, "immediate": 0, "backend killed": 0}
        self.failed = 0

    def look(self, what, truth, detail=""):
        self.failed += not truth
        print(f"{'ok' if truth else 'not ok'} - {what}{'' if truth else f': {detail}'}", flush=True)

    # -- the server

    def connect(self):
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                connection = psycopg.connect(autocommit=True, connect_timeout=5)
                while connection.execute("SELECT value FROM fanout.status() WHERE item = 'state'").fetchone()[0] != "ready":
                    time.sleep(0.02)
                return connection
            except psycopg.Error:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)

    def query(self, query, *parameters):
        with self.connect() as connection:
            return connection.execute(query, parameters).fetchall()

    def pg_ctl(self, *arguments):
        subprocess.run([os.environ["REPO_DIR"] + "/test/harness/run_as", os.environ["PG_BINDIR"] + "/pg_ctl",
                        f"--pgdata={self.directory}/data", f"--log={self.directory}/server.log", "--wait", "--timeout=120",
                        *arguments], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def stop_server(self, how):
        self.counts[how] += 1
        begin = self.query(NOW)[0][0]
        if how == "backend killed":
            pid = self.query("SELECT pid FROM pg_stat_activity WHERE datname = current_database() ORDER BY random() LIMIT 1")[0][0]
            os.kill(pid, signal.SIGKILL)    # the postmaster begins anew
            time.sleep(0.1)
        else:
            self.pg_ctl("stop", f"--mode={how}")
            self.pg_ctl("start")
        self.stops.append((begin, self.query(NOW)[0][0]))

    def terminate_one(self):
        self.counts["terminated"] += 1
        try:
            self.query("SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
                       " WHERE pid <> pg_backend_pid() AND (datname = current_database() OR backend_type ~ 'fanout')"
                       " AND backend_type ~ 'client|fanout' ORDER BY random() LIMIT 1) p")
        except psycopg.Error:
            pass

    # -- the actors

    def start(self, kind):
        self.made += 1
        name = f"{kind}{self.made}"
        self.actors[name] = kind, subprocess.Popen(
            [sys.executable, f"{HERE}/actors.py", kind, name, str(self.random.getrandbits(32)), f"{self.directory}/logs/{name}.log"])

    def kill_worker(self):
        self.counts["workers killed"] += 1
        name = self.random.choice([name for name, (kind, _) in self.actors.items() if kind == "worker"])
        self.actors.pop(name)[1].kill()
        self.start("worker")

    def replace_dead(self):
        for name, (kind, process) in [*self.actors.items()]:
            if process.poll() is not None:
                del self.actors[name]
                self.start(kind)

    def stop_actors(self):
        for _, process in self.actors.values():
            process.terminate()
        for _, process in self.actors.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        self.actors = {}

    # -- the story

    def set_up(self):
        with self.connect() as connection:
            for queue, settings in QUEUES.items():
                names = "".join(f", {name} => %s" for name in settings)
                connection.execute(f"SELECT fanout.create_queue(%s, lease => '1500 ms', max_attempts => 4{names})",
                                   [queue, *settings.values()])
            for queue, limits in RATES.items():
                for period, units in limits.items():
                    connection.execute("SELECT fanout.set_rate_limit(%s, %s, %s * interval '1 us')", (queue, units, period))

    def run(self):
        for kind, count in (("enqueue", ENQUEUERS), ("worker", WORKERS), ("meddle", 1)):
            for _ in range(count):
                self.start(kind)
        begin = time.monotonic()
        next_stop = FIRST_STOP
        while (now := time.monotonic() - begin) < self.seconds:
            time.sleep(0.05 + self.random.random() * 0.3)
            if now > next_stop:
                self.stop_server(self.random.choice(["fast", "immediate", "backend killed"]))
                next_stop = time.monotonic() - begin + self.random.uniform(*BETWEEN_STOPS)
            elif self.random.random() < 0.25:
                self.random.choice([self.terminate_one, self.terminate_one, self.kill_worker])()
            self.replace_dead()
        self.stop_actors()

    def snapshot(self):
        """What is shown of everything that has not ended; what time changes of it left out."""
        return (self.query("SELECT task, queue, CASE state WHEN 'scheduled' THEN 'ready' ELSE state END, CASE WHEN state = 'running' THEN attempt END, lease"
                           " FROM fanout.tasks WHERE state IN ('scheduled', 'ready', 'running') ORDER BY task"),
                self.query("SELECT lease, task, queue, worker, attempt, claimed_at FROM fanout.leases ORDER BY lease"),
                self.query("SELECT queue, ready + scheduled, running FROM fanout.queues ORDER BY 1"),
                self.query("SELECT queue, partition_key, running, concurrency, weight, paused FROM fanout.partitions"
                           " WHERE running > 0 OR weight <> 1 OR paused ORDER BY 1, 2"))

    def look_at_memory(self):
        """While nobody works: do the views agree with the tables, and is memory what a rebuild makes of these?"""
        self.query("SELECT fanout.extend(ARRAY(SELECT lease FROM fanout.leases), '1 hour')")
        self.query("SELECT fanout.resume_queue(queue) FROM fanout.queues")
        self.look("the views agree with the tables", not (wrong := self.query(
            "SELECT q.queue, q.ready + q.scheduled + q.running, u.n FROM fanout.queues q JOIN fanout.queue c ON c.name = q.queue,"
            " LATERAL (SELECT count(*) AS n FROM fanout.task t WHERE t.queue = c.id AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)) u"
            " WHERE q.ready + q.scheduled + q.running <> u.n OR q.running <> (SELECT count(*) FROM fanout.leases l WHERE l.queue = q.queue)")), wrong)
        before = self.snapshot()
        self.look_for_violations()
        self.pg_ctl("stop", "--mode=fast")
        self.pg_ctl("start")
        after = self.snapshot()
        for what, one, other in zip(("tasks", "leases", "queues", "partitions"), before, after):
            self.look(f"a rebuild makes the same {what} ({len(one)})", one == other,
                      f"before {[row for row in one if row not in other][:3]}, after {[row for row in other if row not in one][:3]}")

    def drain(self):
        """Work off all that is left."""
        self.query("SELECT fanout.alter_queue(queue, unset => '{concurrency,worker_concurrency,partition_concurrency,rate_limit,partition_rate_limit}') FROM fanout.queues")
        self.query("SELECT fanout.resume_partition(queue, partition_key) FROM fanout.partitions WHERE partition_key IS NOT NULL")
        self.query("SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases))")
        give_up = time.monotonic() + PATIENCE
        with self.connect() as connection:
            while connection.execute("SELECT sum(ready + scheduled + running) FROM fanout.queues").fetchone()[0] > 0 and time.monotonic() < give_up:
                leases = [row[0] for row in connection.execute("SELECT lease FROM fanout.dequeue(%s::text[], 'drain', max_tasks => 50, wait => '200 ms')", ([*QUEUES],))]
                connection.execute("SELECT fanout.complete(%s::bigint[])", (leases,))

    def look_at_end(self, logs):
        for what, query in (
                ("all that was enqueued has ended, and once", "SELECT t.id FROM fanout.task t LEFT JOIN fanout.outcome o ON o.task = t.id GROUP BY t.id HAVING count(o.task) <> 1"),
                ("no permit is left over", "SELECT queue, running FROM fanout.queues WHERE running <> 0 OR ready <> 0 OR scheduled <> 0"),
                ("nor one of a partition", "SELECT queue, partition_key, running FROM fanout.partitions WHERE running <> 0 OR ready <> 0"),
                ("nor a lease", "SELECT lease, task FROM fanout.leases"),
                ("nobody waits", "SELECT queue, waiting_workers FROM fanout.queues WHERE waiting_workers <> 0")):
            self.look(what, not (wrong := self.query(query + " LIMIT 5")), wrong)
        there = {row[0] for row in self.query("SELECT id FROM fanout.task")}
        self.look("no task is lost", not (lost := logs.enqueued - there), sorted(lost)[:5])
        self.look("none is there that was rolled back", not (extra := logs.never & there), sorted(extra)[:5])
        succeeded = dict(self.query("SELECT task, lease FROM fanout.outcome WHERE status = 's'"))
        wrong = [(task, leases) for task, leases in logs.completed.items() if succeeded.get(task) not in leases]
        self.look("what a worker was told is completed is so, by its lease", not wrong, wrong[:5])

    def look_for_violations(self):
        kinds = self.query("SELECT * FROM fanout._violations()")
        self.look("the build is a checked one", len(kinds) > 0)
        self.look("no violations inside", not (wrong := [kind for kind in kinds if kind[2]]), wrong)

    def look_at_log(self):
        wanted = ("pg_fanout violation", "PANIC:", "TRAP:", "terminated by signal 11", "terminated by signal 6", "duplicate key")
        with open(f"{self.directory}/server.log", errors="replace") as file:
            lines = [line.strip() for line in file if any(word in line for word in wanted)]
        self.look("nothing bad in the server's log", not lines, lines[:3])


def main():
    seed, seconds, directory = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    os.makedirs(f"{directory}/logs")
    chaos = Chaos(seed, seconds, directory)
    chaos.set_up()
    try:
        chaos.run()
    finally:
        chaos.stop_actors()
    chaos.look_at_memory()
    logs = Logs(f"{directory}/logs", sorted(chaos.stops))
    used = logs.check()
    chaos.look("there was something to look at", len(logs.leases) > 2 * chaos.seconds, f"{len(logs.leases)} claims in {chaos.seconds} s")
    chaos.look("limits, rates and leases, by what the workers wrote down", not logs.wrong, f"{len(logs.wrong)}: {logs.wrong[:5]}")
    chaos.drain()
    chaos.look_at_end(logs)
    chaos.look_for_violations()
    chaos.look_at_log()
    chaos.look("no error but those of lost connections", not logs.errors, logs.errors.most_common(5))
    print(f"seed {seed}: {len(logs.leases)} claims, {len(logs.enqueued)} tasks, {sum(map(len, logs.completed.values()))} completed; {chaos.counts}; most used {used}")
    sys.exit(chaos.failed > 0)


if __name__ == "__main__":
    main()
