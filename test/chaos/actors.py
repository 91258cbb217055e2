#!/usr/bin/python3
"""One of those who use the server in the chaos: a worker, an enqueuer, a meddler, a watcher or a guest.

    actors.py worker|enqueue|meddle|watch|guest NAME SEED LOG

Connects as libpq does, again and again, until SIGTERM. Writes down what it did, one JSON object a line. Times named "at"
and "before" are microseconds of the server's clock, which is this machine's; "t" is this machine's monotonic clock, the same for all actors. What
it is about to do is written before it is done where that may remain unknown.
"""
import json
import os
import random
import signal
import sys
import time

import psycopg

# by name: settings of create_queue
QUEUES = {
    "steady": {"concurrency": 6, "worker_concurrency": 2, "partition_concurrency": 2},
    "changing": {"concurrency": 4, "partition_concurrency": 1},
    "rated": {"rate_limit": 20, "rate_period": "500 ms", "partition_rate_limit": 5, "partition_rate_period": "1 s"},
    "synchronous": {"synchronous_claims": True},
    "aging": {"aging": "100 ms"},
    "bounded": {"max_backlog": 60, "partition_max_backlog": 25},
    "in order": {"partition_concurrency": 1},
    "overtaking": {"partition_concurrency": 1, "partition_retries": "pass"},
}
ORDERED = ["in order", "overtaking"]                # what ends or changes many tasks of theirs at once leaves them alone
DROPPED = "passing"             # a queue that is dropped and made again
RATES = {"rated": {500_000: 20, 2_000_000: 60}}     # units by period, in microseconds
PARTITION_RATES = {"rated": {1_000_000: 5}}
LIMITED = [(queue, key) for queue in ("steady", "changing") for key in ("k0", "k1", "k2")]     # partitions with a limit of their own at times
DEBOUNCED = 100_000                                 # microseconds
BOUNCES = {"bounce0": None, "bounce1": None, "bounce2": "150 ms"}       # keys, and the longest wait
PARTITIONS = [None, "k0", "k0", "k0", "k0", "k1", "k1", "k2", "k3", "k4"]    # unevenly, so that limits bind
UNIQUE_KEYS = [f"unique{n}" for n in range(4)]      # never held by two unfinished tasks
OTHER_KEYS = [f"other{n}" for n in range(4)]
THROTTLES = [f"throttle{n}" for n in range(3)]      # held for THROTTLED, finished or not
THROTTLED = "3 s"
# queues whose retention changes, all but one; None: as the others
RETAINED = ["steady", "rated", "synchronous", "aging", "bounded"]
RETENTIONS = {"100 ms": 100_000, "500 ms": 500_000, "1 s": 1_000_000, None: None}
BACKLOG = 400                                       # of a queue; tasks beyond it are not enqueued
GUEST = "guest"                                     # a role that has these privileges at times, and nothing else
GRANTS = [("steady", "enqueue"), ("steady", "dequeue"), ("aging", "enqueue"), ("aging", "dequeue")]
NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"

DIES = 3                        # how a worker exits that dies of itself
CONNECTION_GOES = ("57P01", "57P02", "57P03")
# what is not a failure: cancelled, timeouts of statements and locks, deadlocks of changes and keys, small pools, a full
# queue, a key that is held, and the errors that are planted at crash points
EXPECTED = ("57014", "55P03", "40P01", "53400", "FO003", "FO006", "P0001", "53100")


