CREATE EXTENSION IF NOT EXISTS pg_fanout;

-- Conversations with a model are tasks of queue "agents"; the tools that it calls are tasks of queue "tools".
SELECT fanout.create_queue('agents'), fanout.create_queue('tools');

-- What happened in the world outside, written in transactions of its own: what was done twice is here twice.
CREATE TABLE side_effects (
    at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    who  text NOT NULL,
    what text NOT NULL,
    call text NOT NULL
);
