#!/usr/bin/python3
"""One of those who use the server while it is under stress: a worker, an enqueuer or a meddler.

    actors.py worker|enqueue|meddle NAME SEED LOG

Connects as libpq does, again and again, until SIGTERM. Writes down what it did, one JSON object a line, with times in
microseconds from the server's clock; what it is about to do is written before it is done where that may remain unknown.
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
}
RATES = {"rated": {500_000: 20, 2_000_000: 60}}     # units by period, in microseconds
PARTITION_RATES = {"rated": {1_000_000: 5}}
KEYS = [None, *(f"k{n}" for n in range(8))]
NOW = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"


class Actor:
    def __init__(self, name, seed, log):
        self.name = name
        self.random = random.Random(seed)
        self.file = open(log, "a", buffering=1)
        self.connection = None
        self.stopping = False
        signal.signal(signal.SIGTERM, self.stop)

    def stop(self, *_):
        self.stopping = True

    def log(self, event, **what):
        self.file.write(json.dumps({"event": event, **what}) + "\n")

    def execute(self, query, *parameters):
        cursor = self.connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def value(self, query, *parameters):
        return self.execute(query, *parameters)[0][0]

    def main(self):
        while not self.stopping:
            try:
                if self.connection is None:
                    self.connection = psycopg.connect(autocommit=True, connect_timeout=5, options="-c client_min_messages=error")
                self.step()
            except psycopg.Error as error:
                if self.connection is not None and not self.connection.closed and error.diag.sqlstate not in ("57P01", "57P03", "53400"):
                    self.log("error", sqlstate=error.diag.sqlstate, text=str(error))
                if self.connection is not None:
                    self.connection.close()
                self.connection = None
                time.sleep(0.05)


class Worker(Actor):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.stalled = []           # leases that it lets run out

    def claim(self, query, *parameters):
        """Dequeue, and write down what was given before anybody knows whether it will be kept."""
        rows = self.execute(query, *parameters)
        leases = [lease for lease, _ in rows]
        for lease, task, queue, key, cost, at, until in self.execute(
                "SELECT l.lease, l.task, l.queue, t.partition_key, coalesce(t.cost, 1), (extract(epoch FROM l.claimed_at) * 1000000)::bigint,"
                " (extract(epoch FROM l.lease_until) * 1000000)::bigint"
                " FROM fanout.leases l JOIN fanout.task t ON t.id = l.task WHERE l.lease = ANY (%s)", leases):
            self.log("claim", lease=lease, task=task, queue=queue, key=key, cost=cost, at=at, until=until, worker=self.name)
        return rows

    def take(self):
        queues = self.random.sample([*QUEUES], self.random.choice([1, 1, 2, 3]))
        return self.claim("SELECT lease, task FROM fanout.dequeue(%s::text[], %s, max_tasks => %s, wait => %s)",
                          queues, self.name, self.random.choice([1, 1, 2, 5]), self.random.choice([None, "50 ms", "200 ms"]))

    def step(self):
        self.execute("BEGIN")
        if self.random.random() < 0.1:
            self.execute("SAVEPOINT s")
            self.undo(self.take(), "ROLLBACK TO SAVEPOINT s")
        rows = self.take()
        if self.random.random() < 0.1:
            time.sleep(self.random.random() * 0.02)
            self.undo(rows, "ROLLBACK")
            return
        self.execute("COMMIT")
        self.log("kept", leases=[lease for lease, _ in rows])
        while rows:
            time.sleep(self.random.choice([0, 0.001, 0.005, 0.02]))
            lease, _ = rows.pop(0)
            rows += self.finish(lease)
        if self.stalled and self.random.random() < 0.3:
            self.finish(self.stalled.pop(0))

    def undo(self, rows, command):
        at = self.value(NOW)
        self.execute(command)
        self.log("undone", leases=[lease for lease, _ in rows], at=at)

    def finish(self, lease):
        """Any of the ways in which an attempt can go; returns what was claimed in its place."""
        way = self.random.random()
        if way < 0.04:
            self.stalled.append(lease)
        elif way < 0.044:
            os._exit(1)
        elif way < 0.6:
            self.end(lease, "complete", "SELECT fanout.complete(%s::bigint, '1')")
        elif way < 0.72:
            return self.complete_and_dequeue(lease)
        elif way < 0.82:
            self.end(lease, "fail", "SELECT fanout.fail(%s::bigint, 'x', retry_in => '0')")
        elif way < 0.86:
            self.end(lease, "fail", "SELECT fanout.fail(%s::bigint, 'x', final => true)")
        elif way < 0.94:
            self.end(lease, "release", f"SELECT fanout.release(%s::bigint, '{self.random.choice([0, 0, 30])} ms')")
        else:
            self.end(lease, None, "SELECT fanout.complete(%s::bigint)")
            self.end(lease, "complete", "SELECT fanout.complete(%s::bigint)")
        return []

    def end(self, lease, how, query):
        """how: None if it is to be rolled back."""
        try:
            self.execute("BEGIN")
            did = self.value(query, lease)
            self.log("ending", lease=lease, at=self.value(NOW))
            self.execute("COMMIT" if how else "ROLLBACK")
            if how:
                self.log("ended", lease=lease, how=how, did=did is not False)
            else:
                self.log("not ended", lease=lease)
        except psycopg.Error as error:
            self.lost(lease, error)

    def lost(self, lease, error):
        if error.diag.sqlstate not in ("FO001", "FO002"):
            raise error
        self.execute("ROLLBACK")
        self.log("lost", lease=lease)

    def complete_and_dequeue(self, lease):
        # the new claim may have the old one's permit, so the old one ends before it
        try:
            self.execute("BEGIN")
            self.log("ending", lease=lease, at=self.value(NOW))
            rows = self.claim("SELECT lease, task FROM fanout.complete_and_dequeue(%s::bigint, '2', %s, %s, max_tasks => 2)",
                              lease, self.random.choice([*QUEUES]), self.name)
            self.execute("COMMIT")
            self.log("ended", lease=lease, how="complete", did=True)
            self.log("kept", leases=[row[0] for row in rows])
            return rows
        except psycopg.Error as error:
            self.lost(lease, error)
            return []


class Enqueuer(Actor):
    def step(self):
        queue, count = self.random.choice([*QUEUES]), self.random.choice([1, 3, 10, 40])
        if sum(self.execute("SELECT coalesce(ready + scheduled, 0) FROM fanout.queues WHERE queue = %s", queue)[0]) > 400:
            time.sleep(0.02)
            return
        keys = [self.random.choice(KEYS) for _ in range(count)]
        commits = self.random.random() < 0.85
        self.execute("BEGIN")
        if self.random.random() < 0.2:
            self.execute("SAVEPOINT s")
            tasks = self.enqueue(queue, count, keys)
            self.execute("ROLLBACK TO SAVEPOINT s")
            self.log("never", tasks=tasks)
        tasks = self.enqueue(queue, count, keys)
        self.execute("COMMIT" if commits else "ROLLBACK")
        self.log("enqueued" if commits else "never", tasks=tasks)
        time.sleep(self.random.random() * 0.01)

    def enqueue(self, queue, count, keys):
        return [row[0] for row in self.execute(
            "SELECT task FROM fanout.enqueue_many(%s, 'x', array_fill('1'::jsonb, ARRAY[%s::int]), priority => %s, cost => %s, delay => %s, max_attempts => 4, partition_keys => %s)",
            queue, count, self.random.choice([0, 0, -1, 1]), self.random.choice([1, 1, 2, 3]),
            self.random.choice([None, None, None, "20 ms"]), keys)]


class Meddler(Actor):
    def step(self):
        self.random.choice([self.alter, self.alter, self.set_partition, self.pause, self.resume, self.cancel, self.retry, self.purge])()
        time.sleep(self.random.random() * 0.05)

    def alter(self):
        """The limits of the queue that changes, with the time before and after."""
        limit, each = self.random.choice([1, 2, 4, 8]), self.random.choice([1, 2, 3])
        self.log("limit", queue="changing", limit=limit, each=each, at=self.value(NOW))
        self.execute("BEGIN")
        self.execute("SELECT fanout.alter_queue('changing', concurrency => %s, partition_concurrency => %s)", limit, each)
        committed = self.random.random() < 0.8
        self.execute("COMMIT" if committed else "ROLLBACK")
        self.log("limited", at=self.value(NOW), committed=committed)

    def set_partition(self):
        queue, key = self.random.choice([*QUEUES]), self.random.choice(KEYS[1:])
        self.execute("SELECT fanout.set_partition(%s, %s, weight => %s)", queue, key, self.random.choice([1, 2, 5]))

    def pause(self):
        queue, key = self.random.choice([*QUEUES]), self.random.choice(KEYS)
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
        return [row[0] for row in self.execute(
            "SELECT task FROM fanout.tasks WHERE state = ANY (%s) ORDER BY random() LIMIT 3", states)]

    def cancel(self):
        self.execute("BEGIN")
        self.execute("SELECT fanout.cancel(%s::bigint[], 'meddled')", self.tasks(["ready", "scheduled", "running"]))
        self.execute("COMMIT" if self.random.random() < 0.7 else "ROLLBACK")

    def retry(self):
        self.execute("BEGIN")
        self.execute("SELECT fanout.retry(%s::bigint[])", self.tasks(["failed", "cancelled"]))
        self.execute("COMMIT" if self.random.random() < 0.7 else "ROLLBACK")

    def purge(self):
        if self.random.random() < 0.1:
            self.execute("SELECT fanout.purge_queue(%s)", self.random.choice([*QUEUES]))


if __name__ == "__main__":
    kind, name, seed, log = sys.argv[1:]
    {"worker": Worker, "enqueue": Enqueuer, "meddle": Meddler}[kind](name, int(seed), log).main()
