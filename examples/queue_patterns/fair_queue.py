#!/usr/bin/python3
"""A fair queue: five tasks at once, one a tenant. Who has many tasks does not make the others wait."""
import threading

from psycopg.types.json import Jsonb

from story import Workers, connect, say, sleep

TASKS = {"acme": 6, "globex": 2, "initech": 1, "hooli": 2, "umbrella": 1, "stark": 1}

running = []
most = 0
lock = threading.Lock()


def work(task):
    global most
    tenant = task.args["tenant"]
    with lock:
        running.append(tenant)
        most = max(most, len(running))
        say(f"{tenant} {task.args['number']} starts; {len(running)} run: {', '.join(sorted(running))}")
    sleep(1)
    with lock:
        running.remove(tenant)


with connect() as db:
    # the two limits: in all, and of each partition
    db.execute("SELECT fanout.create_queue('exports', concurrency => 5, partition_concurrency => 1)")

    tasks = [{"tenant": tenant, "number": n + 1} for tenant, count in TASKS.items() for n in range(count)]
    say(f"{len(tasks)} tasks are enqueued, those of acme first")
    db.execute("SELECT count(*) FROM fanout.enqueue_many('exports', 'export', %s::jsonb[], partition_keys => %s)",
               ([Jsonb(task) for task in tasks], [task["tenant"] for task in tasks]))

Workers("exports", 8, work, patience=2).join()
say(f"all is done; at most {most} ran at once")