class Actor:
    role = None                 # who runs it

    def __init__(self, name, seed, log):
        self.name = name
        self.random = random.Random(seed)
        # a line is one write to the kernel: it is there whatever becomes of this process, and the machine stays up
        self.file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.connection = None
        self.quiet = os.path.join(os.path.dirname(log), "quiet")    # while it is there, nothing is cut off
        self.stopping = self.limited = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_):
        self.stopping = True

    def log(self, event, **what):
        os.write(self.file, (json.dumps({"event": event, "t": time.monotonic_ns(), **what}) + "\n").encode())

    def change(self, setting, value, statement, *parameters):
        """Change a setting, or do not after all, and write down between which times it was which."""
        self.log("changing", setting=setting, value=value, at=self.value(NOW))
        self.execute("BEGIN")
        self.execute(statement, *parameters)
        committed = self.chance(0.8)
        self.end_transaction(committed)
        self.log("changed", setting=setting, at=self.value(NOW), committed=committed)

    def chance(self, probability):
        return self.random.random() < probability

    def execute(self, query, *parameters):
        cursor = self.connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def value(self, query, *parameters):
        return self.execute(query, *parameters)[0][0]

    def column(self, query, *parameters):
        return [row[0] for row in self.execute(query, *parameters)]

    def connect(self):
        self.connection = psycopg.connect(autocommit=True, connect_timeout=5, target_session_attrs="read-write", user=self.role,
                                          options="-c client_min_messages=error -c synchronous_commit=on")
        self.limited = False

    def limit_time(self):
        """Some steps may be cut off by a timeout, at any moment."""
        if self.chance(0.04) and not os.path.exists(self.quiet):
            self.execute(f"SET statement_timeout = {self.random.choice([1, 2, 5, 10, 30])}")
            self.execute(f"SET lock_timeout = {self.random.choice([1, 5, 10])}")
            self.limited = True
        elif self.limited:
            self.execute("RESET statement_timeout")
            self.execute("RESET lock_timeout")
            self.limited = False

    def main(self):
        while not self.stopping:
            try:
                if self.connection is None:
                    self.connect()
                self.limit_time()
                self.step()
            except psycopg.Error as error:
                self.note_error(error)
                if self.connection is not None:
                    self.connection.close()
                self.connection = None
                time.sleep(0.05)

    def note_error(self, error):
        state = error.diag.sqlstate
        if state == "42704" and f'queue "{DROPPED}"' in str(error):
            return
        if self.connection is not None and not self.connection.closed and state not in CONNECTION_GOES + EXPECTED:
            self.log("error", sqlstate=state, text=str(error))

    def end_transaction(self, commits):
        self.execute("COMMIT" if commits else "ROLLBACK")


