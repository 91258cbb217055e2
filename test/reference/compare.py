#!/usr/bin/python3
"""Random operations, on the server and on the reference; ends with an error where their answers differ.

    compare.py SEED OPERATIONS [DIRECTORY]

Connects as libpq does, to a server with an empty database that has the extension. With the directory of a private
server it is restarted now and then. What the pools are is taken from the server: with small ones a dequeue may have to
be repeated until a refill has come, and which partition's turn it is depends on what is in memory.
"""
import datetime
import os
import random
import subprocess
import sys
import time

import psycopg

from reference import ENDED, WAITS, Batch, Lease, Queue, Reference, Task, Wrong

FAR = "1 hour"
SOON = datetime.timedelta(milliseconds=20)
SHORTLY = datetime.timedelta(milliseconds=150)
AT_ONCE = "1 us"
COLUMNS = "lease, task, queue, attempt, args, priority, checkpoints"       # of a dequeue
DEQUEUE = f"SELECT {COLUMNS} FROM fanout.dequeue(%s::text[], %s, max_tasks => %s)"
JSONS = "ARRAY(SELECT to_jsonb(args) FROM unnest(%s::int[]) args)"
AGING = (1, 3600 * 1000000)         # microseconds, less than a call takes, and more than all of them: a seed is to repeat itself
LONG_AGO = "2020-01-01"
PATIENCE = 10.0                     # seconds, for what the keeper does
TRANSACTION = 12                    # operations in one, at most
UNFINISHED = 120                    # tasks of a queue, at most
MUST_STAY = 16                      # tasks that have been leased, or are due after a delay, where memory is small


class Session:
    """A connection, with what its open transaction has noted; the reference carries that out at commit."""

    def __init__(self, name):
        self.name = name
        self.connection = None
        self.notes = None           # None: no transaction is open
        self.savepoints = []        # how many notes there were at each
        self.keys = set()           # that others wait for
        self.left = 0

    def connect(self):
        self.connection = psycopg.connect(autocommit=True)

    def execute(self, query, *parameters):
        cursor = self.connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def value(self, query, *parameters):
        return self.execute(query, *parameters)[0][0]

    def call(self, function, **arguments):
        """With a deadline so long from now; on a machine that is slow that may have passed before it is looked at."""
        terms = [f"{name} => {'clock_timestamp() + ' if name == 'deadline' else ''}%s" for name in arguments]
        query = f"SELECT fanout.{function}({', '.join(terms)})"
        while arguments.get("deadline") is not None:
            try:
                with self.connection.transaction():
                    return self.value(query, *arguments.values())
            except psycopg.errors.InvalidParameterValue as error:
                if error.diag.message_primary != "deadline has passed":
                    raise
        return self.value(query, *arguments.values())


