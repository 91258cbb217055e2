#!/usr/bin/python3
"""An agent: a workflow that asks a model, runs the tools that the model calls in parallel, and asks the model again.

Takes one task from queue "agents", works it to its end, and prints the answer. Kill it whenever you like and start it
again: the model's answer that it had is a checkpoint, the tool calls that it issued are found again by the name of
their step, and those that completed stay completed.
"""
import os
import socket
import sys
import uuid

import psycopg
from psycopg.rows import namedtuple_row
from psycopg.types.json import Jsonb

WORKER = f"{socket.gethostname()}:{os.getpid()}"


def main():
    # The server looks every half second whether we are still there, also while we wait in a query.
    connection = psycopg.connect(autocommit=True, row_factory=namedtuple_row,
                                 options="-c client_connection_check_interval=500ms")
    # Bound to the session: when this process dies the task is free for another at once.
    task = connection.execute(
        "SELECT * FROM fanout.dequeue('agents', worker => %s, wait => '30s', bind_to_session => true)",
        (WORKER,)).fetchone()
    if task is None:
        sys.exit("nothing to do")
    print(f"attempt {task.attempt}: {task.args['question']}", flush=True)
    answer = converse(connection, task)
    connection.execute("SELECT fanout.complete(%s, %s)", (task.lease, Jsonb({"answer": answer})))
    print(answer, flush=True)


def converse(connection, task):
    # A model does not answer the same thing twice, so what it said is kept, and a replay goes on from there.
    def ask_model(step, context):
        if step in task.checkpoints:
            print(f"{step}: had been answered", flush=True)
            return task.checkpoints[step]
        answer = model(connection, step, context)
        return connection.execute("SELECT fanout.checkpoint(%s, %s, %s)",
                                  (task.lease, step, Jsonb(answer))).fetchone()[0]

    calls = ask_model("model-1", task.args["question"])["tool_calls"]

    # Under the lease and a step's name this is done once: a replay gets the same batch with the same tasks.
    batch = connection.execute(
        "SELECT fanout.fan_out('tools', %s::text[], %s::jsonb[], lease => %s, step => 'tools-1')",
        ([call["tool"] for call in calls], [Jsonb(call) for call in calls], task.lease)).fetchone()[0]
    print(f"tools-1: batch {batch}", flush=True)

    # Wait in slices, and keep the lease meanwhile.
    while not connection.execute("SELECT fanout.wait(%s::bigint, timeout => '5s')", (batch,)).fetchone()[0]:
        connection.execute("SELECT fanout.extend(%s)", (task.lease,))
    results = connection.execute("SELECT * FROM fanout.collect(%s)", (batch,)).fetchall()
    for result in results:
        print(f"tools-1: {result.ordinal} {result.status} {result.result['text']}", flush=True)

    return ask_model("model-2", [result.result["text"] for result in results])["text"]


def model(connection, step, context):
    """Stands for the call of a language model: slow, dear, and different each time."""
    connection.execute("INSERT INTO side_effects (who, what, call) VALUES (%s, 'model', %s)", (WORKER, step))
    if step == "model-2":
        return {"text": "; ".join(context) + "."}
    return {"tool_calls": [{"id": str(uuid.uuid4()), "tool": tool, "about": about} for tool, about in [
        ("weather", "Lisbon"), ("weather", "Oslo"), ("flights", "Lisbon - Oslo"), ("exchange_rate", "EUR - NOK"),
        ("hotels", "Oslo")]]}


if __name__ == "__main__":
    main()
