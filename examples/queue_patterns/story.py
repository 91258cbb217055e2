"""What the three programs share: a clock that prints, and workers in threads."""
import os
import threading
import time

import psycopg
from psycopg.rows import namedtuple_row

SCALE = float(os.environ.get("SCALE", "1"))     # of all times; 0.1 to see it go by ten times as fast

begin = time.monotonic()
printing = threading.Lock()


def connect():
    """As libpq does: PGHOST, PGDATABASE and the rest."""
    return psycopg.connect(autocommit=True, row_factory=namedtuple_row)


def seconds(number):
    """So many seconds of the story, as an interval."""
    return f"{number * SCALE} s"


def sleep(number):
    time.sleep(number * SCALE)


def say(text):
    """A line with the time since the story began."""
    with printing:
        print(f"{(time.monotonic() - begin) / SCALE:6.1f} s  {text}", flush=True)


class Workers:
    """Threads that each take a task, do it, and take the next, until none has come for some time."""

    def __init__(self, queue, count, work, patience):
        self.queue, self.work, self.patience = queue, work, patience
        self.threads = [threading.Thread(target=self.run, args=[f"worker {n + 1}"]) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, name):
        with connect() as db:
            while True:
                task = db.execute("SELECT * FROM fanout.dequeue(%s, worker => %s, wait => %s)",
                                  (self.queue, name, seconds(self.patience))).fetchone()
                if task is None:
                    return
                self.work(task)
                db.execute("SELECT fanout.complete(%s::bigint)", (task.lease,))

    def join(self):
        for thread in self.threads:
            thread.join()
