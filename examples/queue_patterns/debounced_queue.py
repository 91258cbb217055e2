#!/usr/bin/python3
"""A debounced queue: a task runs once nobody has asked for it for a while, with the arguments of who asked last."""
from psycopg.types.json import Jsonb

from story import Workers, connect, say, seconds, sleep


def work(task):
    say(f"index: \"{task.args['text']}\"")


def edit(db, text):
    """Somebody types. The document is indexed once it has not changed for 2 s, and after 6.5 s at the latest."""
    say(f"edit:  \"{text}\"")
    db.execute("SELECT fanout.debounce('documents', 'index', 'document 7', %s, period => %s, max_wait => %s)",
               (Jsonb({"text": text}), seconds(2), seconds(6.5)))


with connect() as db:
    db.execute("SELECT fanout.create_queue('documents')")
    workers = Workers("documents", 2, work, patience=10)

    for text in "Once", "Once upon", "Once upon a time":
        edit(db, text)
        sleep(1)
    sleep(3)

    # who does not stop for so long is indexed all the same
    for n in range(8):
        edit(db, f"Version {n + 1}")
        sleep(1)
    workers.join()
say("all is done")
