#!/usr/bin/python3
"""Puts a private server through chaos for some time, and looks whether all that is promised has held.

    chaos.py SEED SECONDS DIRECTORY

The server's data are in DIRECTORY/data, with the extension in an empty database. Prints a line "ok" or "not ok" for each
thing it looks at. If the server has a short retention, what is retired is looked at as well.
"""
import collections
import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import psycopg

from actors import DIES, DROPPED, GUEST, NOW, ORDERED, QUEUES, RATES, RETAINED, THROTTLED
from check import Logs
from servers import PATIENCE, Server

HERE = os.path.dirname(os.path.abspath(__file__))
ACTORS = {"enqueue": 2, "worker": 6, "meddle": 1, "watch": 1, "guest": 1}
FIRST_STOP = 3.0                    # seconds
BETWEEN_STOPS = (2.5, 4.5)          # longer than the windows of rates: several crashes in one forget more, see README

FAILURE = re.compile(r"\] pg_fanout (?:keeper|launcher) (\w{5}) (?:ERROR|FATAL|PANIC):")
PROVOKED = ("57P01", "57P02", "57014", "P0001", "53100")    # terminated, cancelled, and the errors that are planted

# What is removed is copied in the transaction that does so; "every" has that and what is there. A task is gone once
# its segment has given it up, or it is deleted: that was decided between the begin of a transaction and a time.
ARCHIVE = """
CREATE SCHEMA archive;
CREATE SCHEMA every;
CREATE TABLE archive.gone (task bigint PRIMARY KEY, since timestamptz, at timestamptz);
CREATE FUNCTION archive.keep() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    kind text;
BEGIN
    PERFORM archive.give_up(TG_ARGV[0]);
    FOREACH kind IN ARRAY '{task,attempt,checkpoint,outcome}'::text[] LOOP
        EXECUTE format('INSERT INTO archive.%1$s SELECT * FROM fanout.%1$s_%2$s', kind, TG_ARGV[0]);
    END LOOP;
    RETURN NULL;
END $$;
CREATE FUNCTION archive.give_up(slot text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('INSERT INTO archive.gone SELECT id, now(), clock_timestamp() FROM fanout.task_%1$s ON CONFLICT DO NOTHING', slot);
END $$;
CREATE FUNCTION archive.keep_emptied() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM archive.give_up(NEW.slot::text);
    RETURN NULL;
END $$;
CREATE TRIGGER keep AFTER UPDATE ON fanout.segment FOR EACH ROW WHEN (NEW.first_task IS NULL) EXECUTE FUNCTION archive.keep_emptied();
-- rows of tasks that are there were moved, or tasks have another life
CREATE FUNCTION archive.keep_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('INSERT INTO archive.%1$s SELECT r.* FROM removed r WHERE NOT EXISTS (SELECT FROM fanout.task t WHERE t.id = r.%2$s)', TG_ARGV[0], TG_ARGV[1]);
    IF TG_ARGV[0] = 'task' THEN
        INSERT INTO archive.gone SELECT r.id, now(), clock_timestamp() FROM removed r WHERE NOT EXISTS (SELECT FROM fanout.task t WHERE t.id = r.id);
    END IF;
    RETURN NULL;
END $$;
DO $$
DECLARE
    kind text;
BEGIN
    FOREACH kind IN ARRAY '{task,attempt,checkpoint,outcome}'::text[] LOOP
        EXECUTE format('CREATE TABLE archive.%1$s AS SELECT * FROM fanout.%1$s', kind);
        EXECUTE format('CREATE VIEW every.%1$s AS SELECT * FROM fanout.%1$s UNION ALL SELECT * FROM archive.%1$s', kind);
    END LOOP;
    FOR slot IN 1 .. 4 LOOP
        FOREACH kind IN ARRAY '{task,attempt,checkpoint,outcome}'::text[] LOOP
            EXECUTE format('CREATE TRIGGER keep_deleted AFTER DELETE ON fanout.%1$s_%2$s REFERENCING OLD TABLE AS removed FOR EACH STATEMENT'
                           ' EXECUTE FUNCTION archive.keep_deleted(%1$s, %3$s)', kind, slot, CASE kind WHEN 'task' THEN 'id' ELSE 'task' END);
        END LOOP;
        EXECUTE format('CREATE TRIGGER keep BEFORE TRUNCATE ON fanout.task_%1$s FOR EACH STATEMENT EXECUTE FUNCTION archive.keep(%1$s)', slot);
    END LOOP;
END $$;
"""


