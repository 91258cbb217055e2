#!/usr/bin/python3
"""A worker for the queue "indexing": reads files and indexes their text.

Start as many as you like. Each connects as libpq does (PGHOST, PGDATABASE, ...) and ends on SIGTERM, once it has
finished what it has in hand. With WORKER_LOG set it notes in that file when it took and finished what.

Three things make it survive crashes, its own and the server's:
- Step "read" is a checkpoint, stored in one transaction with the text: whoever gets the task next skips the step.
- The index entry and the task's completion are one transaction: both happen, or neither.
- When the connection breaks, it connects again and goes on under the leases that it has.
"""
import collections
import gzip
import hashlib
import io
import os
import signal
import socket
import time
import zlib

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

WORKER = f"{socket.gethostname()}:{os.getpid()}"
MAX_TASKS = 10                  # to ask for at once; the queue's worker_concurrency is the limit
HEARTBEAT = 1.0                 # seconds; well below the queue's lease
MAX_TEXT = 200_000              # bytes; a tsvector has room for 1 MB
RECONNECT_FOR = 120.0           # seconds

LEASE_LOST = "FO001"
CANCELLED = "FO002"


class LeaseLost(Exception):
    """The task is no longer ours: the lease ended before we were done."""


class Cancelled(Exception):
    """Somebody has cancelled the task: it is ours until we let it go."""


class Database:
    """A connection that is made again when it breaks."""

    def __init__(self):
        self.connection = None

    def connect(self):
        give_up = time.monotonic() + RECONNECT_FOR
        while True:
            try:
                return psycopg.connect(autocommit=True, row_factory=namedtuple_row,
                                       options="-c client_min_messages=error")
            except psycopg.OperationalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)

    def run(self, work):
        """Runs work(connection) in a transaction; again, if the connection breaks meanwhile.

        Whether a commit that was under way went through is then unknown, so work() must bear to run twice.
        """
        while True:
            if self.connection is None:
                self.connection = self.connect()
            try:
                answer = None
                with self.connection.transaction():
                    answer = work(self.connection)
                return answer
            except psycopg.Error as error:
                if error.diag.sqlstate == LEASE_LOST:
                    raise LeaseLost from error
                if error.diag.sqlstate == CANCELLED:
                    raise Cancelled from error
                if not self.connection.closed:
                    raise
                self.connection.close()
                self.connection = None


class Worker:
    def __init__(self):
        self.database = Database()
        self.to_read = collections.deque()
        self.to_index = collections.deque()
        self.last_heartbeat = time.monotonic()
        self.stopping = False
        self.log_file = open(os.environ.get("WORKER_LOG", os.devnull), "a", buffering=1)

    def in_hand(self):
        return len(self.to_read) + len(self.to_index)

    def log(self, event, task):
        self.log_file.write(f"{WORKER} {time.time():.6f} {event} {task.lease} {task.task}\n")

    def main(self):
        signal.signal(signal.SIGTERM, self.stop)
        while self.in_hand() or not self.stopping:
            if self.in_hand() <= MAX_TASKS / 2 and not self.stopping:
                self.take()
            self.heartbeat()
            if self.to_read:
                task = self.to_read.popleft()
                if self.do(self.read, task):
                    self.to_index.append(task)
            elif self.to_index:
                self.do(self.index, self.to_index.popleft())

    def stop(self, *_):
        self.stopping = True

    def take(self):
        """Leases what there is, waiting for it if there is nothing else to do."""
        wait = "0" if self.in_hand() else "2s"
        tasks = self.database.run(lambda connection: connection.execute(
            "SELECT * FROM fanout.dequeue('indexing', worker => %s, max_tasks => %s, wait => %s)",
            (WORKER, MAX_TASKS, wait)).fetchall())
        for task in tasks:
            self.log("claim", task)
            if "read" in task.checkpoints:      # somebody did that step before us
                self.to_index.append(task)
            else:
                self.to_read.append(task)

    def heartbeat(self):
        """Extends the leases in hand, and drops the tasks whose leases are lost or that have been cancelled.

        By their numbers and not with fanout.heartbeat(worker): that would also keep tasks which were leased to us
        when the connection broke, so that we never heard of them.
        """
        if time.monotonic() < self.last_heartbeat + HEARTBEAT or not self.in_hand():
            return
        leases = [task.lease for task in (*self.to_read, *self.to_index)]
        held = self.database.run(lambda connection: {row[0] for row in connection.execute(
            "SELECT fanout.extend(%s::bigint[])", (leases,))})
        for tasks in self.to_read, self.to_index:
            for task in [task for task in tasks if task.lease not in held]:
                tasks.remove(task)
                self.let_go(task)
        self.last_heartbeat = time.monotonic()

    def do(self, step, task):
        """Runs one step of the task; true if the task goes on."""
        try:
            step(task)
            return True
        except (LeaseLost, Cancelled):
            self.let_go(task)
        except (OSError, psycopg.Error) as error:
            self.database.run(lambda connection: connection.execute(
                "SELECT fanout.fail(%s, %s)", (task.lease, str(error))))
            self.log("failed", task)
        return False

    def let_go(self, task):
        """Drops a task that cannot be gone on with: its lease is lost, or it ends as cancelled once it is released.

        Of several leases release leaves out those that are lost, so this need not know which it is.
        """
        released = self.database.run(lambda connection: connection.execute(
            "SELECT fanout.release(%s::bigint[])", ([task.lease],)).fetchall())
        self.log("cancelled" if released else "lost", task)

    def read(self, task):
        """Step "read": the text, with size and digest of the file as the checkpoint."""
        self.log("read", task)
        with open(task.args["path"], "rb") as file:
            content = file.read()
        digest = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        text = plain_text(content)

        def store(connection):
            connection.execute("SELECT fanout.checkpoint(%s, 'read', %s)", (task.lease, Jsonb(digest)))
            connection.execute("INSERT INTO document_text VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                               (task.task, task.lease, text))
        self.database.run(store)

    def index(self, task):
        """Step "index", the last one: the entry and the task's outcome in one transaction."""
        self.log("index", task)

        def store(connection):
            words = connection.execute("""
                INSERT INTO documents
                SELECT %s, task, %s, %s, to_tsvector('english', content) FROM document_text WHERE task = %s
                RETURNING length(words)""",
                (task.args["path"], task.lease, WORKER, task.task)).fetchone()[0]
            done = connection.execute("SELECT fanout.complete(%s, %s)",
                                      (task.lease, Jsonb({"path": task.args["path"], "words": words}))).fetchone()[0]
            if not done:        # it went through the first time, when the connection broke
                raise psycopg.Rollback
        self.database.run(store)
        self.log("done", task)


def plain_text(content):
    """The beginning of the text, unpacked; without what a text in the database cannot hold."""
    try:
        with gzip.open(io.BytesIO(content)) as file:
            content = file.read(MAX_TEXT)
    except (OSError, EOFError, zlib.error):
        pass                    # not packed
    return content[:MAX_TEXT].decode("utf-8", "ignore").replace("\0", "")


if __name__ == "__main__":
    Worker().main()
