-- What the example keeps beside the queue: the texts, the search index, and the list of what was to be indexed.

CREATE EXTENSION IF NOT EXISTS pg_fanout;

-- The producer's list, to compare the outcome with.
CREATE TABLE source (
    ordinal bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    path    text NOT NULL
);

-- What step "read" leaves: a task that comes back goes on from here and does not touch the file again.
CREATE TABLE document_text (
    task    bigint PRIMARY KEY,
    lease   bigint NOT NULL,
    content text NOT NULL
);

-- What step "index" leaves. Deliberately without a unique constraint: that no document is here twice is what
-- pg_fanout promises, and the report checks it.
CREATE TABLE documents (
    path   text NOT NULL,
    task   bigint NOT NULL,
    lease  bigint NOT NULL,
    worker text NOT NULL,
    words  tsvector NOT NULL
);
CREATE INDEX ON documents USING gin (words);

-- Ten tasks at a time for each worker. A worker extends its leases while it works; those of one that died come back
-- when their time is over.
SELECT fanout.create_queue('indexing', worker_concurrency => 10, lease => :'lease');
