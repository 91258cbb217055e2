#!/usr/bin/python3
"""The story through psycopg 3: with client-side and server-side parameters, in text and binary, prepared, and async.

Connects as libpq does, in a database with the extension. Prints a line "ok" or "not ok" for each thing it looks at.
"""
import asyncio
import datetime

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

ARGS = {"url": "https://example.org/ä?q='1'", "depth": 2, "tags": ["\"quoted\"", "\\", "\U0001f426"], "none": None}


def look(flavour, what, truth):
    print(f"{'ok' if truth else 'not ok'} - psycopg, {flavour}: {what}", flush=True)


def story(flavour, execute, transaction_rolled_back):
    """execute(query, parameters) gives the rows."""
    queue = f"psycopg {flavour}"

    def value(query, *parameters):
        return execute(query, parameters)[0][0]

    def sqlstate(query, *parameters):
        try:
            execute(query, parameters)
        except psycopg.Error as error:
            return error.diag.sqlstate
        return None

    look(flavour, "create_queue is true", value("SELECT fanout.create_queue(%s, lease => %s)", queue, "10 min") is True)

    task = value("SELECT fanout.enqueue(%s, 'fetch', %s)", queue, Jsonb(ARGS))
    look(flavour, "enqueue gives the task's id as a number", isinstance(task, int))
    [first] = execute("SELECT * FROM fanout.dequeue(%s, worker => %s, max_tasks => %s)", (queue, "me", 10))
    look(flavour, "dequeue gives the task", (first.task, first.queue, first.name) == (task, queue, "fetch"))
    look(flavour, "arguments come back as they went in", first.args == ARGS)
    look(flavour, "the first attempt has no checkpoints", (first.attempt, first.checkpoints) == (1, {}))
    look(flavour, "lease_until is a time with its zone",
         first.lease_until - datetime.timedelta(seconds=5) > datetime.datetime.now(datetime.timezone.utc))

    stored = [value("SELECT fanout.checkpoint(%s, 'downloaded', %s)", first.lease, Jsonb({"bytes": bytes_}))
              for bytes_ in (81234, 1)]
    look(flavour, "a checkpoint's first value stays", stored == [{"bytes": 81234}] * 2)
    due = value("SELECT fanout.fail(%s, 'timeout', retry_in => '0')", first.lease)
    look(flavour, "fail gives the time of the next attempt", isinstance(due, datetime.datetime))
    look(flavour, "the lease has ended: FO001",
         sqlstate("SELECT fanout.checkpoint(%s, 'parsed', NULL)", first.lease) == "FO001")
    [second] = execute("SELECT * FROM fanout.dequeue(%s, worker => %s, wait => %s)", (queue, "me", "10 s"))
    look(flavour, "the next attempt has the checkpoints",
         (second.task, second.attempt, second.checkpoints) == (task, 2, {"downloaded": {"bytes": 81234}}))
    done = [value("SELECT fanout.complete(%s, %s)", second.lease, Jsonb({"pages": 12})) for _ in range(2)]
    look(flavour, "complete is true, and false when it is repeated", done == [True, False])
    [outcome] = execute("SELECT * FROM fanout.result(%s)", (task,))
    look(flavour, "result gives the outcome", outcome == ("succeeded", {"pages": 12}, None))

    batch = value("SELECT fanout.fan_out(%s, %s::text[], %s::jsonb[])",
                  queue, ["a", "b", "c"], [Jsonb(n) for n in range(3)])
    tasks = execute("SELECT * FROM fanout.dequeue(%s, max_tasks => 5)", (queue,))
    look(flavour, "a fan-out comes in order", [(t.name, t.args) for t in tasks] == [("a", 0), ("b", 1), ("c", 2)])
    leases = [t.lease for t in tasks]
    gone = execute("SELECT fanout.complete(%s::bigint[], %s::jsonb[])",
                   (leases[::-1], [Jsonb(t.args * 10) for t in tasks[::-1]]))
    look(flavour, "complete with arrays gives the leases", sorted(row[0] for row in gone) == sorted(leases))
    collected = execute("SELECT * FROM fanout.collect(%s, timeout => '10 s')", (batch,))
    look(flavour, "collect gives the results in order",
         [(r.ordinal, r.status, r.result, r.error) for r in collected]
         == [(n + 1, "succeeded", n * 10, None) for n in range(3)])
    look(flavour, "CALL wait_batch", value("CALL fanout.wait_batch(%s, %s, NULL)", batch, "1 s") is True)

    large = {"text": "x" * 1_000_000}
    value("SELECT fanout.enqueue(%s, 'large')", queue)
    [third] = execute("SELECT * FROM fanout.dequeue(%s)", (queue,))
    look(flavour, "no arguments are None", third.args is None)
    value("SELECT fanout.complete(%s, %s)", third.lease, Jsonb(large))
    look(flavour, "a large result", execute("SELECT * FROM fanout.result(%s)", (third.task,))[0].result == large)

    transaction_rolled_back(queue)
    look(flavour, "what was rolled back never happened", execute("SELECT * FROM fanout.dequeue(%s)", (queue,)) == [])
    look(flavour, "an unknown queue: 42704", sqlstate("SELECT * FROM fanout.dequeue('no such queue')") == "42704")
    execute("SELECT fanout.drop_queue(%s)", (queue,))