class Worker(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stalled = []           # when to come back to them, leases that run out or nearly so, and their tasks
        self.old = []               # leases that have ended

    # -- claims

    def claim(self, function, *parameters, bound=False):
        """Dequeue, and write down what was given before anybody knows whether it will be kept."""
        t0 = time.monotonic_ns()
        rows = self.execute(f"SELECT lease, task, checkpoints, name, args FROM fanout.{function}", *parameters)
        given = [row[:3] for row in rows]
        steps = {lease: checkpoints for lease, _, checkpoints in given}
        args = {row[0]: row[4] for row in rows if row[3] == "bounce"}
        for lease, task, queue, key, cost, at, until in self.execute(
                "SELECT l.lease, l.task, l.queue, t.partition_key, coalesce(t.cost, 1), (extract(epoch FROM l.claimed_at) * 1000000)::bigint,"
                " (extract(epoch FROM l.lease_until) * 1000000)::bigint FROM fanout.leases l JOIN fanout.task t ON t.id = l.task WHERE l.lease = ANY (%s)", [*steps]):
            self.log("claim", lease=lease, task=task, queue=queue, key=key, cost=cost, at=at, until=until, worker=self.name,
                     t0=t0, steps=steps[lease], bounce=args.get(lease), bound=bound)
        return given

    def take(self):
        queues = [*dict.fromkeys(self.random.choices([*QUEUES, *ORDERED, DROPPED], k=self.random.choice([1, 1, 2, 3])))]
        bound = self.chance(0.05)
        return self.claim("dequeue(%s::text[], %s, max_tasks => %s, wait => %s, bind_to_session => %s)", queues, self.name,
                          self.random.choice([1, 1, 2, 5]), self.random.choice([None, "50 ms", "200 ms"]), bound, bound=bound)

    def undo(self, rows, command):
        at = self.value(NOW)
        self.execute(command)
        self.log("undone", leases=[row[0] for row in rows], at=at)

    def step(self):
        if self.chance(0.05):
            self.execute("CALL fanout.dequeue_wait(%s::text[], %s, '100 ms', NULL)", self.random.sample([*QUEUES], 2), self.name)
        self.execute("BEGIN")
        if self.chance(0.1):
            self.execute("SAVEPOINT s")
            self.undo(self.take(), "ROLLBACK TO SAVEPOINT s")
        rows = self.take()
        if self.chance(0.1):
            time.sleep(self.random.random() * 0.02)
            self.undo(rows, "ROLLBACK")
            return
        self.execute("COMMIT")
        self.log("kept", leases=[row[0] for row in rows])
        if self.chance(0.05):
            self.heartbeat()
        if len(rows) > 1 and self.chance(0.4):
            rows = self.end_together(rows)
        while rows:
            rows += self.work(*rows.pop(0))
        if self.stalled and self.stalled[0][0] < time.monotonic():
            self.finish(*self.stalled.pop(0)[1:])   # late, be the lease lost by now or not
        if self.old and self.chance(0.1):
            self.report_again(*self.random.choice(self.old))
        self.old = self.old[-20:]

    # -- the work

    def work(self, lease, task, checkpoints):
        """The steps of the task that have not been done, and then one of the ways to end; what was claimed in its place."""
        for n in range(task % 4):
            # one that has been done gives its first value again
            if (f"s{n}" not in checkpoints or self.chance(0.1)) and not self.do_step(lease, task, f"s{n}"):
                return []
        if self.chance(0.05):
            self.spawn(lease, task)
        if self.chance(0.05):
            self.extend(lease)
        time.sleep(self.random.choice([0, 0.001, 0.005, 0.02, 0.1]))
        return self.finish(lease, task)

    def try_under(self, lease, action):
        """Do it in a transaction; None if the lease is lost, or the task cancelled, which ends it for us."""
        try:
            self.execute("BEGIN")
            return action()
        except psycopg.Error as error:
            if error.diag.sqlstate not in ("FO001", "FO002"):
                raise
            self.execute("ROLLBACK")
            self.log("lost", lease=lease)
            if error.diag.sqlstate == "FO002":
                self.end(lease, None, "release", "SELECT fanout.release(%s::bigint)")
            return None

    def do_step(self, lease, task, step):
        """False if there is nothing to go on with."""
        def action():
            commits = self.chance(0.9)
            self.log("step", lease=lease, task=task, step=step)
            before = self.value(NOW)
            if self.chance(0.1):
                self.execute("SAVEPOINT s")
                self.execute("SELECT fanout.checkpoint(%s::bigint, %s, %s)", lease, step, json.dumps([lease, -1]))
                self.execute("ROLLBACK TO SAVEPOINT s")
            value = self.value("SELECT fanout.checkpoint(%s::bigint, %s, %s)", lease, step,
                               json.dumps([lease, self.random.randrange(1_000_000)]))
            self.end_transaction(commits)
            if commits:
                self.log("stepped", lease=lease, task=task, step=step, value=value, before=before)
            return commits or self.chance(0.5)
        if self.chance(0.005):
            os._exit(DIES)
        return bool(self.try_under(lease, action))

    def spawn(self, lease, task):
        """A child, or a batch of them, which a replay is to find and not to make again."""
        def action():
            if self.chance(0.5):
                child = self.value("SELECT fanout.enqueue('steady', 'child', '1', lease => %s, step => 'child')", lease)
                made, tasks = ["child", child], [child]
            else:
                batch = self.value("SELECT fanout.fan_out('aging', 'child'::text, '{1,2}', lease => %s, step => 'children')", lease)
                made, tasks = ["children", batch], self.column("SELECT id FROM fanout.task WHERE batch = %s", batch)
            commits = self.chance(0.8)
            self.end_transaction(commits)
            if commits:
                self.log("spawned", lease=lease, task=task, made=made, tasks=tasks, at=time.time_ns() // 1000)
        self.try_under(lease, action)

    def heartbeat(self):
        try:
            self.execute("SELECT fanout.heartbeat(%s, '2 s')", self.name)
        except psycopg.Error as error:
            if error.diag.sqlstate != "FO002":
                raise

    def extend(self, lease):
        def action():
            self.execute("SELECT fanout.extend(%s::bigint, '2 s')", lease)
            self.execute("COMMIT")
        self.try_under(lease, action)

    def finish(self, lease, task):
        """Any of the ways in which an attempt can go; returns what was claimed in its place."""
        way = self.random.random()
        if way < 0.04:
            self.stalled.append((time.monotonic() + self.random.uniform(0.5, 2.5), lease, task))
        elif way < 0.044:
            os._exit(DIES)
        elif way < 0.6:
            self.end(lease, task, "complete", "SELECT fanout.complete(%s::bigint, '1')")
        elif way < 0.72:
            return self.complete_and_dequeue(lease, task)
        elif way < 0.82:
            self.end(lease, task, "fail", f"SELECT fanout.fail(%s::bigint, 'x', retry_in => '{self.random.choice([0, 0, 50, 300])} ms')")
        elif way < 0.86:
            self.end(lease, task, "fail", "SELECT fanout.fail(%s::bigint, 'x', final => true)")
        elif way < 0.94:
            self.end(lease, task, "release", f"SELECT fanout.release(%s::bigint, '{self.random.choice([0, 0, 30])} ms')")
        else:
            self.end(lease, task, None, "SELECT fanout.complete(%s::bigint)")
            self.end(lease, task, "complete", "SELECT fanout.complete(%s::bigint)")
        return []

    def end(self, lease, task, how, query):
        """how: None if it is to be rolled back."""
        def action():
            before = self.value(NOW)
            if self.chance(0.05):
                self.execute("SAVEPOINT s")
                self.execute("SELECT fanout.complete(%s::bigint)", lease)
                self.execute("ROLLBACK TO SAVEPOINT s")
            did = self.value(query, lease)
            self.log("ending", lease=lease, at=self.value(NOW), sure=True)
            self.end_transaction(how is not None)
            if how:
                self.log("ended", lease=lease, how=how, did=did is not False, before=before)
                self.old.append((lease, task, how))
            else:
                self.log("not ended", lease=lease)
        self.try_under(lease, action)

    def end_together(self, rows):
        """All of them in one call; returns what was claimed in their place."""
        leases, given = [row[0] for row in rows], []
        how, call = self.random.choice([("complete", "complete(%s::bigint[])"), ("fail", "fail(%s::bigint[], 'x', retry_in => '10 ms')"),
                                        ("release", "release(%s::bigint[], '10 ms')"), ("complete", None)])
        self.execute("BEGIN")
        before = self.value(NOW)
        if call:
            did = self.column(f"SELECT fanout.{call}", leases)
        else:
            for lease in leases:
                self.log("ending", lease=lease, at=before, sure=False)
            given = self.claim("complete_and_dequeue(%s::bigint[], NULL, %s, %s, max_tasks => 5)", leases, self.random.choice([*QUEUES]), self.name)
            did = self.column("SELECT lease FROM fanout.outcome WHERE lease = ANY (%s)", leases)
        at = self.value(NOW) if call else before
        for lease in did:
            self.log("ending", lease=lease, at=at, sure=call is not None)
        self.execute("COMMIT")
        for lease, task, _ in rows:
            if lease in did:
                self.log("ended", lease=lease, how=how, did=True, before=before)
                self.old.append((lease, task, how))
            else:
                self.log("lost", lease=lease)
        self.log("kept", leases=[row[0] for row in given])
        return given

    def complete_and_dequeue(self, lease, task):
        # the new claim may have the old one's permit, so the old one ends before it
        def action():
            before = self.value(NOW)
            self.log("ending", lease=lease, at=before, sure=False)
            rows = self.claim("complete_and_dequeue(%s::bigint, '2', %s, %s, max_tasks => 2)",
                              lease, self.random.choice([*QUEUES]), self.name)
            self.execute("COMMIT")
            self.log("ended", lease=lease, how="complete", did=True, before=before)
            self.log("kept", leases=[row[0] for row in rows])
            self.old.append((lease, task, "complete"))
            return rows
        return self.try_under(lease, action) or []

    def report_again(self, lease, task, how):
        """What has ended with this lease does so no second time; a completion may be repeated."""
        try:
            if self.value("SELECT fanout.complete(%s::bigint, '3')", lease):
                self.log("violation", text=f"lease {lease} of task {task} has ended twice, first by {how}")
        except psycopg.Error as error:
            if error.diag.sqlstate != "FO001":
                raise
            # nothing tells of one that is removed, or whose queue is
            if how == "complete" and self.execute("SELECT 1 FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue WHERE t.id = %s", task):
                self.log("violation", text=f"lease {lease} of task {task} has completed it, and cannot say so again")


class Enqueuer(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.growing = []           # batches that are not sealed

    def step(self):
        queue = self.random.choice([*QUEUES, DROPPED])
        if self.column("SELECT coalesce(ready + scheduled, 0) FROM fanout.queues WHERE queue = %s", queue) > [BACKLOG]:
            time.sleep(0.02)
            return
        commits = self.chance(0.85)
        ways = [self.many, self.many, self.many, self.single, self.single]
        if queue != DROPPED:
            ways += [self.keyed, self.debounce, self.fan_out, self.grow]
        way, self.bounced = self.random.choice(ways), None
        self.execute("BEGIN")
        if self.chance(0.2):
            self.execute("SAVEPOINT s")
            tasks = self.many(queue)
            self.execute("ROLLBACK TO SAVEPOINT s")
            self.log("never", tasks=tasks)
        tasks = way(queue)
        self.log("enqueuing", tasks=tasks)
        self.end_transaction(commits)
        self.log("enqueued" if commits else "never", tasks=tasks, at=time.time_ns() // 1000, bounced=self.bounced)
        time.sleep(self.random.random() * 0.01)

    def options(self):
        return (self.random.choice([0, 0, -1, 1, 5]), self.random.choice([1, 1, 2, 3]),
                self.random.choice([None, None, None, "20 ms", "300 ms"]))

    def many(self, queue, count=None, batch=None):
        count = count or self.random.choice([1, 3, 10, 40])
        group = self.random.choice([None, None, "g0", "g1"])
        return self.column(
            "SELECT task FROM fanout.enqueue_many(%s, 'x', array_fill('1'::jsonb, ARRAY[%s::int]), priority => %s, cost => %s, delay => %s,"
            " max_attempts => 4, partition_keys => %s, fair_group => %s, batch => %s)",
            queue, count, *self.options(), [self.random.choice([key for key in PARTITIONS if key or not group]) for _ in range(count)], group, batch)

    def single(self, queue):
        priority, cost, delay = self.options()
        within = self.random.choice([None, "50 ms", "200 ms", "1 s"])
        try:
            task, deadline = self.execute(
                "SELECT fanout.enqueue(%s, 'x', '1', priority => %s, cost => %s, delay => %s, max_attempts => 4, partition_key => %s,"
                " deadline => d.at), (extract(epoch FROM d.at) * 1000000)::bigint FROM (SELECT clock_timestamp() + %s::interval AS at OFFSET 0) d",
                queue, priority, cost, None if within else delay, self.random.choice(PARTITIONS), within)[0]
        except psycopg.errors.InvalidParameterValue:    # it has passed while the call waited
            self.execute("ROLLBACK")
            self.execute("BEGIN")
            return []
        if deadline is not None:
            self.log("deadline", task=task, at=deadline)
        return [task]

    def keyed(self, queue):
        """Only a task that is new is ours: what holds the key may be anybody's."""
        keys, ways, held = self.random.choice([(UNIQUE_KEYS, ["return", "reject"], None), (THROTTLES, ["return", "reject"], THROTTLED),
                                               (OTHER_KEYS, ["replace", "supersede"], None)])
        way = self.random.choice(ways)
        task = self.value("SELECT fanout.enqueue(%s, 'x', '1', key => %s, on_conflict => %s, key_ttl => %s, partition_key => %s, max_attempts => 4)",
                          queue, self.random.choice(keys), way, held, self.random.choice(PARTITIONS))
        ours = way != "replace" and self.value("SELECT xmin = pg_current_xact_id()::xid FROM fanout.task WHERE id = %s", task)
        return [task] if ours else []

    def debounce(self, queue):
        """The args say which call it was."""
        key, call = self.random.choice([*BOUNCES]), time.time_ns()
        before = self.value(NOW)
        task = self.value("SELECT fanout.debounce(%s, 'bounce', %s, %s, %s * interval '1 us', %s, priority => -5, max_attempts => 4)",
                          queue, key, str(call), DEBOUNCED, BOUNCES[key])
        self.bounced = {"task": task, "call": call, "before": before, "waits": BOUNCES[key] is None}
        return []

    def fan_out(self, queue):
        join = self.random.choice(["all", "any", "n", "fail_fast"])
        count = self.random.choice([1, 4, 12])
        batch = self.value("SELECT fanout.fan_out(%s, 'x'::text, array_fill('1'::jsonb, ARRAY[%s::int]), %s, join_count => %s, max_attempts => 4, partition_key => %s)",
                           queue, count, join, self.random.choice([1, 2, 5]) if join == "n" else None, self.random.choice(PARTITIONS))
        tasks = self.column("SELECT id FROM fanout.task WHERE batch = %s ORDER BY id", batch)
        if len(tasks) != count:
            self.log("violation", text=f"batch {batch} has {len(tasks)} tasks of {count}")
        return tasks

    def grow(self, queue):
        """In its own transaction a batch is made, grown or sealed; so it is made and grown before anybody knows of it."""
        if not self.growing or self.chance(0.3):
            join = self.random.choice(["all", "any", "n", "fail_fast"])
            self.growing.append(self.value("SELECT fanout.create_batch(%s, %s)", join, 3 if join == "n" else None))
            return []
        batch = self.random.choice(self.growing)
        try:
            if self.chance(0.3):
                self.growing.remove(batch)
                self.execute("SELECT fanout.seal_batch(%s)", batch)
                return []
            return self.many(queue, self.random.choice([1, 3]), batch)
        except psycopg.Error as error:
            if error.diag.sqlstate != "42704":      # it was rolled back
                raise
            if batch in self.growing:
                self.growing.remove(batch)
            self.execute("ROLLBACK")
            self.execute("BEGIN")
            return []


class Meddler(Actor):
    def step(self):
        self.random.choice([self.alter, self.alter, self.retain, self.set_partition, self.limit_partition, self.hold, self.hold, self.replace_queue, self.grant, self.grant, self.pause, self.resume, self.cancel, self.cancel_matching,
                            self.retry, self.purge, self.alter_tasks, self.alter_tasks, self.look])()
        time.sleep(self.random.random() * 0.05)

    def alter(self):
        """The limits of the queue that changes."""
        limits = self.random.choice([1, 2, 4, 8]), self.random.choice([1, 2, 3])
        self.change("limits", limits, "SELECT fanout.alter_queue('changing', concurrency => %s, partition_concurrency => %s)", *limits)

    def retain(self):
        queue, retention = self.random.choice(RETAINED), self.random.choice([*RETENTIONS])
        self.change(f"retention {queue}", RETENTIONS[retention], "SELECT fanout.alter_queue(%s, retention => %s, unset => %s)",
                    queue, retention, [] if retention else ["retention"])

    def limit_partition(self):
        (queue, key), limit = self.random.choice(LIMITED), self.random.choice([1, 3, None])
        self.change(f"partition {queue} {key}", limit, "SELECT fanout.set_partition(%s, %s, concurrency => %s, unset => %s)",
                    queue, key, limit, [] if limit else ["concurrency"])

    def hold(self):
        queue, key = self.random.choice([*QUEUES]), self.random.choice([None, "k0", "k1"])
        until = self.value(NOW) + self.random.choice([0, 100_000, 500_000])
        self.change(f"hold {queue} {key}", until, "SELECT fanout.backpressure(%s, to_timestamp(%s / 1e6::float8), %s)", queue, until, key)

    def grant(self):
        queue, privilege = self.random.choice(GRANTS)
        grants = self.chance(0.5)
        self.change(f"grant {queue} {privilege}", grants, f"SELECT fanout.{'grant' if grants else 'revoke'}_queue(%s, %s::regrole, %s)",
                    queue, GUEST, [privilege])

    def replace_queue(self):
        self.execute("BEGIN")
        if self.execute("SELECT 1 FROM fanout.queues WHERE queue = %s", DROPPED):
            self.execute("SELECT fanout.drop_queue(%s, force => true)", DROPPED)
        if self.chance(0.8):
            self.execute("SELECT fanout.create_queue(%s, lease => '1500 ms', max_attempts => 4, concurrency => 3, partition_concurrency => 2)", DROPPED)
        self.end_transaction(self.chance(0.9))

    def set_partition(self):
        queue, key = self.random.choice([*QUEUES]), self.random.choice(PARTITIONS[1:])
        self.execute("SELECT fanout.set_partition(%s, %s, weight => %s)", queue, key, self.random.choice([1, 2, 5]))

    def pause(self):
        queue, key = self.random.choice([*QUEUES]), self.random.choice(PARTITIONS)
        if key is None:
            self.execute("SELECT fanout.pause_queue(%s)", queue)
            time.sleep(self.random.random() * 0.02)
            self.execute("SELECT fanout.resume_queue(%s)", queue)
        else:
            self.execute("SELECT fanout.pause_partition(%s, %s)", queue, key)
            time.sleep(self.random.random() * 0.02)
            self.execute("SELECT fanout.resume_partition(%s, %s)", queue, key)

    def resume(self):
        """What was paused when the connection broke."""
        self.execute("SELECT fanout.resume_queue(queue) FROM fanout.queues WHERE paused")
        self.execute("SELECT fanout.resume_partition(queue, partition_key) FROM fanout.partitions WHERE paused")

    def tasks(self, states):
        """Some; not those with keys, which may be held by one only, nor those of batches, which have ended by their word."""
        return self.column("SELECT task FROM fanout.tasks WHERE state = ANY (%s) AND key IS NULL AND batch IS NULL"
                           " ORDER BY random() LIMIT 3", states)

    def touch(self, tasks):
        """They may lose their place for a while, be it that this is rolled back."""
        self.log("touched", tasks=tasks)
        return tasks

    def sometimes(self, *statement):
        self.execute("BEGIN")
        if self.chance(0.1):
            self.execute("SAVEPOINT s")
            self.execute(*statement)
            self.execute("ROLLBACK TO SAVEPOINT s")
        self.execute(*statement)
        self.end_transaction(self.chance(0.7))

    def cancel(self):
        self.sometimes("SELECT fanout.cancel(%s::bigint[], 'meddled')",
                       self.touch(self.column("SELECT task FROM fanout.tasks WHERE state IN ('ready', 'scheduled', 'running') ORDER BY random() LIMIT 3")))

    def cancel_matching(self):
        self.sometimes("SELECT fanout.cancel_matching(%s, partition_key => %s, max_tasks => 3)",
                       self.random.choice([queue for queue in QUEUES if queue not in ORDERED]), self.random.choice(PARTITIONS[1:]))

    def retry(self):
        self.sometimes("SELECT fanout.retry(%s::bigint[])", self.touch(self.tasks(["failed", "cancelled"])))

    def alter_tasks(self):
        tasks = self.touch(self.tasks(["ready", "scheduled"]))
        way = self.random.randrange(3)
        if way == 0:
            self.sometimes("SELECT fanout.reprioritize(%s::bigint[], %s)", tasks, self.random.choice([-2, 0, 3]))
        elif way == 1:
            self.sometimes("SELECT fanout.reschedule(%s::bigint[], delay => %s)", tasks, self.random.choice(["0", "50 ms", "500 ms"]))
        else:
            self.sometimes("SELECT fanout.move(%s::bigint[], %s, partition_key => %s)", tasks, self.random.choice([*QUEUES]),
                           self.random.choice(PARTITIONS))

    def purge(self):
        if self.chance(0.1):
            self.execute("SELECT fanout.purge_queue(%s)", self.random.choice([queue for queue in QUEUES if queue not in ORDERED]))

    def look(self):
        for view in ("queues", "partitions", "leases", "workers", "batches"):
            self.execute(f"SELECT * FROM fanout.{view}")
        for task in self.tasks(["ready", "scheduled", "running"]):
            self.execute("SELECT * FROM fanout.why(%s)", task)


class Watcher(Actor):
    """Looks, in one snapshot each, at what must hold at every moment, and waits for batches and tasks."""
    SNAPSHOTS = {
        "tasks with two outcomes": "SELECT task FROM fanout.outcome GROUP BY task HAVING count(*) > 1",
        "steps with two values": "SELECT task FROM fanout.checkpoint GROUP BY task, step HAVING count(*) > 1",
        "outcomes of no task": "SELECT o.task FROM fanout.outcome o WHERE NOT EXISTS (SELECT FROM fanout.task t WHERE t.id = o.task)",
        "keys held twice": "SELECT min(t.id) FROM fanout.task t WHERE t.key ^@ 'unique' AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)"
                           " GROUP BY t.queue, t.key HAVING count(*) > 1",
    }
    BATCH = ("SELECT b.join_policy, b.join_count, b.sealed, count(t.id), count(o.task), count(*) FILTER (WHERE o.status = 's'), count(*) FILTER (WHERE o.status = 'f')"
             " FROM fanout.batch b LEFT JOIN every.task t ON t.batch = b.id LEFT JOIN every.outcome o ON o.task = t.id WHERE b.id = %s GROUP BY b.id")

    def step(self):
        begin = time.monotonic()
        what = self.random.choice([*self.SNAPSHOTS])
        if wrong := self.column(self.SNAPSHOTS[what] + " LIMIT 5"):
            self.log("violation", text=f"{what}: {wrong}")
        pause = 0.05 + 5 * (time.monotonic() - begin)
        for batch in self.column("SELECT id FROM fanout.batch ORDER BY random() LIMIT 2"):
            self.watch_batch(batch)
        for tasks in "leases", "outcome":
            self.watch_tasks(self.column(f"SELECT task FROM fanout.{tasks} ORDER BY random() LIMIT %s", self.random.choice([1, 2, 3])))
        time.sleep(pause)

    def look_at_counts(self, batch):
        total, ended, parts, rows = self.execute(
            "SELECT p.total, p.succeeded + p.failed + p.cancelled + p.gone, p.scheduled + p.ready + p.running, c.n"
            " FROM fanout.progress(%s::bigint) p, (SELECT count(*) AS n FROM fanout.collect(%s::bigint, '0')) c", batch, batch)[0]
        if total != ended + parts or rows < total:
            self.log("violation", text=f"batch {batch} has {total} tasks, {ended} ended, {parts} not, and is collected as {rows}")

    def watch_batch(self, batch):
        try:
            self.look_at_counts(batch)
            if not self.value(self.random.choice(["SELECT fanout.wait(%s::bigint, '200 ms')", "CALL fanout.wait_batch(%s, '200 ms', NULL)"]), batch):
                return
        except psycopg.errors.UndefinedObject:
            if self.column("SELECT id FROM fanout.batch WHERE id = %s", batch):
                raise
            return              # it was retired a moment ago
        rows = self.execute(self.BATCH, batch)
        if not rows:            # all of it is retired
            return
        join, least, sealed, tasks, ended, succeeded, failed = rows[0]
        if not (sealed and ended == tasks or join == "any" and succeeded >= 1 or join == "n" and succeeded >= least
                or join == "fail_fast" and failed >= 1):
            self.log("violation", text=f"batch {batch} has ended by join {join}, with {ended} of {tasks}, {succeeded} succeeded, {failed} failed, sealed {sealed}")

    def watch_tasks(self, tasks):
        """If they are said to have ended all have, or have another life since."""
        for task in tasks:
            self.watch_task(task)
        try:
            if not self.value("SELECT fanout.wait(%s::bigint[], '200 ms')", tasks):
                return
        except psycopg.errors.UndefinedObject:      # some are retired
            return
        self.log("waited", tasks=len(tasks))
        if open_ := self.column("SELECT t.id FROM fanout.task t WHERE t.id = ANY (%s) AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)"
                                " AND NOT EXISTS (SELECT FROM fanout.attempt a WHERE a.task = t.id AND a.event = 'n')", tasks):
            self.log("violation", text=f"tasks {tasks} were said to have ended, and {open_} have not")

    def watch_task(self, task):
        """What is told of its end is what is stored, of this life or, if it has another one, of none."""
        try:
            told = self.execute("SELECT status, result, error FROM fanout.result(%s, %s)", task, self.random.choice(["0", "100 ms"]))[0]
        except psycopg.errors.UndefinedObject:
            return
        if told[0] not in ("succeeded", "failed", "cancelled"):
            return
        self.log("told", task=task)
        stored = self.execute(
            "SELECT CASE o.status WHEN 's' THEN 'succeeded' WHEN 'f' THEN 'failed' WHEN 'c' THEN 'cancelled' END,"
            " CASE WHEN o.status = 's' THEN o.value END, CASE WHEN o.status <> 's' THEN o.value #>> '{}' END"
            " FROM fanout.task t LEFT JOIN fanout.outcome o ON o.task = t.id WHERE t.id = %s"
            " AND NOT EXISTS (SELECT FROM fanout.attempt a WHERE a.task = t.id AND a.event = 'n')", task)
        if stored and stored[0] != told:
            self.log("violation", text=f"task {task} was told to have ended as {told}, and has as {stored[0]}")


class Guest(Actor):
    """May do what it is granted at the moment, and nothing else."""
    role = GUEST

    def step(self):
        queue, privilege = self.random.choice(GRANTS)
        begin = self.value(NOW)
        tasks, allowed = [], True
        self.execute("BEGIN")
        try:
            if privilege == "enqueue":
                tasks = [self.value("SELECT fanout.enqueue(%s, 'x', '1', max_attempts => 4)", queue)]
                self.log("enqueuing", tasks=tasks)
            else:
                self.execute("SELECT lease FROM fanout.dequeue(%s, %s)", queue, self.name)
        except psycopg.errors.InsufficientPrivilege:
            allowed = False
        self.log("privilege", setting=f"grant {queue} {privilege}", allowed=allowed, begin=begin, end=time.time_ns() // 1000)
        if allowed and privilege == "enqueue":
            self.execute("COMMIT")
            self.log("enqueued", tasks=tasks, at=time.time_ns() // 1000, bounced=None)
        else:
            self.execute("ROLLBACK")
        time.sleep(self.random.random() * 0.1)


if __name__ == "__main__":
    kind, name, seed, log = sys.argv[1:]
    {"worker": Worker, "enqueue": Enqueuer, "meddle": Meddler, "watch": Watcher, "guest": Guest}[kind](name, int(seed), log).main()
