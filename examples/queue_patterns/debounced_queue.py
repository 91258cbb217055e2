#!/usr/bin/python3
"""A debounced queue: a task runs once nobody has asked for it for a while, with the arguments of who asked last."""
from psycopg.types.json import Jsonb

from story import Workers, connect, say, seconds, sleep


latest = ""         # what was indexed last


def work(task):
    global latest
    latest = task.args["text"]
    say(f"index: \"{latest}\"")


def edit(db, text):
    """Somebody types. The document is indexed once it has not changed for 2 s, and after 6.5 s at the latest."""
    say(f"edit:  \"{text}\"")
    db.execute("SELECT fanout.debounce('documents', 'index', 'document 7', %s, period => %s, max_wait => %s)",
               (Jsonb({"text": text}), seconds(2), seconds(6.5)))


with connect() as db:
    db.execute("SELECT fanout.create_queue('documents')")
    workers = Workers("documents", 2, work, patience=20)

    for text in "Once", "Once upon", "Once upon a time":
        edit(db, text)
        sleep(1)
    while latest != text:
        sleep(0.1)

    # who does not stop is indexed all the same
    for n in range(60):
        edit(db, f"Version {n + 1}")
        sleep(1)
        if latest.startswith("Version"):
            break
    edit(db, "The end")
    workers.join()
say("all is done")
