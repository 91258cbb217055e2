/*
 * why.c
 *		What a task waits for, in words.
 *
 * A task may be held back by several things at a time; told is the one that
 * has to change first: what is wrong with the queue before what is wrong with
 * the partition, and both before its turn.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "groups.h"
#include "lane.h"
#include "lane_limits.h"
#include "registry.h"
#include "starts.h"
#include "storage.h"
#include "wait.h"
#include "window.h"

PG_FUNCTION_INFO_V1(fanout_why);

#define PLACES_COUNTED	1000	/* of a lane, from its first task on */

typedef enum Reason
{
	REASON_RUNNING,
	REASON_CANCELLED,
	REASON_ENDING,
	REASON_UNCOMMITTED,
	REASON_SCHEDULED,
	REASON_QUEUE_PAUSED,
	REASON_QUEUE_HELD,
	REASON_PARTITION_PAUSED,
	REASON_PARTITION_HELD,
	REASON_QUEUE_CONCURRENCY,
	REASON_PARTITION_CONCURRENCY,
	REASON_PARTITION_RETRY,
	REASON_RATE_LIMIT,
	REASON_PARTITION_RATE_LIMIT,
	REASON_ON_DISK,
	REASON_TURN,
	REASON_NO_WORKER,
	REASON_WORKERS
} Reason;

/* What its row tells of a task. */
typedef struct TaskRow
{
	int32		queue_id;
	int64		partition;
	TimestampTz run_at;
	TimestampTz deadline;
	const char *partition_key;
} TaskRow;

/* What memory says, copied out. */
typedef struct Facts
{
	Reason		reason;
	int64		lease;
	TimestampTz time;
	TimestampTz deadline;		/* until which it has to start; 0: none */
	bool		cancelled;
	int64		running;
	int64		limit;
	int64		other;			/* the task of its partition that it waits for */
	int64		place;			/* in its lane, from 1; 0: further back than was counted */
	int64		lanes;			/* that take turns in the queue; a fair group counts as one */
	int64		group_lanes;	/* that take turns in its fair group; 0: it is in none */
	char		worker[FANOUT_NAME_LEN];
} Facts;

/* The task's place in its lane. */
static int64
place_of(const Task *task)
{
	OrderNode  *node = order_first(&lane_of(task)->ready.set);

	for (int64 place = 1; place <= PLACES_COUNTED && node != NULL; place++)
	{
		if (node == &task->node)
			return place;
		node = order_next(node);
	}
	return 0;
}

static Reason
note_concurrency(Facts *facts, Reason reason, int64 running, int64 limit)
{
	facts->running = running;
	facts->limit = limit;
	return reason;
}

static Reason
note_time(Facts *facts, Reason reason, TimestampTz time)
{
	facts->time = time;
	return reason;
}

/* Why does a ready task not start, of a lane that may be NULL if it has no place in memory?  Under the lock. */
static Reason
look_at_lane(Queue *queue, Lane *lane, const Task *task, TimestampTz now, Facts *facts)
{
	const QueueSettings *settings = &queue->settings;
	Task	   *retry;
	TimestampTz at;

	if (settings->paused)
		return REASON_QUEUE_PAUSED;
	if (settings->held_until > now)
		return note_time(facts, REASON_QUEUE_HELD, settings->held_until);
	if (lane != NULL && lane_settings(lane)->paused)
		return REASON_PARTITION_PAUSED;
	if (lane != NULL && lane_settings(lane)->held_until > now)
		return note_time(facts, REASON_PARTITION_HELD, lane_settings(lane)->held_until);
	if (settings->concurrency > 0 && queue->running >= settings->concurrency)
		return note_concurrency(facts, REASON_QUEUE_CONCURRENCY, queue->running, settings->concurrency);
	if (lane != NULL && lane_limit(lane) > 0 && lane->running >= lane_limit(lane))
		return note_concurrency(facts, REASON_PARTITION_CONCURRENCY, lane->running, lane_limit(lane));
	retry = lane != NULL ? lane_awaited_retry(lane) : NULL;
	if (retry != NULL)
	{
		facts->other = retry->node.id;
		return note_time(facts, REASON_PARTITION_RETRY, retry->node.key);
	}
	if (lane != NULL && lane_throttled_until(lane) > now && (lane_first(lane) != NULL || window_is_bounded(&lane->ready)))
		return note_time(facts, REASON_PARTITION_RATE_LIMIT, lane_throttled_until(lane));
	at = queue_admits_start(queue, now);
	if (at != 0)
		return note_time(facts, REASON_RATE_LIMIT, at);
	if (task == NULL)
		return REASON_ON_DISK;

	facts->place = place_of(task);
	facts->lanes = queue->turns.set.count;
	facts->group_lanes = lane->group != 0 ? group_of(lane)->lanes.set.count : 0;
	if (facts->place == 1 && queue_lane_in_turn(queue) == lane)
		return queue->waiter_count == 0 ? REASON_NO_WORKER : REASON_WORKERS;
	return REASON_TURN;
}