class Chaos:
    def __init__(self, seed, seconds, directory):
        self.random = random.Random(seed)
        self.seconds, self.directory = seconds, directory
        self.server = Server(directory, self.random)
        self.query = self.server.query
        self.actors = {}
        self.made = 0
        self.counts = {"terminated": 0, "cancelled": 0, "errors planted": 0, "workers killed": 0, "pauses": 0}
        self.failed = 0

    def look(self, what, truth, detail=""):
        self.failed += not truth
        print(f"{'ok' if truth else 'not ok'} - {what}{'' if truth else f': {detail}'}", flush=True)

    def look_for_rows(self, what, query):
        """There should be none, or soon be none: the keeper may have something to do."""
        give_up = time.monotonic() + PATIENCE
        while (wrong := self.query(query + " LIMIT 5")) and time.monotonic() < give_up:
            time.sleep(0.2)
        self.look(what, not wrong, wrong)

    # -- the actors

    def start(self, kind):
        self.made += 1
        name = f"{kind}{self.made}"
        self.actors[name] = kind, subprocess.Popen(
            [sys.executable, f"{HERE}/actors.py", kind, name, str(self.random.getrandbits(32)), f"{self.directory}/logs/{name}.log"])

    def kill_worker(self):
        name = self.random.choice([name for name, (kind, _) in self.actors.items() if kind == "worker"])
        self.actors.pop(name)[1].kill()
        self.start("worker")

    def replace_dead(self):
        for name, (kind, process) in [*self.actors.items()]:
            if process.poll() is not None:
                if process.returncode != DIES:
                    self.look("actors end only when they are to", False, f"{name}: {process.returncode}")
                del self.actors[name]
                self.start(kind)

    def stop_actors(self):
        for _, process in self.actors.values():
            process.terminate()
        for name, (_, process) in self.actors.items():
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                self.look("actors end when they are told to", False, name)
        self.actors = {}

    def signal_one(self, function):
        """Also the keeper and the launcher, which fail then."""
        try:
            self.query(f"SELECT {function}(pid) FROM (SELECT pid FROM pg_stat_activity"
                       " WHERE pid <> pg_backend_pid() AND (datname = current_database() OR backend_type ~ 'fanout')"
                       " AND backend_type ~ 'client|fanout' ORDER BY random() LIMIT 1) p")
        except psycopg.Error:
            pass

    def hold_up(self):
        """Some get no time for a moment, as on a machine that is busy, whatever they hold or are about to do."""
        try:
            pids = [pid for pid, in self.query("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                                               " ORDER BY backend_type ~ 'keeper' AND random() < 0.3 DESC, random() LIMIT 3")]
        except psycopg.Error:
            return
        self.send(pids, signal.SIGSTOP)
        time.sleep(self.random.choice([0.01, 0.03, 0.1, 0.3]))
        self.send(pids, signal.SIGCONT)

    def send(self, pids, number):
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def disturb(self):
        what = self.random.choice([*self.counts])
        self.counts[what] += 1
        if what == "terminated":
            self.signal_one("pg_terminate_backend")
        elif what == "cancelled":
            self.signal_one("pg_cancel_backend")
        elif what == "errors planted":
            self.server.plant_error()
        elif what == "pauses":
            self.hold_up()
        else:
            self.kill_worker()

    # -- the story

    def set_up(self):
        self.query(ARCHIVE)
        self.query(f"CREATE ROLE {GUEST} LOGIN")
        self.query(f"SELECT fanout.grant_usage('{GUEST}')")
        seconds = dict(self.query("SELECT name, setting::int FROM pg_settings WHERE name ~ '^pg_fanout' AND vartype = 'integer'"))
        self.retention = seconds["pg_fanout.retention"] * 1_000_000 if seconds["pg_fanout.retention"] >= 0 else float("inf")
        self.keep_failed = seconds["pg_fanout.keep_failed"] * 1_000_000
        for queue, settings in QUEUES.items():
            names = "".join(f", {name} => %s" for name in settings)
            self.query(f"SELECT fanout.create_queue(%s, lease => '1500 ms', max_attempts => 4{names})", queue, *settings.values())
        for queue, limits in RATES.items():
            for period, units in limits.items():
                self.query("SELECT fanout.set_rate_limit(%s, %s, %s * interval '1 us')", queue, units, period)

    def run(self):
        for kind, count in ACTORS.items():
            for _ in range(count):
                self.start(kind)
        begin = time.monotonic()
        next_stop = FIRST_STOP
        while (now := time.monotonic() - begin) < self.seconds:
            time.sleep(0.05 + self.random.random() * 0.3)
            if now > next_stop:
                self.server.stop_somehow()
                next_stop = time.monotonic() - begin + self.random.uniform(*BETWEEN_STOPS)
            elif self.random.random() < 0.4:
                self.disturb()
            self.replace_dead()
        self.stop_actors()
        self.server.clear_points()
        self.query("SELECT fanout.drop_queue(queue, force => true) FROM fanout.queues WHERE queue = %s", DROPPED)
        self.keep_all()

    def keep_all(self):
        """What comes is about what is there, which had better stay."""
        self.counts["removed"] = self.query("SELECT count(*) FROM archive.gone")[0][0]
        self.query("ALTER SYSTEM SET pg_fanout.retention = -1")
        self.query("SELECT pg_reload_conf()")
        with open(f"{self.directory}/logs/chaos.log", "w") as log:
            for event in "changing", "changed":
                at, t = self.query(NOW)[0][0], time.monotonic_ns()
                for queue in RETAINED:
                    log.write(json.dumps({"event": event, "t": t, "setting": f"retention {queue}", "value": None, "at": at, "committed": True}) + "\n")
                self.query("SELECT fanout.alter_queue(queue, unset => '{retention}') FROM fanout.queues")

    # -- what is there when nobody works

    def snapshot(self):
        """What is shown of everything that has not ended; what time changes of it left out."""
        return (self.query("SELECT task, queue, priority, partition_key, CASE state WHEN 'scheduled' THEN 'ready' ELSE state END, attempt, lease"
                           " FROM fanout.tasks WHERE state IN ('scheduled', 'ready', 'running') ORDER BY task"),
                self.query("SELECT lease, task, queue, worker, attempt, claimed_at FROM fanout.leases ORDER BY lease"),
                self.query("SELECT queue, ready + scheduled, running FROM fanout.queues ORDER BY 1"),
                self.query("SELECT queue, partition_key, running, concurrency, weight, paused FROM fanout.partitions"
                           " WHERE running > 0 OR weight <> 1 OR paused ORDER BY 1, 2"),
                self.query("SELECT worker, leases, queues FROM fanout.workers ORDER BY 1"))

    def wait_for_keeper(self):
        """One that has failed comes back after some seconds; meanwhile nothing changes, nor is it journaled."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            if self.query("SELECT keeper_pid IS NOT NULL AND failed_in_a_row = 0 AND journal_lag = 0 FROM fanout.stats") == [(True,)]:
                return
            time.sleep(0.1)
        self.look("a keeper is at work", False)

    def quiet_snapshot(self):
        """Once nothing changes any more: deadlines have passed, and what was cancelled while it ran has ended."""
        self.wait_for_keeper()
        give_up = time.monotonic() + PATIENCE
        snapshot = self.snapshot()
        while time.monotonic() < give_up:
            time.sleep(2)
            before, snapshot = snapshot, self.snapshot()
            if before == snapshot and not self.query("SELECT lease FROM fanout.leases WHERE lease_until < clock_timestamp() + '10 min'"):
                return snapshot
        self.look("it comes to rest", False)
        return snapshot

    def look_at_memory(self):
        """Do the views agree with the tables, and is memory what a rebuild makes of these?"""
        self.query("SELECT fanout.resume_queue(queue) FROM fanout.queues")
        self.query("SELECT fanout.extend(ARRAY(SELECT lease FROM fanout.leases), '1 hour')")
        self.query("SELECT lease FROM fanout.dequeue(%s::text[], 'rests', max_tasks => 20, lease => '1 hour')", [*QUEUES])
        before = self.quiet_snapshot()
        self.look_for_rows("the views agree with the tables",
            "SELECT q.queue, q.ready + q.scheduled + q.running, u.n FROM fanout.queues q JOIN fanout.queue c ON c.name = q.queue,"
            " LATERAL (SELECT count(*) AS n FROM fanout.task t WHERE t.queue = c.id AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)) u"
            " WHERE q.ready + q.scheduled + q.running <> u.n OR q.running <> (SELECT count(*) FROM fanout.leases l WHERE l.queue = q.queue)")
        self.look_for_violations()
        self.server.restart()
        after = self.snapshot()
        for what, one, other in zip(("tasks", "leases", "queues", "partitions", "workers"), before, after):
            self.look(f"a rebuild makes the same {what} ({len(one)})", one == other,
                      f"before {[row for row in one if row not in other][:3]}, after {[row for row in other if row not in one][:3]}")

    def drain(self):
        """Work off all that is left."""
        self.query("SELECT fanout.seal_batch(batch) FROM fanout.batches WHERE NOT sealed")
        self.query("SELECT fanout.alter_queue(queue, unset => '{concurrency,worker_concurrency,partition_concurrency,rate_limit,partition_rate_limit}') FROM fanout.queues")
        self.query("SELECT fanout.resume_partition(queue, partition_key) FROM fanout.partitions WHERE partition_key IS NOT NULL")
        self.query("SELECT fanout.complete(ARRAY(SELECT lease FROM fanout.leases))")
        give_up = time.monotonic() + PATIENCE
        with self.server.connect() as connection:
            while connection.execute("SELECT sum(ready + scheduled + running) FROM fanout.queues").fetchone()[0] > 0 and time.monotonic() < give_up:
                leases = [row[0] for row in connection.execute("SELECT lease FROM fanout.dequeue(%s::text[], 'drain', max_tasks => 50, wait => '200 ms')", ([*QUEUES],))]
                connection.execute("SELECT fanout.complete(%s::bigint[])", (leases,))

    # -- the end

    def look_at_logs(self, logs):
        """What the actors wrote down, with what the tables have."""
        durable = {row[0] for row in self.query("SELECT lease FROM every.attempt UNION SELECT lease FROM every.outcome UNION SELECT lease FROM every.checkpoint")}
        logs.check_leases(durable)
        logs.check_steps({(task, step): value for task, step, value in self.query("SELECT task, step, value FROM every.checkpoint")})
        logs.check_debounced()
        logs.check_holds()
        logs.check_deadlines({row[0] for row in self.query("SELECT task FROM every.attempt WHERE event = 'n'")})
        logs.check_privileges()
        used = logs.check_limits()
        used["overtaken"] = self.look_at_order(logs)
        lost = [lease.lease for lease in logs.leases.values() if lease.kept and lease.queue == "synchronous" and lease.lease not in durable]
        self.look("synchronous claims are on disk", not lost, lost[:5])
        self.look("there was something to look at", len(logs.leases) > 2 * self.seconds and (self.counts["removed"] > 0 or self.seconds < 30),
                  f"{len(logs.leases)} claims in {self.seconds} s, {self.counts['removed']} tasks removed")
        self.look("limits, rates, leases, steps, deadlines, debounce, backpressure, joins and privileges, by what the actors wrote down", not logs.wrong, f"{len(logs.wrong)}: {logs.wrong[:5]}")
        return used

    def look_at_order(self, logs):
        """A partition that runs one at a time keeps its order over retries, where these do not let others pass."""
        places = collections.defaultdict(dict)
        for task, queue, key, priority, stays in self.query(
                "SELECT t.id, q.name, t.partition_key, coalesce(t.priority, 0), t.run_at IS NULL AND t.batch IS NULL"
                " FROM every.task t JOIN fanout.queue q ON q.id = t.queue"
                " WHERE q.name = ANY (%s) AND t.partition_key IS NOT NULL AND coalesce(t.key, '') !~ '^(other|bounce)'"
                " AND NOT EXISTS (SELECT FROM every.attempt a WHERE a.task = t.id AND a.event = 'n')", ORDERED):
            places[queue, key][task] = priority, stays
        overtakes = logs.overtakes(places, {row[0] for row in self.query("SELECT DISTINCT lease FROM every.attempt")})
        self.look("partitions that run one at a time keep their order over retries", not (wrong := overtakes["in order"]), f"{len(wrong)}: {wrong[:5]}")
        return len(overtakes["overtaking"])

    def removed(self):
        gone = self.query("SELECT g.task, q.name, t.batch, o.status, (extract(epoch FROM o.finished_at) * 1000000)::bigint,"
                          " (extract(epoch FROM t.key_until) * 1000000)::bigint, (extract(epoch FROM g.since) * 1000000)::bigint,"
                          " (extract(epoch FROM g.at) * 1000000)::bigint FROM archive.gone g JOIN every.task t ON t.id = g.task"
                          " JOIN fanout.queue q ON q.id = t.queue LEFT JOIN every.outcome o ON o.task = t.id")
        ends = collections.defaultdict(dict)
        for batch, task, queue, ended in self.query(
                "SELECT t.batch, t.id, q.name, (extract(epoch FROM o.finished_at) * 1000000)::bigint FROM every.task t"
                " JOIN fanout.queue q ON q.id = t.queue LEFT JOIN every.outcome o ON o.task = t.id WHERE t.batch IS NOT NULL"):
            ends[batch][task] = queue, ended
        return gone, ends

    def look_at_end(self, logs):
        for what, query in (
                ("all that was enqueued has ended, and once", "SELECT t.id FROM every.task t LEFT JOIN every.outcome o ON o.task = t.id GROUP BY t.id HAVING count(o.task) <> 1"),
                ("each step has one value", "SELECT task, step FROM every.checkpoint GROUP BY 1, 2 HAVING count(*) <> 1"),
                ("each lease was given for one task", "SELECT lease FROM every.attempt WHERE event IN ('c', 'b') GROUP BY 1 HAVING count(DISTINCT task) > 1"),
                ("no permit is left over", "SELECT queue, running FROM fanout.queues WHERE running <> 0 OR ready <> 0 OR scheduled <> 0"),
                ("nor one of a partition", "SELECT queue, partition_key, running FROM fanout.partitions WHERE running <> 0 OR ready <> 0 OR backlog <> 0"),
                ("nor a lease", "SELECT lease, task FROM fanout.leases"),
                ("nor a place in the pools", "SELECT * FROM fanout.status() WHERE item IN ('tasks in memory', 'leases in memory', 'workers in memory', 'journal lag') AND value !~ '^0'"),
                ("nobody waits", "SELECT queue, waiting_workers FROM fanout.queues WHERE waiting_workers <> 0"),
                ("all batches have ended", "SELECT batch FROM fanout.batches WHERE NOT fanout.wait(batch, '10 s')"),
                ("and are collected whole, but for what is gone", "SELECT b.batch, b.tasks, c.*, a.gone FROM fanout.batches b,"
                 " LATERAL (SELECT count(*) AS n, count(*) FILTER (WHERE status IN ('succeeded', 'failed', 'cancelled', 'gone')) AS ended, max(ordinal) AS last,"
                 " array_agg(task ORDER BY task) FILTER (WHERE status = 'gone') AS gone FROM fanout.collect(b.batch, '0')) c,"
                 " LATERAL (SELECT array_agg(id ORDER BY id) AS gone FROM archive.task WHERE batch = b.batch) a"
                 " WHERE b.tasks <> c.n OR c.ended <> c.n OR c.last <> c.n OR c.gone IS DISTINCT FROM a.gone"),
                ("their counts agree with that", "SELECT b.batch, p.* FROM fanout.batches b, LATERAL (SELECT * FROM fanout.progress(b.batch)) p"
                 " WHERE (p.total, p.gone) <> (b.tasks, (SELECT count(*) FROM archive.task WHERE batch = b.batch))"
                 " OR p.succeeded + p.failed + p.cancelled + p.gone <> p.total OR NOT p.ended"),
                ("no batch is removed before its tasks", "SELECT t.id, t.batch FROM fanout.task t WHERE NOT EXISTS (SELECT FROM fanout.batch b WHERE b.id = t.batch) AND t.batch IS NOT NULL"),
                ("no task is both here and removed", "SELECT id FROM archive.task JOIN fanout.task USING (id)"),
                ("what is removed is so whole", "SELECT a.what, a.task, t.tableoid::regclass FROM fanout.task t JOIN (SELECT 'outcome' AS what, task FROM archive.outcome"
                 " UNION ALL SELECT 'checkpoint', task FROM archive.checkpoint UNION ALL SELECT 'attempt', task FROM archive.attempt) a ON a.task = t.id"
                 " UNION ALL SELECT h.what, h.task, h.at FROM archive.task t JOIN (SELECT 'outcome' AS what, task, tableoid::regclass AS at FROM fanout.outcome"
                 " UNION ALL SELECT 'checkpoint', task, tableoid::regclass FROM fanout.checkpoint UNION ALL SELECT 'attempt', task, tableoid::regclass FROM fanout.attempt) h ON h.task = t.id"),
                ("a key is held for its time", f"SELECT id, key FROM (SELECT id, key, key_until, lag(key_until) OVER (PARTITION BY queue, key ORDER BY id) AS held_until"
                 f" FROM every.task WHERE key ^@ 'throttle') t WHERE held_until > key_until - interval '{THROTTLED}'"),
                ("the keeper has noted the ends of joins", "SELECT batch FROM fanout.batches WHERE \"join\" <> 'all' AND ended_at IS NULL AND tasks > 0")):
            self.look_for_rows(what, query)
        wrong = logs.check_retention(*self.removed(), self.retention, self.keep_failed)
        self.look("what was removed had its time", not wrong, f"{len(wrong)}: {wrong[:5]}")
        there = {row[0] for row in self.query("SELECT id FROM every.task")}
        self.look("no task is lost", not (lost := set(logs.enqueued) - there), sorted(lost)[:5])
        self.look("none is there that was rolled back", not (extra := logs.never & there), sorted(extra)[:5])
        succeeded = dict(self.query("SELECT task, lease FROM every.outcome WHERE status = 's'"))
        wrong = [(task, leases) for task, leases in logs.completed.items() if succeeded.get(task) not in leases]
        self.look("what a worker was told is completed is so, by its lease", not wrong, wrong[:5])

    def look_at_backlog(self):
        """An empty queue takes as many as its limit on the backlog says."""
        limits, wrong = QUEUES["bounded"], []
        with self.server.connect() as connection:
            for what, key, limit in ("queue", None, limits["max_backlog"]), ("partition", "k0", limits["partition_max_backlog"]):
                for count in limit, limit + 1:
                    state = None
                    connection.execute("BEGIN")
                    try:
                        connection.execute("SELECT fanout.enqueue_many('bounded', 'x', array_fill('1'::jsonb, ARRAY[%s::int]), partition_key => %s)", (count, key))
                    except psycopg.Error as error:
                        state = error.diag.sqlstate
                    connection.execute("ROLLBACK")
                    if state != (None if count == limit else "FO003"):
                        wrong.append(f"the {what} is empty, and to {count} of {limit} it says {state}")
        self.look("an empty queue and an empty partition take as many as they may, and no more", not wrong, wrong)

    def memory(self):
        return self.query("SELECT item, value FROM fanout.status() WHERE item ~ 'in memory$' ORDER BY item")

    def look_at_empty_memory(self):
        """Rate limits are gone, and settings of partitions go now, so nothing has a place any more."""
        self.query("SELECT fanout.set_partition(queue, key, weight => 1, unset => '{concurrency}'), fanout.backpressure(queue, now(), key)"
                   " FROM (SELECT q.name AS queue, p.key FROM fanout.partition p JOIN fanout.queue q ON q.id = p.queue) s")
        self.look_for_rows("memory is empty", "SELECT * FROM fanout.status() WHERE item ~ 'in memory$' AND value !~ '^0'")
        before = self.memory()
        self.server.restart()
        self.look("memory is as empty as a rebuild makes it", before == (after := self.memory()), f"before {before}, after {after}")

    def look_for_violations(self):
        kinds = self.query("SELECT * FROM fanout._violations()")
        self.look("the build is a checked one", len(kinds) > 0)
        self.look("no violations inside", not (wrong := [kind for kind in kinds if kind[2]]), wrong)

    def look_at_log(self):
        wanted = ("pg_fanout violation", "PANIC:", "TRAP:", "terminated by signal 11", "terminated by signal 6", "duplicate key", "XX000")
        with open(f"{self.directory}/server.log", errors="replace") as file:
            lines = [line.strip() for line in file if any(word in line for word in wanted)]
            file.seek(0)
            failures = [line.strip() for line in file if (failure := FAILURE.search(line)) and failure[1] not in PROVOKED]
        self.look("nothing bad in the server's log", not lines, lines[:3])
        self.look("keeper and launcher have failed of nothing but what was done to them", not failures, f"{len(failures)}: {failures[:3]}")


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
    logs = Logs(f"{directory}/logs", sorted(chaos.server.stops))
    used = chaos.look_at_logs(logs)
    chaos.drain()
    chaos.look_at_end(logs)
    chaos.look_for_violations()
    chaos.look_at_backlog()
    chaos.look_at_empty_memory()
    chaos.look_at_log()
    chaos.look("no error but those of lost connections and timeouts", not logs.errors, logs.errors.most_common(5))
    print(f"seed {seed}: {len(logs.leases)} claims, {len(logs.enqueued)} tasks, {sum(map(len, logs.completed.values()))} completed;"
          f" {chaos.counts}; {chaos.server.counts}; {dict(logs.counts)}; most used {used}")
    sys.exit(chaos.failed > 0)


if __name__ == "__main__":
    main()