def sync_story(flavour, connection, **options):
    def execute(query, parameters):
        return connection.execute(query, parameters, **options).fetchall()

    def transaction_rolled_back(queue):
        with connection.transaction(force_rollback=True):
            execute("SELECT fanout.enqueue(%s, 'never')", (queue,))
            execute("SELECT fanout.fan_out(%s, 'never', ARRAY[NULL, NULL]::jsonb[])", (queue,))

    story(flavour, execute, transaction_rolled_back)


async def async_connection():
    return await psycopg.AsyncConnection.connect(autocommit=True, row_factory=namedtuple_row)


def async_story():
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(async_connection())

    async def rows(query, parameters):
        return await (await connection.execute(query, parameters)).fetchall()

    async def rolled_back(queue):
        async with connection.transaction(force_rollback=True):
            await connection.execute("SELECT fanout.enqueue(%s, 'never')", (queue,))

    story("async", lambda query, parameters: loop.run_until_complete(rows(query, parameters)),
          lambda queue: loop.run_until_complete(rolled_back(queue)))
    loop.run_until_complete(connection.close())
    loop.close()


def stream_and_pipeline(connection):
    connection.execute("SELECT fanout.create_queue('psycopg stream')")
    with connection.pipeline():
        cursors = [connection.execute("SELECT fanout.enqueue('psycopg stream', 'one', %s)", (Jsonb(n),))
                   for n in range(100)]
        tasks = [cursor.fetchone()[0] for cursor in cursors]
    look("pipeline", "a hundred enqueues have a hundred ids", len(set(tasks)) == 100)
    batch = connection.execute("SELECT fanout.fan_out('psycopg stream', 'many', %s::jsonb[])",
                               ([Jsonb(n) for n in range(5000)],)).fetchone()[0]
    leases = []
    while len(leases) < 5100:
        rows = connection.execute("SELECT * FROM fanout.dequeue('psycopg stream', max_tasks => 1000)").fetchall()
        if not rows:
            break
        leases += [row.lease for row in rows]
        connection.execute("SELECT fanout.complete(%s::bigint[], %s::jsonb[])",
                           ([row.lease for row in rows], [Jsonb(row.args) for row in rows]))
    look("stream", "every task was given out once", len(set(leases)) == 5100)
    ordinals = [(row.ordinal, row.result) for row in
                connection.cursor().stream("SELECT * FROM fanout.collect(%s)", (batch,))]
    look("stream", "5000 results, row by row and in order", ordinals == [(n + 1, n) for n in range(5000)])
    with connection.cursor(binary=True).copy("COPY (SELECT ordinal FROM fanout.collect(%s)) TO STDOUT",
                                             (batch,)) as copy:
        look("copy", "5000 results by COPY", [int(row[0]) for row in copy.rows()] == list(range(1, 5001)))


def connect(**options):
    return psycopg.connect(autocommit=True, row_factory=namedtuple_row, **options)


if __name__ == "__main__":
    with connect() as c:
        sync_story("text", c)
        sync_story("binary", c, binary=True)
        sync_story("prepared", c, prepare=True)
        sync_story("prepared again", c, prepare=True)
        stream_and_pipeline(c)
    with connect(cursor_factory=psycopg.ClientCursor) as c:
        sync_story("client-side parameters", c)
    async_story()
