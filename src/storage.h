/*
 * storage.h
 *		Reading and writing the log's tables directly.
 */
#ifndef FANOUT_STORAGE_H
#define FANOUT_STORAGE_H

#include "executor/tuptable.h"
#include "utils/jsonb.h"
#include "utils/relcache.h"

#include "dispatch.h"
#include "registry.h"

/* Columns, in the order of src/sql/02_tables.sql. */
enum TaskColumn
{
	TASK_ID, TASK_ENQUEUED_AT, TASK_QUEUE, TASK_NAME, TASK_ARGS, TASK_BATCH, TASK_LANE, TASK_PARTITION_KEY,
	TASK_PRIORITY, TASK_RUN_AT, TASK_PARENT, TASK_MAX_ATTEMPTS, TASK_RANK, TASK_DEADLINE, TASK_KEY_UNTIL, TASK_COST,
	TASK_FAIR_GROUP, TASK_KEY, TASK_COLUMNS
};
enum AttemptColumn
{
	ATTEMPT_LEASE, ATTEMPT_TASK, ATTEMPT_AT, ATTEMPT_UNTIL, ATTEMPT_EVENT, ATTEMPT_WORKER, ATTEMPT_ERROR,
	ATTEMPT_COLUMNS
};
enum CheckpointColumn
{
	CHECKPOINT_TASK, CHECKPOINT_LEASE, CHECKPOINT_AT, CHECKPOINT_STEP, CHECKPOINT_VALUE, CHECKPOINT_COLUMNS
};
enum OutcomeColumn
{
	OUTCOME_TASK, OUTCOME_LEASE, OUTCOME_CLAIMED_AT, OUTCOME_FINISHED_AT, OUTCOME_ATTEMPT, OUTCOME_STATUS,
	OUTCOME_WORKER, OUTCOME_VALUE, OUTCOME_COLUMNS
};

#define LOG_MAX_COLUMNS		TASK_COLUMNS

/* What is inserted into the log of one kind, some rows at a time. */
typedef struct LogWriter LogWriter;

extern void storage_init(void);

/* The index that is the primary key of a table of the log. */
extern Oid	primary_key_of(Relation relation);

extern LogWriter *log_writer_open(LogKind kind, int64 expected_rows);
extern void log_writer_add(LogWriter *writer, const Datum *values, const bool *nulls, ItemPointer tid_out);
extern void log_writer_close(LogWriter *writer);

/* A row of fanout.task, wherever it is; false if there is none.  The values live as long as the slot. */
typedef struct TaskReader TaskReader;

extern TaskReader *task_reader_open(void);
extern bool task_reader_fetch(TaskReader *reader, int64 task, ItemPointer tid, Datum *values, bool *nulls);
extern void task_reader_close(TaskReader *reader);

/* The task's checkpoints as one object; NULL if there are none, or they are too large for one. */
extern Jsonb *checkpoints_of(int64 task, bool *too_large);

/* The value of one step; false if it has none.  "value" is NULL for a stored NULL. */
extern bool checkpoint_find(int64 task, text *step, Jsonb **value);

/* The status of the task's outcome, or 0. */
extern char outcome_of(int64 task);

#endif							/* FANOUT_STORAGE_H */