/* False if memory knows nothing of the queue. */
static bool
look(int64 number, const TaskRow *row, Facts *facts)
{
	TimestampTz now = GetCurrentTimestamp();
	Queue	   *queue;
	Task	   *task;

	memset(facts, 0, sizeof(Facts));
	dispatcher_lock();
	queue = queue_find(MyDatabaseId, row->queue_id);
	task = task_find(MyDatabaseId, number);
	if (queue != NULL && queue->state == QUEUE_OPEN && task != NULL && task->state == TASK_SCHEDULED && task->node.key <= now)
	{
		/* the keeper is about to say so */
		(void) queue_promote_due(queue, now);
		queue_wake(queue);
	}
	facts->deadline = task != NULL ? task->deadline : row->deadline;
	if (queue == NULL)
		 /* nothing to be told */ ;
	else if (task != NULL && task->state == TASK_RUNNING)
	{
		facts->reason = REASON_RUNNING;
		facts->lease = lease_of(task)->node.id;
		facts->time = lease_of(task)->node.key;
		facts->cancelled = (task->flags & TASK_FLAG_CANCELLED) != 0;
		memcpy(facts->worker, worker_of(lease_of(task))->key.name, FANOUT_NAME_LEN);
	}
	else if (task != NULL && task->state == TASK_ENDING)
		facts->reason = REASON_ENDING;
	else if (task != NULL && task->state == TASK_ENQUEUED)
		facts->reason = REASON_UNCOMMITTED;
	else if (task != NULL && (task->flags & TASK_FLAG_CANCELLED) != 0)
		facts->reason = REASON_CANCELLED;
	else if (task != NULL && task->state == TASK_SCHEDULED)
		facts->reason = note_time(facts, REASON_SCHEDULED, task->node.key);
	else if (task == NULL && row->run_at > now)
		facts->reason = note_time(facts, REASON_SCHEDULED, row->run_at);
	else
	{
		bool		ready = task != NULL && task->state == TASK_READY;

		facts->reason = look_at_lane(queue, ready ? lane_of(task) : lane_find(queue, row->partition),
									 ready ? task : NULL, now, facts);
	}
	dispatcher_unlock();
	return queue != NULL;
}

/* The code and the words for what was found. */
static const char *
describe(const Facts *facts, const char *partition, char **words)
{
	const char *time = facts->time != 0 ? timestamptz_to_str(facts->time) : "";

	switch (facts->reason)
	{
		case REASON_RUNNING:
			*words = psprintf("it runs, with lease " INT64_FORMAT " of worker \"%s\" until %s", facts->lease,
							  facts->worker, time);
			if (facts->cancelled)
				*words = psprintf("%s, and is to be cancelled", *words);
			return facts->cancelled ? "cancelling" : "running";
		case REASON_CANCELLED:
			*words = pstrdup("it is to be cancelled, and the keeper is about to do that");
			return "cancelling";
		case REASON_ENDING:
			*words = pstrdup("a transaction that is open cancels or changes it");
			return "ending";
		case REASON_UNCOMMITTED:
			*words = pstrdup("the transaction that has enqueued it is open");
			return "uncommitted";
		case REASON_SCHEDULED:
			*words = psprintf("it is not due until %s", time);
			return "scheduled";
		case REASON_QUEUE_PAUSED:
			*words = pstrdup("the queue is paused");
			return "queue_paused";
		case REASON_QUEUE_HELD:
			*words = psprintf("a worker has asked to let nothing of the queue start until %s", time);
			return "queue_held";
		case REASON_PARTITION_PAUSED:
			*words = psprintf("partition \"%s\" is paused", partition);
			return "partition_paused";
		case REASON_PARTITION_HELD:
			*words = psprintf("a worker has asked to let nothing of partition \"%s\" start until %s", partition, time);
			return "partition_held";
		case REASON_QUEUE_CONCURRENCY:
			*words = psprintf("the queue's concurrency is used up: " INT64_FORMAT " of " INT64_FORMAT, facts->running,
							  facts->limit);
			return "concurrency";
		case REASON_PARTITION_CONCURRENCY:
			*words = psprintf("the concurrency of partition \"%s\" is used up: " INT64_FORMAT " of " INT64_FORMAT,
							  partition, facts->running, facts->limit);
			return "partition_concurrency";
		case REASON_PARTITION_RETRY:
			*words = psprintf("it waits for task " INT64_FORMAT " of partition \"%s\", which is due again at %s", facts->other,
							  partition, time);
			return "partition_retry";
		case REASON_RATE_LIMIT:
			*words = psprintf("the queue's rate limit lets none start until %s", time);
			return "rate_limit";
		case REASON_PARTITION_RATE_LIMIT:
			*words = psprintf("the rate limit of partition \"%s\" lets none start until %s", partition, time);
			return "partition_rate_limit";
		case REASON_ON_DISK:
			*words = pstrdup("it is on disk until memory has room for it, behind others of its lane");
			return "on_disk";
		case REASON_NO_WORKER:
			*words = pstrdup("it is next, and no worker waits for it");
			return "no_worker";
		case REASON_WORKERS:
			*words = pstrdup("it is next; those workers that wait are on their way, or at their own limit");
			return "workers";
		case REASON_TURN:
			break;
	}
	*words = psprintf(facts->place > 0 ? "it waits for its turn: number " INT64_FORMAT " of its lane" :
					  "it waits for its turn: behind the first " INT64_FORMAT " of its lane",
					  facts->place > 0 ? facts->place : (int64) PLACES_COUNTED);
	if (facts->group_lanes > 1)
		*words = psprintf("%s, " INT64_FORMAT " lanes of its fair group take turns", *words, facts->group_lanes);
	if (facts->lanes > 1)
		*words = psprintf(facts->group_lanes > 0 ? "%s, and its fair group is one of " INT64_FORMAT " that take turns" :
						  "%s, and " INT64_FORMAT " lanes take turns", *words, facts->lanes);
	return "turn";
}

