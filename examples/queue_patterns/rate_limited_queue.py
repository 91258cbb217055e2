#!/usr/bin/python3
"""A rate-limited queue: two starts in any ten seconds, however many workers there are."""
from story import Workers, connect, say, seconds


def work(task):
    say(f"call {task.args} starts")


with connect() as db:
    db.execute("SELECT fanout.create_queue('calls', rate_limit => 2, rate_period => %s)", (seconds(10),))
    say("6 calls are enqueued")
    db.execute("SELECT count(*) FROM fanout.enqueue_many('calls', 'call', '{1, 2, 3, 4, 5, 6}')")

Workers("calls", 3, work, patience=20).join()
say("all is done")