class Comparison:
    def __init__(self, seed, directory):
        self.seed, self.random = seed, random.Random(seed)
        self.directory = directory
        self.reference = Reference()
        self.sessions = [Session(f"w{n}") for n in range(4)]
        self.history = []
        self.counts = {}
        self.touched = set()
        self.ended = self.calls = 0
        self.watch = Session("watch")
        for session in [*self.sessions, self.watch]:
            session.connect()
        pool, lanes = (int(self.watch.value(f"SHOW pg_fanout.{name}")) for name in ("max_tracked_tasks", "max_lanes"))
        self.reference.exact_order = self.roomy = pool > 1000 and lanes > 1000
        self.reference.pool = pool
        self.few_lanes = lanes < 30
        self.keys = [None, *(f"k{n}" for n in range(6 if self.roomy else 24))]
        for name, settings in (("plain", {}), ("limited", {"concurrency": 6, "worker_concurrency": 3,
                                                          "partition_concurrency": 2, "max_backlog": 70,
                                                          **({} if self.few_lanes else {"partition_max_backlog": 25})}),
                               ("rated", {"partition_concurrency": 3}),
                               ("aged", {"aging": self.random.choice(AGING)})):
            queue = self.reference.queues[name] = Queue(name, **settings)
            self.watch.execute("SELECT fanout.create_queue(%s, max_attempts => 3, lease => '10 hours',"
                               " backoff => '1 hour', backoff_max => '90 minutes')",
                               name)
            for setting, value in settings.items():
                value = datetime.timedelta(microseconds=value) if setting == "aging" else value
                self.watch.execute(f"SELECT fanout.alter_queue(%s, {setting} => %s)", name, value)
        self.set_rates(self.watch, self.reference.queues["rated"], 1, 400)
        self.operations = {
            self.enqueue: 14, self.enqueue_many: 4, self.enqueue_key: 8, self.dequeue: 30, self.complete: 13, self.complete_many: 2, self.fail: 7, self.release: 5,
            self.complete_and_dequeue: 6, self.cancel: 6, self.retry: 5, self.change: 8, self.extend: 2, self.expire: 2,
            self.repeat_or_lose: 2, self.checkpoint: 4, self.cancel_matching: 1.5, self.pass_deadline: 0.4, self.pause_queue: 1, self.pause_partition: 2, self.backpressure: 2, self.alter: 3,
            self.set_partition: 3, self.rate_limit: 1, self.why: 6, self.look: 1, self.begin: 6, self.savepoint: 6,
            self.finish_transaction: 8, self.purge: 1, self.restart: 0.12 if directory else 0}

    # -- choosing

    def queue(self):
        return self.random.choices([*self.reference.queues.values()], [4, 3, 3, 2])[0]

    def far(self, share=0.1):
        return self.random.random() < share

    def lease(self, session, committed=False):
        """One that the session may end."""
        leases = [lease for lease in self.reference.leases.values() if lease.ender is None and
                  lease.task.busy is None and lease.writer in (None, session) and (lease.claimer is None or (lease.claimer is session and not committed))]
        return self.random.choice(leases) if leases else None

    def must_stay(self):
        """Tasks that cannot leave memory."""
        return sum(task.leased or task.timed or task.state == "running" or task.busy is not None
                   for queue in self.reference.queues.values() for task in queue.tasks)

    @staticmethod
    def kinds(session):
        """What the open transaction has done last to tasks that wait, or will."""
        return {thing: kind for kind, thing, *_ in session.notes or [] if kind in ("enqueue", "change", "cancel", "retry")}

    # -- transactions

    def note(self, session, *what):
        self.note_all(session, [what])

    def note_all(self, session, notes):
        """What was done by one statement."""
        if session.notes is None:
            self.carry_out(notes)
        else:
            session.notes += notes

    def carry_out(self, notes):
        """They are committed; wait for what the keeper does then."""
        for what in self.last_changes(notes):
            self.apply(what)
        self.end_batches()
        for thing in {what[1]: None for what in notes}:
            task = thing.task if isinstance(thing, Lease) else thing
            if isinstance(task, Task) and task.state in WAITS and task.busy is None:
                self.wait_for_time(task)
        self.end_batches()

    @staticmethod
    def last_changes(notes):
        """Of several changes of a task only the last one is carried out, with the terms of all."""
        first, terms, last = {}, {}, {}
        for n, (kind, task, *more) in enumerate(notes):
            if kind in ("change", "cancel"):
                first.setdefault(task, more[0])
                terms[task] = {**terms.get(task, {}), **(more[2] if kind == "change" else {})}
                last[task] = n
        for n, what in enumerate(notes):
            if what[0] not in ("change", "cancel"):
                yield what
            elif last[what[1]] == n:
                yield what[0], what[1], first[what[1]], terms[what[1]]

    def end_batches(self):
        """Where a join is decided, the keeper cancels what waits."""
        for batch in [*self.reference.batches.values()]:
            if not batch.committed or batch.ended or not batch.is_decided():
                continue
            batch.ended = True
            for session in self.sessions:
                if any(task.state == "ending" and task.busy is session for task in batch.tasks):
                    self.finish_transaction(session)    # the keeper waits for it
            for task in batch.tasks:
                if task.state in WAITS and task.busy is None:
                    self.wait_for_state(task, "cancelled")
                    self.touched.add(task)
                    task.state = "cancelled"
                    self.reference.gone(task)
            self.until(lambda: self.watch.value("SELECT ended_at IS NOT NULL FROM fanout.batch WHERE id = %s", batch.number),
                       f"batch {batch.number} has ended")

    def begin(self, session):
        if session.notes is None:
            session.execute("BEGIN")
            session.notes, session.savepoints, session.keys, session.left = [], [], set(), self.random.randint(1, TRANSACTION)

    def savepoint(self, session):
        if session.notes is None:
            return
        if session.savepoints and self.random.random() < 0.5:
            depth = self.random.randrange(len(session.savepoints))
            if self.random.random() < 0.6:
                session.execute(f"ROLLBACK TO SAVEPOINT s{depth}")
                self.undo(session, session.savepoints[depth])
                session.savepoints[depth + 1:] = []
            else:
                session.execute(f"RELEASE SAVEPOINT s{depth}")
                session.savepoints[depth:] = []
        else:
            session.execute(f"SAVEPOINT s{len(session.savepoints)}")
            session.savepoints.append(len(session.notes))

    def finish_transaction(self, session):
        if session.notes is None:
            return
        commits = self.random.random() < 0.7
        session.execute("COMMIT" if commits else "ROLLBACK")
        session.keys = set()
        if commits:
            notes, session.notes = session.notes, None
            self.carry_out(notes)
        else:
            self.undo(session, 0)
            session.notes = None

    def give_up(self, session):
        """An error that is none of the server's fault: a pool is used up."""
        if session.notes is not None:
            session.execute("ROLLBACK")
            self.undo(session, 0)
            session.notes, session.keys = None, set()

    def apply(self, what):
        """It is committed."""
        kind, thing, *more = what
        if kind == "enqueue":
            thing.busy = None
            if thing.state != "ending":
                thing.state = thing.due_state
                self.reference.come(thing)
        elif kind == "claim":
            thing.claimer = None
            thing.task.leased, thing.task.late = True, False
        elif kind == "end":
            self.touched.add(thing.task)
            self.reference.end(thing, *more)
        elif kind == "requeue":
            self.touched.add(thing.task)
            self.reference.requeue(thing, *more[:2])
            self.wait_for_keeper(thing.task)
            thing.task.soon = more[2] and thing.task.state == "scheduled"
        elif kind == "cancel":
            thing.state, thing.busy = "cancelled", None
            self.reference.gone(thing)
            self.reference.set_terms(thing, more[1])
        elif kind == "ask":
            thing.cancel_asked, thing.busy = True, None
            if thing.state in WAITS:
                thing.state = "cancelled"
                self.reference.gone(thing)
                self.wait_for_keeper(thing)
        elif kind == "change":
            before, terms = more
            thing.busy = None
            if thing.state == "ending":
                thing.state = before if before in WAITS else "ready" if before in ENDED else thing.due_state
            self.reference.change(thing, terms)
        elif kind == "batch":
            thing.committed = True
        elif kind == "checkpoint":
            thing.task.steps.setdefault(more[0], more[1])
            thing.writer = None
        elif kind == "retry":
            thing.since, thing.soon = more[0], False
            thing.busy, thing.attempts, thing.cancel_asked, thing.retried, thing.leased = None, 0, False, False, False
            thing.late = False
            thing.queue.tasks.add(thing)
            if thing.state != "ending":
                thing.state = "ready"
                self.reference.come(thing)
        elif kind == "settings":
            more[0]()
            thing.changed()
            thing.config_busy = None
            self.reference.settle(thing)

    def undo(self, session, count):
        """What was noted after the first so many has not happened."""
        while len(session.notes) > count:
            kind, thing, *more = session.notes.pop()
            if kind == "enqueue":
                del self.reference.tasks[thing.number]
                thing.queue.tasks.discard(thing)
            elif kind == "claim":
                self.touched.add(thing.task)
                self.reference.undo_claim(thing)
                self.wait_for_keeper(thing.task)
            elif kind in ("end", "requeue"):
                thing.ender, thing.permit_passed, thing.lane_passed, thing.task.busy = None, False, False, None
            elif kind in ("cancel", "change"):
                thing.state, thing.busy = more[0], more[1]
                self.reference.settle(thing.queue)
            elif kind == "batch":
                del self.reference.batches[thing.number]
            elif kind == "checkpoint":
                thing.writer = more[2]
            elif kind in ("ask", "retry"):
                thing.busy = None
            elif kind == "settings":
                thing.config_busy = more[1]

    def wait_for_time(self, task):
        """It waits now, unless it is too late for it, and may be about to be ready."""
        if task.late:
            self.wait_for_state(task, "cancelled")
            task.state = "cancelled"
            self.reference.gone(task)
        elif task.soon:
            self.wait_for_state(task, "ready")
            self.reference.due(task)

    def wait_for_keeper(self, task):
        """It cancels what was to be cancelled while it ran."""
        if task.state == "cancelled":
            self.wait_for_state(task, "cancelled")

    def wait_for_state(self, task, state):
        self.until(lambda: self.watch.value("SELECT state FROM fanout.tasks WHERE task = %s", task.number) == state, f"{task} is {state}")

    def until(self, condition, what):
        give_up = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > give_up:
                raise Wrong(f"this did not come true: {what}")
            time.sleep(0.005)

    # -- operations

    def backlog(self, queue, key=...):
        """Tasks of the queue, or of a partition, that wait, and those that open transactions bring."""
        def counts(place):
            return place[0] is queue and (key is ... or place[1] == key)
        return sum(counts((task.queue, task.key)) and (task.state in ("ready", "scheduled", "ending", "uncommitted") or
                                                       (task.busy is not None and task.state in ENDED))
                   for task in self.reference.tasks.values()) + \
            sum(counts(place) for session in self.sessions for place in self.moves(session, key is ...))

    @staticmethod
    def moves(session, between_queues):
        """Where its open transaction moves tasks to."""
        places = {}
        for kind, task, *more in session.notes or []:
            if kind != "change":
                continue
            before = places.get(task, (task.queue, task.key))
            place = places[task] = more[-1].get("queue", before[0]), more[-1].get("key", before[1])
            if place not in ((task.queue, task.key), before) and \
                    not (between_queues and place[0] in (task.queue, before[0])):
                yield place

    def is_full(self, queue, keys):
        """Would tasks of these partitions be too many?"""
        return (queue.max_backlog is not None and self.backlog(queue) + len(keys) > queue.max_backlog) or \
            any(limit is not None and self.backlog(queue, key) + keys.count(key) > limit
                for key in {*keys} - {None} for limit in [queue.lane(key).max_backlog or queue.partition_max_backlog])

    def has_room(self, session, queue, keys):
        """May tasks of these partitions be added?  Beyond max_backlog the server refuses, which ends a transaction."""
        if len(queue.tasks) + len(keys) > UNFINISHED:
            return False
        if not self.is_full(queue, keys):
            return True
        if session.notes is None:
            self.expect("FO003", session, "SELECT fanout.enqueue_many(%s, 'x', array_fill('1'::jsonb, ARRAY[%s::int]), partition_keys => %s)",
                        queue.name, len(keys), keys)
        return False

    def expect(self, sqlstate, session, query, *parameters):
        try:
            answer = session.execute(query, *parameters)
        except psycopg.Error as error:
            answer = error.diag.sqlstate
        if answer != sqlstate:
            raise Wrong(f"{query} {parameters}: {answer}, not {sqlstate}")

    def since(self, session, queue, number):
        """Since when the task waits: it was enqueued, or due."""
        if queue.aging is None:
            return {}
        return {"since": int(session.value("SELECT extract(epoch FROM greatest(enqueued_at, run_at)) * 1000000 FROM fanout.task"
                                           " WHERE id = %s", number))}

    def new_args(self):
        """Unlike all others."""
        self.calls += 1
        return self.calls

    def new_task(self, session, number, queue, key, group, priority, cost=1, far=False, max_attempts=None, timed=False, args=None):
        if number in self.reference.tasks:
            raise Wrong(f"task {number} was given before")
        task = Task(number, queue, key, priority, cost, far, max_attempts or queue.max_attempts, group)
        task.timed, task.busy, task.args = timed, session, args
        self.reference.tasks[number] = task
        queue.tasks.add(task)
        self.touched.add(task)
        return task

    def group(self, key):
        """Most tasks of a partition name the same fair group."""
        if key is not None and self.random.random() < 0.05:
            return self.random.choice([None, "g0", "g1"])
        return {"k0": "g0", "k1": "g0", "k2": "g1"}.get(key)

    def priority(self, choices):
        """Of odd seeds all have the usual one: what is read of a partition that had no place in memory is known to be its first then."""
        return self.random.choice(choices) if self.seed % 2 == 0 else 0

    def enqueue(self, session):
        queue, key = self.queue(), self.random.choice(self.keys)
        group, max_attempts = self.group(key), self.random.choice([None, 1, 2])
        priority, cost = self.priority([0, 0, 0, -1, 1, 5]), self.random.choice([1, 1, 1, 2, 7])
        if not self.has_room(session, queue, [key]):
            return
        time_ = self.time()
        deadline = self.random.choices([None, datetime.timedelta(hours=2), SOON], [14, 4, 1])[0]
        if deadline == SOON and ("delay" in time_ or (self.few_lanes and self.must_stay() > MUST_STAY // 4)):
            deadline = None         # too early, or to cancel it might find no lane
        args = self.new_args()
        number = session.call("enqueue", queue=queue.name, name="x", args=str(args), priority=priority, cost=cost, partition_key=key,
                              max_attempts=max_attempts, fair_group=group, deadline=deadline, **time_)
        task = self.new_task(session, number, queue, key, group, priority, cost, "delay" in time_, max_attempts, bool(time_), args)
        task.late, task.soon = deadline == SOON, time_.get("delay") == SOON
        vars(task).update(self.since(session, queue, number))
        self.note(session, "enqueue", task)

    def may_be_timed(self):
        return self.roomy or self.must_stay() <= MUST_STAY

    def time(self):
        """Arguments for a time."""
        if not self.may_be_timed():
            return {}
        return self.random.choices([{}, {"run_at": LONG_AGO}, {"delay": FAR}, {"delay": SOON}], [8, 8, 2, 1])[0]

    def enqueue_key(self, session):
        """With a key, that another task may hold."""
        queue, about, key = self.queue(), self.random.choice("abcdefgh"), self.random.choice(self.keys)
        begun = [task.about for task in queue.tasks if task.about and task.state in WAITS and (task.attempts or task.steps)]
        if begun and self.random.random() < 0.3:
            about = self.random.choice(begun)
        kinds = self.kinds(session)
        if any(about in other.keys for other in self.sessions if other is not session) or \
                any(task.about == about and task.busy is not None and kinds.get(task) != "enqueue" for task in self.reference.tasks.values()):
            return
        way = self.random.choice(["return", "return", "reject", "replace", "replace", "supersede", "debounce"])
        if not self.has_room(session, queue, [key]):
            return
        holder, priority = self.reference.holder(queue, about), self.priority([0, -1, 1])
        if way == "reject" and holder is not None:
            if session.notes is None:
                self.expect("FO006", session, "SELECT fanout.enqueue(%s, 'x', key => %s, on_conflict => 'reject')", queue.name, about)
            return
        args, held = self.new_args(), None
        arguments = {"queue": queue.name, "name": "x", "args": str(args), "key": about, "partition_key": key, "priority": priority}
        if way == "debounce":
            if not self.may_be_timed():
                return
            waits = self.random.choice([(FAR, None), (FAR, FAR), (FAR, AT_ONCE), (AT_ONCE, FAR), (AT_ONCE, None)])
            arguments.update(zip(("period", "max_wait"), waits))
            terms = {"far": True, "soon": AT_ONCE in waits}
        else:
            time_ = self.time()
            arguments.update(time_, on_conflict=way)
            terms = {"far": "delay" in time_, "soon": time_.get("delay") == SOON}
        if way in ("return", "reject") and self.far(0.4):
            held = self.far(0.1)
            arguments["key_ttl"] = FAR if held else AT_ONCE
        number = self.call_with_memory(session, "debounce" if way == "debounce" else "enqueue", **arguments)
        if number is None:
            return
        session.keys.add(about)
        replaces = way in ("replace", "debounce") and self.can_replace(holder, session)
        if holder is not None and (way == "return" or replaces):
            if number != holder.number:
                raise Wrong(f"key {about} is held by {holder}, not {number}")
            if replaces:
                self.withdraw(session, "change", holder, {
                    **terms, **self.since(session, queue, number), "timed": terms["far"], "priority": priority, "key": key, "cost": 1,
                    "max_attempts": queue.max_attempts, "group": None, "holds_on": None, "args": args})
            return
        if holder is not None and way == "supersede" and (holder.state in WAITS or holder.busy is session):
            self.withdraw(session, "cancel", holder)
        task = self.new_task(session, number, queue, key, None, priority, far=terms["far"], timed=terms["far"], args=args)
        task.about, task.holds_on, task.soon = about, held, terms["soon"]
        vars(task).update(self.since(session, queue, number))
        self.note(session, "enqueue", task)

    @staticmethod
    def can_replace(holder, session):
        return holder is not None and (holder.state in WAITS or holder.busy is session) and holder.attempts == 0 and not holder.steps

    def call_with_memory(self, session, function, **arguments):
        """None if there is too little of it."""
        return self.with_memory(session, lambda: session.call(function, **arguments))

    def with_memory(self, session, call):
        try:
            return call()
        except psycopg.Error as error:
            if self.roomy or error.diag.sqlstate != "53400":
                raise
            self.give_up(session)
            return None

    def enqueue_many(self, session):
        queue, count = self.queue(), self.random.choice([1, 3, 10, 30])
        priority = self.priority([0, 0, -2, 2])
        group = self.group(self.random.choice(self.keys))
        of_group = {"g0": ["k0", "k1"], "g1": ["k2"]}.get(group, [key for key in self.keys if key not in ("k0", "k1", "k2")])
        keys = [self.random.choice(of_group) for _ in range(count)]
        if self.random.random() < 0.4:
            keys = [keys[0]] * count
        if not self.has_room(session, queue, keys):
            return
        args = [self.new_args() for _ in range(count)]
        terms = [queue.name, args, priority, keys, group]
        if self.random.random() < 0.5:
            batch = self.fan_out(session, *terms)
            rows = session.execute("SELECT ordinal, task FROM fanout.collect(%s, '0')", batch.number)
        else:
            batch = None
            rows = session.execute(f"SELECT * FROM fanout.enqueue_many(%s, 'x', {JSONS}, priority => %s,"
                                   " partition_keys => %s, fair_group => %s)", *terms)
        since = self.since(session, queue, rows[0][1])
        for (_, number), key, args_ in zip(rows, keys, args):
            task = self.new_task(session, number, queue, key, group, priority, args=args_)
            vars(task).update(since, batch=batch)
            if batch is not None:
                batch.tasks.append(task)
        self.note_all(session, [*([("batch", batch)] if batch else []), *(("enqueue", self.reference.tasks[number]) for _, number in rows)])

    def fan_out(self, session, *terms):
        """A batch that is sealed."""
        join = "all" if len(terms[1]) > 10 and not self.roomy else self.random.choice(["all", "any", "n", "fail_fast"])
        count = self.random.choice([1, 2]) if join == "n" else None
        number = session.value(f"SELECT fanout.fan_out(%s, 'x', {JSONS}, priority => %s, partition_keys => %s, fair_group => %s,"
                               ' "join" => %s, join_count => %s)', *terms, join, count)
        batch = self.reference.batches[number] = Batch(number, join, count)
        return batch

    def take(self, session, queues, limit, rows):
        """They were dequeued; do so once more while there is nothing although there should, and memory is small."""
        give_up = time.monotonic() + PATIENCE
        while True:
            left = limit
            short = []
            for queue in queues:
                part = [(lease, task, attempt) for lease, task, name, attempt, *_ in rows if name == queue.name]
                if not self.reference.dequeue(queue, session.name, session, left, part):
                    short.append(queue)
                left -= len(part)
            for lease, number, _, _, *shown in rows:
                task = self.reference.tasks[number]
                if shown != [task.args, task.priority, task.steps]:
                    raise Wrong(f"{task} was given with args, priority and checkpoints {shown}, not {task.args}, {task.steps}")
                self.touched.add(task)
                self.note(session, "claim", self.reference.leases[lease])
            limit -= len(rows)
            if not short or limit == 0 or (self.few_lanes and self.all_lanes_taken(short)):
                return
            if self.roomy or time.monotonic() > give_up:
                raise Wrong(f"{session.name} got {rows}, and no more although {[queue.name for queue in short]} had some")
            time.sleep(0.002)
            rows = session.execute(DEQUEUE, [queue.name for queue in queues], session.name, limit)

    def show_memory(self):
        for query in ("SELECT item, value FROM fanout.status() WHERE item LIKE '%%memory%%' OR item IN ('refills', 'evictions')",
                      "SELECT queue, ready, scheduled, running, in_memory FROM fanout.queues",
                      "SELECT * FROM fanout.partitions"):
            for row in self.watch.execute(query):
                print(*row, sep="\t")
        for queue in self.reference.queues.values():
            print(queue.name, queue.turns)
            for group, turns in queue.group_turns.items():
                print(f"group {group} of {queue.name}", turns)
        for session in self.sessions:
            print(session.name, "open" if session.notes is not None else "idle", session.notes)

    def all_lanes_taken(self, queues):
        """Is there no lane for those partitions of the queues that could start something?"""
        used, all_ = self.watch.value("SELECT value FROM fanout.status() WHERE item = 'lanes in memory'").split(" of ")
        there = {tuple(row) for row in self.watch.execute(
            "SELECT queue, partition_key FROM fanout.partitions WHERE ready IS NOT NULL")}
        return used == all_ and all(key is not None and (queue.name, key) not in there
                                    for queue in queues for key in self.reference.look(queue))

    def dequeue(self, session):
        if not self.roomy and self.must_stay() > MUST_STAY:
            return
        queues = self.random.sample([*self.reference.queues.values()], self.random.choice([1, 1, 1, 2, 3]))
        limit = self.random.choice([1, 1, 2, 5]) if self.roomy else self.random.choice([1, 1, 2])
        self.take(session, queues, limit, session.execute(DEQUEUE, [queue.name for queue in queues], session.name, limit))

    def pass_deadline(self, session):
        """A task starts before its deadline or does not, and a transaction that decides about it may be open then."""
        queue, key = self.queue(), self.random.choice(self.keys)
        if session.notes is not None or not self.roomy or not self.has_room(session, queue, [key]):
            return
        args = self.new_args()
        number = session.call("enqueue", queue=queue.name, name="x", args=str(args), priority=-9, partition_key=key, deadline=SHORTLY)
        deadline = self.watch.value("SELECT deadline FROM fanout.tasks WHERE task = %s", number)
        task = self.new_task(session, number, queue, key, None, -9, args=args)
        vars(task).update(self.since(session, queue, number))
        self.note(session, "enqueue", task)
        self.begin(session)
        if self.random.random() < 0.2:
            did = session.call("reprioritize", task=number, priority=-8)
            if did:
                self.withdraw(session, "change", task, {"priority": -8})
        else:
            rows = session.execute(DEQUEUE, [queue.name], session.name, 3)
            did = self.watch.value("SELECT clock_timestamp() < %s", deadline)
            if did:
                self.take(session, [queue], 3, rows)
        if not did:                 # this machine is slow
            session.execute("ROLLBACK")
            self.undo(session, 0)
            session.notes = None
            queue.forget_turns()
        elif self.random.random() < 0.5:
            self.finish_transaction(session)
        self.until(lambda: self.watch.value("SELECT clock_timestamp() > %s", deadline), "the clock goes on")
        task.late = task.lease is None or task.lease.claimer is not None
        self.finish_transaction(session)
        if task.state in WAITS:
            self.wait_for_time(task)
            self.end_batches()

    def ending(self, session, lease, ends=True):
        lease.ender = lease.task.busy = session
        lease.ends = ends
        lease.ended = self.ended = self.ended + 1

    def complete(self, session):
        lease = self.lease(session)
        if lease is None:
            return
        if session.value("SELECT fanout.complete(%s::bigint)", lease.number) is not True:
            raise Wrong(f"lease {lease.number} was not completed")
        self.ending(session, lease)
        self.note(session, "end", lease, "succeeded")

    def complete_many(self, session):
        """Those that are lost, or were completed before, are left out."""
        leases = {lease.number: lease for lease in (self.lease(session) for _ in range(4)) if lease is not None}
        others = [10 ** 15, *[*self.reference.completed][-1:]]
        done = session.execute("SELECT * FROM fanout.complete(%s::bigint[])", sorted([*leases, *others]))
        if sorted(row[0] for row in done) != sorted(leases):
            raise Wrong(f"of leases {[*leases]} these were completed: {done}")
        for number in sorted(leases):
            self.ending(session, leases[number])
        self.note_all(session, [("end", leases[number], "succeeded") for number in sorted(leases)])

    def complete_and_dequeue(self, session):
        lease, queue = self.lease(session), self.queue()
        if lease is None or (not self.roomy and self.must_stay() > MUST_STAY):
            return
        limit, alone = self.random.choice([1, 2]), session.notes is None
        if alone:
            session.notes = []      # it is a transaction by itself
        self.ending(session, lease)
        self.note(session, "end", lease, "succeeded")
        self.take(session, [queue], limit, session.execute(
            f"SELECT {COLUMNS} FROM fanout.complete_and_dequeue(%s::bigint, NULL, %s, %s, max_tasks => %s)",
            lease.number, queue.name, session.name, limit))
        if alone:
            notes, session.notes = session.notes, None
            self.carry_out(notes)

    def fail(self, session):
        lease = self.lease(session)
        way = self.random.choice(["retry_in => '0'", "retry_in => '1 ms'", "retry_in => '1 hour'", "final => true", "error => 'x'"])
        if lease is None:
            return
        due = session.value(f"SELECT extract(epoch FROM fanout.fail(%s::bigint, {way}) - clock_timestamp())", lease.number)
        task = lease.task
        last = "final" in way or task.attempts >= task.max_attempts
        if (due is None) != (last or task.cancel_asked):
            raise Wrong(f"fail of {task}, attempt {task.attempts}, {way}: {due}")
        if due is not None and "error" in way:
            # an hour after the first attempt, two after the second, but 90 minutes at most; less up to a half
            most = 3600 if task.attempts == 1 else 5400
            if not most / 2 - 5 <= due <= most:
                raise Wrong(f"fail of {task}, attempt {task.attempts}: the next is due in {due} s")
        self.ending(session, lease, last or task.cancel_asked)
        if task.cancel_asked:
            self.note(session, "end", lease, "cancelled")
        elif last:
            self.note(session, "end", lease, "failed")
        else:
            self.note(session, "requeue", lease, "'0'" not in way, True, "1 ms" in way)

    def release(self, session):
        lease, far = self.lease(session), self.far(0.3)
        if lease is None:
            return
        session.execute("SELECT fanout.release(%s::bigint, %s)", lease.number, FAR if far else None)
        self.ending(session, lease, lease.task.cancel_asked)
        if lease.task.cancel_asked:
            self.note(session, "end", lease, "cancelled")
        else:
            self.note(session, "requeue", lease, far, False, False)

    def choice_of_tasks(self, session):
        """Those that nobody else decides about; or, now and then, that this transaction has enqueued, changed or retried."""
        kinds = self.kinds(session)
        tasks = [task for task in self.reference.tasks.values() if task.busy is None or kinds.get(task) in ("enqueue", "change", "retry")]
        mine = [task for task in tasks if task.busy is session]
        return mine if mine and self.random.random() < 0.4 else tasks

    def cancel(self, session):
        tasks = self.choice_of_tasks(session)
        if not tasks:
            return
        if not self.roomy and self.must_stay() > MUST_STAY:
            tasks = [task for task in tasks if task.state in WAITS and (task.leased or task.timed)] or tasks
        task = self.random.choice(tasks)
        can = task.state in WAITS or task.busy is session or (task.state == "running" and not task.cancel_asked)
        did = self.call_with_memory(session, "cancel", task=task.number)
        if did is None:
            return
        if did != can:
            raise Wrong(f"cancel of {task}: {did}")
        if can:
            self.note_cancel(session, task)

    def cancel_matching(self, session):
        """Tasks that others change may be missed or waited for, so there are to be none."""
        queue, kinds = self.queue(), self.kinds(session)
        if any(task.busy is not None and kinds.get(task) != "enqueue" or task.lease is not None and task.lease.claimer is not None
               for task in self.reference.tasks.values()):
            return
        batches = [task.batch for task in queue.tasks if task.batch is not None]
        terms = dict(self.random.sample([("partition_key", self.random.choice(self.keys[1:])), ("min_priority", 1), ("max_priority", -1),
                                         *([("batch", self.random.choice(batches).number)] if batches else [])], self.random.choice([1, 1, 2])))
        if self.random.random() < 0.1:
            terms = {"name": "x"}
        most = self.random.choice([1, 3, None]) if self.roomy else self.random.choice([1, 3])
        tests = {"partition_key": lambda task, value: task.key == value, "min_priority": lambda task, value: task.priority >= value,
                 "max_priority": lambda task, value: task.priority <= value, "name": lambda task, value: True,
                 "batch": lambda task, value: task.batch is not None and task.batch.number == value}
        matching = {task.number for task in queue.tasks if not task.cancel_asked and task.state != "ending" and
                    all(tests[name](task, value) for name, value in terms.items())}
        rows = self.with_memory(session, lambda: session.execute(
            f"SELECT * FROM fanout.cancel_matching(%s, {', '.join(f'{name} => %s' for name in terms)}, max_tasks => %s)",
            queue.name, *terms.values(), most))
        if rows is None:
            return
        cancelled = [row[0] for row in rows]
        if len({*cancelled}) != len(cancelled) or not {*cancelled} <= matching or len(cancelled) != min(most or 1000, len(matching)):
            raise Wrong(f"cancel_matching of {queue.name} {terms}, {most} at most: {cancelled} of {matching}")
        for number in cancelled:
            self.note_cancel(session, self.reference.tasks[number])

    def note_cancel(self, session, task):
        if task.state == "running":
            task.busy = session
            self.touched.add(task)
            self.note(session, "ask", task)
        else:
            self.withdraw(session, "cancel", task)

    def change(self, session):
        """Another priority, time, queue or partition for a task that waits, or is about to."""
        tasks = self.choice_of_tasks(session)
        if not tasks:
            return
        task = self.random.choice(tasks[-60:])
        can = task.state in WAITS or task.busy is session
        way = self.random.choice(["reprioritize", "reschedule", "move", "move"])
        if way == "reprioritize":
            terms = {"priority": self.priority([-2, 0, 1, 5])}
            arguments = terms
        elif way == "reschedule":
            arguments = self.random.choice([self.time(), {}]) or {"delay": "0"}
            delay = arguments.get("delay")
            terms = {"far": delay in (FAR, SOON), "soon": delay == SOON, "timed": True}
        else:
            queue, key = self.random.choice([None, self.queue()]), self.random.choice(self.keys)
            terms = {"key": key, **({"queue": queue} if queue else {})}
            arguments = {"partition_key": key} if key else {"unset": ["partition_key"]}
            if queue:
                arguments["queue"] = queue.name
            if not self.may_move(session, task, queue or task.queue, key, arguments):
                return
        did = self.call_with_memory(session, way, task=task.number, **arguments)
        if did is None:
            return
        if did != can:
            raise Wrong(f"{way} of {task}: {did}")
        if did:
            self.withdraw(session, "change", task, {**terms, **self.since(session, terms.get("queue", self.queue_of(session, task)), task.number)})

    @staticmethod
    def queue_of(session, task):
        """That it will be in at commit."""
        moves = [more[-1]["queue"] for kind, thing, *more in session.notes or [] if kind == "change" and thing is task and "queue" in more[-1]]
        return moves[-1] if moves else task.queue

    def may_move(self, session, task, queue, key, arguments):
        """Is there room for the task?  If not, see that it is refused."""
        if (queue, key) == (task.queue, task.key) and task.busy is None:
            return True
        if len(queue.tasks) >= UNFINISHED:
            return False
        if not self.is_full(queue, [key]):
            return True
        within = queue is task.queue and self.backlog(queue) >= (queue.max_backlog or 1000)     # the queue has it already
        if session.notes is None and task.state in WAITS and not within:
            self.expect("FO003", session, f"SELECT fanout.move(%s::bigint, {', '.join(f'{name} => %s' for name in arguments)})",
                        task.number, *arguments.values())
        return False

    def withdraw(self, session, what, task, *more):
        """The task waits, or will at commit, and is to be cancelled or changed."""
        before, busy = task.state, task.busy
        task.state, task.busy = "ending", session
        self.touched.add(task)
        self.note(session, what, task, before, busy, *more)
        self.reference.settle(task.queue)

    def retry(self, session):
        tasks = [task for task in self.reference.tasks.values() if task.busy is None and task.state in ENDED]
        if not tasks:
            return
        task = self.random.choice(tasks[-60:])
        if len(task.queue.tasks) > UNFINISHED:
            return
        did = session.value("SELECT fanout.retry(%s::bigint)", task.number)
        if did != (task.state != "succeeded"):
            raise Wrong(f"retry of {task}: {did}")
        if did:
            task.busy = session
            self.touched.add(task)
            self.note(session, "retry", task, self.since(session, task.queue, task.number).get("since", 0))

    def extend(self, session):
        lease = self.lease(session, committed=True)
        if lease is None:
            return
        if lease.task.cancel_asked:
            if session.notes is None:
                self.expect("FO002", session, "SELECT fanout.extend(%s::bigint)", lease.number)
        else:
            session.execute("SELECT fanout.extend(%s::bigint)", lease.number)

    def checkpoint(self, session):
        lease, step, value = self.lease(session), self.random.choice("st"), self.new_args()
        if lease is None:
            return
        query = "SELECT fanout.checkpoint(%s::bigint, %s, %s::int::text::jsonb)"
        if lease.task.cancel_asked:
            if session.notes is None:
                self.expect("FO002", session, query, lease.number, step, value)
            return
        known = {**{more[0]: more[1] for kind, thing, *more in session.notes or [] if kind == "checkpoint" and thing is lease},
                 **lease.task.steps}
        stored = session.value(query, lease.number, step, value)
        if stored != known.get(step, value):
            raise Wrong(f"checkpoint {step} of {lease.task} is {stored}, not {known.get(step, value)}")
        before, lease.writer = lease.writer, session
        self.note(session, "checkpoint", lease, step, stored, before)

    def expire(self, session):
        """Let a lease run out."""
        lease = self.lease(session, committed=True)
        if lease is None or lease.task.cancel_asked or session.notes is not None:
            return
        session.execute("SELECT fanout.extend(%s::bigint, '1 us')", lease.number)
        self.until(lambda: not self.watch.value("SELECT EXISTS (SELECT FROM fanout.leases WHERE lease = %s)", lease.number),
                   f"lease {lease.number} expires")
        self.touched.add(lease.task)
        if lease.task.attempts >= lease.task.max_attempts:
            self.reference.end(lease, "failed")
            self.end_batches()
        else:
            self.reference.requeue(lease, False, True)

    def repeat_or_lose(self, session):
        """Complete with a lease that was completed before, or that is lost."""
        if session.notes is not None:
            return
        if self.reference.completed and self.random.random() < 0.7:
            lease = self.random.choice([*self.reference.completed])
            if session.value("SELECT fanout.complete(%s::bigint)", lease) is not False:
                raise Wrong(f"lease {lease} was completed again")
            self.expect("FO001", session, "SELECT fanout.extend(%s::bigint)", lease)
        else:
            self.expect("FO001", session, "SELECT fanout.complete(%s::bigint)", 10 ** 15)

    def purge(self, session):
        """It waits for others' transactions, so there is to be none."""
        if any(other.notes is not None for other in self.sessions):
            return
        queue = self.queue()
        waiting = [task for task in queue.tasks if task.state in WAITS]
        session.execute("BEGIN")
        purged = session.call("purge_queue", queue=queue.name)
        if purged != len(waiting):
            raise Wrong(f"{purged} tasks of {queue.name} were purged, not {len(waiting)}")
        if self.random.random() < 0.6:
            session.execute("ROLLBACK")
            return
        session.execute("COMMIT")
        self.touched.update(waiting)
        for task in waiting:
            task.state = "cancelled"
            self.reference.gone(task)
        self.end_batches()

    # -- settings: one transaction at a time for each queue

    def configure(self, session, queue, change, query, *parameters):
        if queue.config_busy not in (None, session):
            return
        try:
            session.execute(query, *parameters)
        except psycopg.Error as error:
            if error.diag.sqlstate != "53400" or not self.few_lanes:
                raise
            self.give_up(session)
            return
        before, queue.config_busy = queue.config_busy, session
        self.note(session, "settings", queue, change, before)

    def pause_queue(self, session):
        queue = self.queue()
        pause = self.random.random() < 0.25
        self.configure(session, queue, lambda: setattr(queue, "paused", pause),
                       f"SELECT fanout.{'pause' if pause else 'resume'}_queue(%s)", queue.name)

    def partition(self):
        """One that settings are made for: not too many, as each takes a lane."""
        return self.random.choice(self.keys[1:4])

    def pause_partition(self, session):
        queue, key = self.queue(), self.partition()
        pause = self.random.random() < 0.25
        self.configure(session, queue, lambda: setattr(queue.lane(key), "paused", pause),
                       f"SELECT fanout.{'pause' if pause else 'resume'}_partition(%s, %s)", queue.name, key)

    def backpressure(self, session):
        """For long, for a moment, or not any more."""
        queue, key = self.queue(), self.random.choice([None, self.partition()])
        delay = self.random.choices([FAR, SOON, "-1 hour"], [2, 2, 6])[0]
        until = self.watch.value("SELECT clock_timestamp() + %s::interval", delay)

        def change():
            if delay == SOON:
                self.until(lambda: self.watch.value("SELECT clock_timestamp() > %s", until), "the clock goes on")
            setattr(queue if key is None else queue.lane(key), "held", delay == FAR)
        self.configure(session, queue, change, "SELECT fanout.backpressure(%s, %s, partition_key => %s)", queue.name, until, key)

    def alter(self, session):
        queue = self.reference.queues["limited"]
        setting = self.random.choice(["concurrency", "worker_concurrency", "partition_concurrency", "partition_retries"])
        value = self.random.choice(["block", "pass"] if setting == "partition_retries" else [None, 1, 2, 4, 8])
        if value is None:
            query, parameters = f"SELECT fanout.alter_queue(%s, unset => '{{{setting}}}')", []
        else:
            query, parameters = f"SELECT fanout.alter_queue(%s, {setting} => %s)", [value]
        self.configure(session, queue, lambda: queue.settings.update({setting: value}), query, queue.name, *parameters)

    def set_partition(self, session):
        queue, key = self.queue(), self.partition()
        value = self.random.choice([1, 2, 5])
        what = self.random.choice(["weight", "concurrency"] if self.few_lanes else ["weight", "concurrency", "rate_limit", "max_backlog"])
        value *= {"rate_limit": 40, "max_backlog": 8}.get(what, 1)
        self.configure(session, queue, lambda: setattr(queue.lane(key), what, value),
                       f"SELECT fanout.set_partition(%s, %s, {what} => %s{', rate_period => %s' if what == 'rate_limit' else ''})",
                       queue.name, key, value, *(["5 hours"] if what == "rate_limit" else []))

    def set_rates(self, session, queue, hours, units):
        def change():
            queue.rate_limits.pop(hours, None)
            if units is not None:
                queue.rate_limits[hours] = units
        self.configure(session, queue, change, "SELECT fanout.set_rate_limit(%s, %s, make_interval(hours => %s))",
                       queue.name, units, hours)

    def rate_limit(self, session):
        queue = self.reference.queues["rated"]
        if self.random.random() < 0.4 and not self.few_lanes:
            units = self.random.choice([10, 60, 200])
            self.configure(session, queue, lambda: queue.settings.update(partition_rate_limit=units),
                           "SELECT fanout.alter_queue(%s, partition_rate_limit => %s, partition_rate_period => '5 hours')",
                           queue.name, units)
        else:
            # as little as what has started, so that it binds for a while, and then more
            units = int(queue.rate.most) + self.random.choice([0, 5, 20, 100]) or 1
            self.set_rates(session, queue, self.random.choice([1, 2]), self.random.choice([None, units, units * 4]))

    # -- looking

    def why(self, session):
        tasks = [task for task in [*self.reference.tasks.values()][-200:] if task.busy is None and
                 (task.lease is None or task.lease.claimer is None)]
        if not tasks:
            return
        task = self.random.choice(tasks)
        code = self.watch.value("SELECT code FROM fanout.why(%s)", task.number)
        codes = self.reference.why(task)
        if code not in codes and not (not self.roomy and task.state == "ready" and code in ("on_disk", "turn", "no_worker", "rate_limit")):
            raise Wrong(f"why({task}) is {code}, not {codes}")

    def groups(self, queue):
        """The fair groups of partitions that have tasks."""
        return dict(self.watch.execute("SELECT partition_key, fair_group FROM fanout.partitions WHERE queue = %s AND backlog + running > 0", queue.name))

    def look(self, session):
        """Compare what was touched since the last look, and the counts of queues if no transaction is open."""
        tasks = {task.number: task for task in self.touched if task.busy is None}
        rows = {row[0]: row[1:] for row in self.watch.execute(
            "SELECT task, state, attempt, lease, queue, partition_key, priority FROM fanout.tasks WHERE task = ANY (%s)", [*tasks])}
        for number, task in tasks.items():
            if number not in self.reference.tasks:
                if number in rows:
                    raise Wrong(f"{task} was rolled back, and is there")
            elif number not in rows or rows[number][0] != task.state or \
                    (task.state in WAITS and rows[number][1] != task.attempts) or \
                    (task.lease is not None and rows[number][2] != task.lease.number) or \
                    rows[number][3:] != (task.queue.name, task.key, task.priority):
                raise Wrong(f"{task} is shown as {rows.get(number)}, attempts {task.attempts}")
        self.touched = {task for task in self.touched if task.busy is not None}
        if any(session.notes is not None for session in self.sessions):
            return
        self.look_at_batches()
        for queue in self.reference.queues.values():
            shown = self.watch.execute("SELECT scheduled, ready, running FROM fanout.queues WHERE queue = %s", queue.name)[0]
            counted = tuple(sum(task.state == state for task in queue.tasks) for state in ("scheduled", "ready", "running"))
            # one that is due, but on disk still, counts as scheduled here
            late = 0 if self.roomy else min(max(shown[0] - counted[0], 0), sum(task.timed and task.state == "ready" for task in queue.tasks))
            if shown != (counted[0] + late, counted[1] - late, counted[2]):
                raise Wrong(f"queue {queue.name} shows {shown} scheduled, ready and running, not {counted}")
            shown = dict(self.watch.execute("SELECT partition_key, running FROM fanout.partitions WHERE queue = %s AND running > 0", queue.name))
            counted = {}
            for lease in queue.leases:
                if lease.task.key is not None:
                    counted[lease.task.key] = counted.get(lease.task.key, 0) + 1
            if shown != counted:
                raise Wrong(f"partitions of {queue.name} show {shown} running, not {counted}")
            if self.roomy:
                for key, group in self.groups(queue).items():
                    if group != queue.lane(key).group:
                        raise Wrong(f"partition {key} of {queue.name} is in group {group}, not {queue.lane(key).group}")

    def look_at_batches(self):
        """What is shown of some."""
        batches = [*self.reference.batches.values()]
        for batch in {*batches[-2:], *self.random.sample(batches, min(len(batches), 2))}:
            shown = self.watch.execute("SELECT ordinal, task, status FROM fanout.collect(%s, '0')", batch.number)
            expected = [(n, task.number, task.state) for n, task in enumerate(batch.tasks, 1)]
            if shown != expected:
                raise Wrong(f"batch {batch.number} is {shown}, not {expected}")
            states = [task.state for task in batch.tasks]
            ended = batch.ended if batch.join != "all" else all(state in ENDED for state in states)
            shown = self.watch.execute("SELECT total, sealed, ended, scheduled, ready, running, succeeded, failed, cancelled"
                                       " FROM fanout.progress(%s)", batch.number)[0]
            expected = (len(states), True, ended, *(states.count(state) for state in (*WAITS[::-1], "running", *ENDED)))
            if shown != expected:
                raise Wrong(f"progress of batch {batch.number}, {batch.join}, is {shown}, not {expected}")

    def restart(self, session):
        for other in self.sessions:
            self.finish_transaction(other)
        for other in [*self.sessions, self.watch]:
            other.connection.close()
        subprocess.run([os.environ["REPO_DIR"] + "/test/harness/run_as", os.environ["PG_BINDIR"] + "/pg_ctl",
                        f"--pgdata={self.directory}/data", f"--log={self.directory}/server.log", "--mode=fast", "--wait",
                        "restart"], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        for other in [*self.sessions, self.watch]:
            other.connect()
        self.reference.rebuilds += 1
        self.touched.update(task for queue in self.reference.queues.values() for task in queue.tasks)
        self.until(lambda: self.watch.value("SELECT value FROM fanout.status() WHERE item = 'state'") == "ready", "memory is ready")
        for queue in self.reference.queues.values():
            # which one of several groups that its tasks name a partition is in depends on the order of the rebuild
            for key, group in self.groups(queue).items():
                if group in {task.group for task in queue.tasks if task.key == key}:
                    queue.lane(key).group = group
            queue.forget_turns()
            self.reference.settle(queue)
        self.look(session)

    # -- all of it

    def step(self):
        session = self.random.choice(self.sessions)
        operation = self.random.choices([*self.operations], [*self.operations.values()])[0]
        if session.notes is not None:
            session.left -= 1
            if session.left <= 0:
                operation = self.finish_transaction
        self.counts[operation.__name__] = self.counts.get(operation.__name__, 0) + 1
        self.history.append(f"{session.name} {operation.__name__}{'' if session.notes is None else ' in a transaction'}")
        operation(session)

    def run(self, count):
        for done in range(count):
            try:
                self.step()
            except (Wrong, psycopg.Error) as error:
                print(*self.history[-12:], f"operation {done + 1}: {error}", sep="\n")
                if isinstance(error, Wrong):
                    self.show_memory()
                    sys.exit(1)
                raise
        for session in self.sessions:
            self.finish_transaction(session)
        self.look(self.watch)
        violations = self.watch.execute("SELECT * FROM fanout._violations() WHERE violations > 0")
        if violations:
            raise Wrong(f"violations inside: {violations}")


def main():
    seed, operations = int(sys.argv[1]), int(sys.argv[2])
    comparison = Comparison(seed, sys.argv[3] if len(sys.argv) > 3 else None)
    begin = time.monotonic()
    comparison.run(operations)
    tasks = comparison.reference.tasks.values()
    print(f"seed {seed}: {operations} operations in {time.monotonic() - begin:.1f} s, {len(tasks)} tasks, "
          f"{sum(task.state in ENDED for task in tasks)} ended, {comparison.reference.rebuilds} restarts")


if __name__ == "__main__":
    main()