/* The word for an outcome, or NULL. */
static const char *
finished_as(char outcome)
{
	switch (outcome)
	{
		case OUTCOME_SUCCEEDED:
			return "succeeded";
		case OUTCOME_FAILED:
			return "failed";
		case OUTCOME_CANCELLED:
			return "cancelled";
	}
	return NULL;
}

static Datum
return_reason(FunctionCallInfo fcinfo, const char *code, const char *words)
{
	TupleDesc	desc;
	Datum		values[2] = {CStringGetTextDatum(code), CStringGetTextDatum(words)};
	bool		nulls[2] = {false, false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/* Throws if there is none, or if the caller may not see its queue. */
static void
read_row(int64 task, TaskRow *row)
{
	TaskReader *reader = task_reader_open();
	ItemPointerData nowhere;
	Datum		values[TASK_COLUMNS];
	bool		nulls[TASK_COLUMNS];

	ItemPointerSetInvalid(&nowhere);
	if (!task_reader_fetch(reader, task, &nowhere, values, nulls))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("task " INT64_FORMAT " does not exist", task)));
	row->queue_id = DatumGetInt32(values[TASK_QUEUE]);
	row->partition = nulls[TASK_LANE] ? 0 : DatumGetInt64(values[TASK_LANE]);
	row->run_at = nulls[TASK_RUN_AT] ? 0 : DatumGetTimestampTz(values[TASK_RUN_AT]);
	row->deadline = nulls[TASK_DEADLINE] ? 0 : DatumGetTimestampTz(values[TASK_DEADLINE]);
	row->partition_key = nulls[TASK_PARTITION_KEY] ? "" : TextDatumGetCString(values[TASK_PARTITION_KEY]);
	task_reader_close(reader);

	if (!registry_queue_exists(row->queue_id))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the queue of task " INT64_FORMAT " does not exist", task)));
	if (!registry_queue_visible(row->queue_id))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for task " INT64_FORMAT, task)));
}

Datum
fanout_why(PG_FUNCTION_ARGS)
{
	int64		task;
	TaskRow		row;
	Facts		facts;
	const char *code;
	char	   *words;

	require_readable();
	PreventCommandDuringRecovery("fanout.why()");
	require_arg(fcinfo, 0, "task");
	(void) require_database();
	task = PG_GETARG_INT64(0);
	read_row(task, &row);

	code = finished_as(outcome_of(task));
	if (code != NULL)
		words = psprintf("it has %s", strcmp(code, "cancelled") == 0 ? "been cancelled" : code);
	else if (look(task, &row, &facts))
	{
		code = describe(&facts, row.partition_key, &words);
		if (facts.deadline != 0 && facts.reason != REASON_RUNNING && facts.reason != REASON_CANCELLED)
			words = psprintf("%s, and has to start before %s", words, timestamptz_to_str(facts.deadline));
	}
	else
		throw_queue_gone("of the task");
	return return_reason(fcinfo, code, words);
}
