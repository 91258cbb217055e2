/*
 * results.c
 *		Waiting for tasks and batches to end, and collecting what they gave.
 *
 * Whether something has ended is read from the tables, never from memory: an
 * outcome that is seen here is there to be collected, and a server that has
 * no memory to look at (a standby) can tell it too.  Memory only says when to
 * look again: a backend that waits registers first, for the tasks it waits
 * for, then looks, and sleeps until so many of them have ended as it takes
 * at least.  So no end is missed, and a batch of 100,000 is counted a few
 * times, not 100,000 times.
 *
 * A sleep ends after a second at the latest, for what memory does not tell;
 * after longer if looking is expensive, so that it takes a twentieth of the
 * time at most.
 *
 * The tasks of a batch are ranges of ids, which are read in chunks.  A task
 * that has no outcome is looked for in memory first and in the tables after
 * that: one that ends in between then shows its outcome.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/datum.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "arguments.h"
#include "batch.h"
#include "points.h"
#include "registry.h"
#include "results.h"
#include "snapshot.h"
#include "spi.h"
#include "storage.h"
#include "views.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fanout_collect);
PG_FUNCTION_INFO_V1(fanout_result);
PG_FUNCTION_INFO_V1(fanout_wait_tasks);
PG_FUNCTION_INFO_V1(fanout_wait_batch);
PG_FUNCTION_INFO_V1(fanout_call_wait_batch);

/* More ends than will ever come: another reason must wake us. */
#define NOT_BY_ENDS			(PG_INT64_MAX / 2)

#define FALLBACK_INTERVAL	USECS_PER_SEC
#define LOOK_SHARE			20	/* looking takes no more than this fraction of the time */
#define COLLECT_CHUNK		1000	/* tasks whose outcomes are read in one go */

/* Single tasks, of which all are waited for. */
typedef struct TaskList
{
	Target		target;
	ArrayType  *ids;			/* each once */
	int64		count;
} TaskList;

static SpiStatement select_batch = {
	"SELECT owner::oid, join_policy, coalesce(join_count, 1), sealed, ended_at IS NOT NULL FROM fanout.batch WHERE id = $1",
	1, {INT8OID}
};

/* At least a row, without a part if the batch has none. */
static SpiStatement select_parts = {
	"SELECT p.first_task, p.tasks FROM fanout.batch b LEFT JOIN fanout.batch_part p ON p.batch = b.id"
	" WHERE b.id = $1 ORDER BY p.first_task", 1, {INT8OID}
};

/* A range is counted by a subquery of its own, so that it is always a scan of the index from here to there. */
static SpiStatement count_ended = {
	"SELECT b.sealed, b.ended_at IS NOT NULL, coalesce(sum(p.tasks), 0)::bigint, coalesce(sum(c.ended), 0)::bigint,"
	"       coalesce(min(p.first_task) < (SELECT below FROM fanout.removed), false)"
	"  FROM fanout.batch b LEFT JOIN fanout.batch_part p ON p.batch = b.id"
	"  LEFT JOIN LATERAL (SELECT count(*) AS ended FROM fanout.outcome o"
	"       WHERE o.task >= p.first_task AND o.task < p.first_task + p.tasks) c ON true"
	" WHERE b.id = $1 GROUP BY b.id", 1, {INT8OID}
};
static SpiStatement count_outcomes = {
	"SELECT b.sealed, b.ended_at IS NOT NULL, coalesce(sum(p.tasks), 0)::bigint, coalesce(sum(c.ended), 0)::bigint,"
	"       coalesce(min(p.first_task) < (SELECT below FROM fanout.removed), false),"
	"       coalesce(sum(c.succeeded), 0)::bigint, coalesce(sum(c.failed), 0)::bigint"
	"  FROM fanout.batch b LEFT JOIN fanout.batch_part p ON p.batch = b.id"
	"  LEFT JOIN LATERAL (SELECT count(*) AS ended, count(*) FILTER (WHERE o.status = 's') AS succeeded,"
	"              count(*) FILTER (WHERE o.status = 'f') AS failed FROM fanout.outcome o"
	"       WHERE o.task >= p.first_task AND o.task < p.first_task + p.tasks) c ON true"
	" WHERE b.id = $1 GROUP BY b.id", 1, {INT8OID}
};

/*
 * The same where tasks may have been removed, which had ended: those are counted
 * that have not, by their rows.  NULL if the batch itself is removed by now.
 */
static SpiStatement count_unfinished = {
	"SELECT sum(p.tasks - u.unfinished)::bigint FROM fanout.batch_part p, LATERAL (SELECT count(*) AS unfinished"
	"  FROM fanout.task t WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks"
	"   AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)) u WHERE p.batch = $1", 1, {INT8OID}
};

static SpiStatement select_outcomes = {
	"SELECT task, status, CASE WHEN status = 's' THEN value END, CASE WHEN status <> 's' THEN value #>> '{}' END"
	"  FROM fanout.outcome WHERE task >= $1 AND task < $2 ORDER BY task",
	2, {INT8OID, INT8OID}
};

/* Tasks whose queue has been dropped are no more, as in the views. */
static SpiStatement select_task_queues = {
	"SELECT c.queue, c.tasks FROM (SELECT t.queue, count(*) AS tasks FROM fanout.task t WHERE t.id = ANY ($1) GROUP BY t.queue) c"
	" WHERE EXISTS (SELECT FROM fanout.queue q WHERE q.id = c.queue)", 1, {INT8ARRAYOID}
};
static SpiStatement select_missing_task = {
	"SELECT min(u) FROM unnest($1) u WHERE NOT EXISTS"
	" (SELECT FROM fanout.task t JOIN fanout.queue q ON q.id = t.queue WHERE t.id = u)", 1, {INT8ARRAYOID}
};
static SpiStatement count_tasks = {
	"SELECT count(*) FROM fanout.task WHERE id = ANY ($1)", 1, {INT8ARRAYOID}
};
static SpiStatement count_ended_tasks = {
	"SELECT count(*) FROM fanout.outcome WHERE task = ANY ($1)", 1, {INT8ARRAYOID}
};

/* Also where the session is terminated, since others would go on setting the latch of what was ours. */
static void
stop_listening(int code, Datum arg)
{
	abandon_waits();
}

/* From now on, ends of the target's tasks are counted. */
static void
listen_for(const Target *target)
{
	Database   *database;

	(void) require_database();
	dispatcher_lock();
	stop_waiting_for_results();
	database = database_find(MyDatabaseId);
	if (database != NULL)
		wait_for_results(database, target->batch, target->first_task, target->last_task, NOT_BY_ENDS);
	dispatcher_unlock();
}

/* Now that it is known how many ends it takes: let these wake us. */
static void
expect_ends(int64 ends)
{
	dispatcher_lock();
	waiter_of_backend()->hits_wanted = ends;
	dispatcher_unlock();
}

/* Is there a reason to look again?  Also if memory was cleared, and we with it. */
static bool
was_woken(void)
{
	Waiter	   *waiter = waiter_of_backend();
	bool		woken;

	dispatcher_lock();
	woken = !waiter->waits_for_results || waiter->hits >= waiter->hits_wanted;
	dispatcher_unlock();
	return woken;
}

static void
sleep_until_woken(const Target *target, int64 until)
{
	expect_ends(target->ends_wanted);
	if (target->drop_snapshot)
		release_snapshot();
	while (!was_woken() && wait_on_latch(until, PG_WAIT_EXTENSION))
		;
	if (target->drop_snapshot)
		take_snapshot();
}

/* Look and sleep by turns. */
static bool
look_until_ended(Target *target, int64 deadline)
{
	for (;;)
	{
		int64		begun;
		int64		now;
		int64		interval;

		listen_for(target);
		begun = wait_clock();
		if (target->look(target))
			return true;
		now = wait_clock();
		if (now >= deadline)
			return false;
		interval = Max(FALLBACK_INTERVAL, (now - begun) * LOOK_SHARE);
		sleep_until_woken(target, Min(deadline, now + interval));
	}
}

/* Wait for the target to end; has it?  A standby does not wait, nobody would wake it. */
static bool
await(Target *target, int64 deadline)
{
	volatile bool ended = target->look(target);

	if (ended || RecoveryInProgress() || wait_clock() >= deadline)
		return ended;

	PG_ENSURE_ERROR_CLEANUP(stop_listening, (Datum) 0);
	{
		ended = look_until_ended(target, deadline);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_listening, (Datum) 0);
	abandon_waits();
	return ended;
}

static JoinPolicy
policy_of(const char *name)
{
	if (strcmp(name, "all") == 0)
		return JOIN_ON_ALL;
	return strcmp(name, "fail_fast") == 0 ? JOIN_ON_FAILURE : JOIN_ON_SUCCESSES;
}

/* Has the batch ended, by what was last read of it? */
bool
batch_has_ended(const Batch *batch)
{
	return batch->ended_early ||
		(batch->sealed && batch->ended >= batch->total) ||
		(batch->policy == JOIN_ON_SUCCESSES && batch->succeeded >= batch->successes) ||
		(batch->policy == JOIN_ON_FAILURE && batch->failed > 0);
}

/* How many more tasks must end before the batch can have ended? */
static int64
batch_ends_wanted(const Batch *batch)
{
	int64		wanted = batch->sealed ? batch->total - batch->ended : NOT_BY_ENDS;

	if (batch->policy == JOIN_ON_SUCCESSES)
		wanted = Min(wanted, batch->successes - batch->succeeded);

	/*
	 * Any one may fail.  In a large batch it is the keeper that tells which did, since looking costs.
	 */
	if (batch->policy == JOIN_ON_FAILURE)
		wanted = Min(wanted, batch->total / 1000 + 1);
	return wanted;
}

static bool
look_at_batch(Target *target)
{
	Batch	   *batch = (Batch *) target;
	bool		by_all = batch->policy == JOIN_ON_ALL;
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(target->batch)};
	bool		isnull;

	spi_begin(&scope);
	if (spi_read_latest(by_all ? &count_ended : &count_outcomes, values, NULL) != 1)
		throw_missing_batch(target->batch);
	batch->sealed = DatumGetBool(spi_value(0, 1, &isnull));
	batch->ended_early = DatumGetBool(spi_value(0, 2, &isnull));
	batch->total = spi_int64(0, 3);
	batch->ended = spi_int64(0, 4);
	if (!by_all)
	{
		batch->succeeded = spi_int64(0, 6);
		batch->failed = spi_int64(0, 7);
	}
	if (batch->ended < batch->total && DatumGetBool(spi_value(0, 5, &isnull)))
	{
		(void) spi_read_latest(&count_unfinished, values, NULL);
		batch->ended = DatumGetInt64(spi_value(0, 1, &isnull));
		if (isnull)
			throw_missing_batch(target->batch);
	}
	spi_end(&scope);

	target->ends_wanted = batch_ends_wanted(batch);
	return batch_has_ended(batch);
}

/* The batch of that id, if it is there and the caller's. */
void
open_batch(int64 id, Batch *batch)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(id)};
	Oid			owner = InvalidOid;
	bool		isnull;

	memset(batch, 0, sizeof(Batch));
	batch->target.look = look_at_batch;
	batch->target.batch = id;

	spi_begin(&scope);
	if (spi_read_latest(&select_batch, values, NULL) == 1)
	{
		owner = DatumGetObjectId(spi_value(0, 1, &isnull));
		batch->policy = policy_of(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2));
		batch->successes = spi_int64(0, 3);
		batch->sealed = DatumGetBool(spi_value(0, 4, &isnull));
		batch->ended_early = DatumGetBool(spi_value(0, 5, &isnull));
	}
	spi_end(&scope);

	check_batch_owner(id, owner);
}

/* When a wait ends by its argument; without one, at the cap. */
static int64
arg_deadline(FunctionCallInfo fcinfo, int arg)
{
	return wait_deadline(arg_duration(fcinfo, arg, "timeout", PG_INT64_MAX), true);
}

Datum
fanout_wait_batch(PG_FUNCTION_ARGS)
{
	Batch		batch;
	int64		deadline;

	require_readable();
	require_arg(fcinfo, 0, "batch");
	deadline = arg_deadline(fcinfo, 1);
	open_batch(PG_GETARG_INT64(0), &batch);
	PG_RETURN_BOOL(await(&batch.target, deadline));
}

TupleDesc
row_type(FunctionCallInfo fcinfo)
{
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	return BlessTupleDesc(desc);
}

/* A procedure: the transaction it is called in ends when it first sleeps. */
Datum
fanout_call_wait_batch(PG_FUNCTION_ARGS)
{
	Batch		batch;
	int64		deadline = PG_INT64_MAX;
	Datum		values[1];
	bool		nulls[1] = {false};

	require_readable();
	require_nonatomic(fcinfo, "fanout.wait_batch()");
	require_arg(fcinfo, 0, "batch");
	if (!PG_ARGISNULL(1))
		deadline = wait_deadline(arg_duration(fcinfo, 1, "timeout", 0), false);
	open_batch(PG_GETARG_INT64(0), &batch);
	batch.target.drop_snapshot = true;

	values[0] = BoolGetDatum(await(&batch.target, deadline));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(row_type(fcinfo), values, nulls)));
}

/* The queues of the tasks; their number, and in "found" how many of the tasks there are. */
static int
read_task_queues(ArrayType *ids, int32 **queues, int64 *found)
{
	MemoryContext caller = CurrentMemoryContext;
	SpiScope	scope;
	Datum		values[1] = {PointerGetDatum(ids)};
	uint64		rows;
	bool		isnull;

	spi_begin(&scope);
	rows = spi_read_latest(&select_task_queues, values, NULL);
	*queues = MemoryContextAlloc(caller, Max(rows, 1) * sizeof(int32));
	*found = 0;
	for (uint64 i = 0; i < rows; i++)
	{
		(*queues)[i] = DatumGetInt32(spi_value(i, 1, &isnull));
		*found += spi_int64(i, 2);
	}
	spi_end(&scope);
	return rows;
}

static void
throw_missing_task(ArrayType *ids)
{
	SpiScope	scope;
	Datum		values[1] = {PointerGetDatum(ids)};
	int64		missing = 0;
	bool		isnull;

	spi_begin(&scope);
	if (spi_read_latest(&select_missing_task, values, NULL) == 1)
		missing = DatumGetInt64(spi_value(0, 1, &isnull));
	spi_end(&scope);
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("task " INT64_FORMAT " does not exist", missing)));
}

/* Throw unless the tasks are there and the caller may see their queues. */
static void
check_tasks(const TaskList *tasks)
{
	VisibleQueues *visible = read_visible_queues();
	int32	   *queues;
	int64		found;
	int			count = read_task_queues(tasks->ids, &queues, &found);

	for (int i = 0; i < count; i++)
	{
		if (!queue_is_visible(visible, queues[i]))
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
					 errmsg("permission denied for a task's queue"),
					 errhint("The queue's owner can allow it with fanout.grant_queue().")));
	}
	if (found < tasks->count)
		throw_missing_task(tasks->ids);
	pfree(visible);
	pfree(queues);
}

static bool
look_at_tasks(Target *target)
{
	TaskList   *tasks = (TaskList *) target;
	SpiScope	scope;
	Datum		values[1] = {PointerGetDatum(tasks->ids)};

	spi_begin(&scope);
	(void) spi_read_latest(&count_ended_tasks, values, NULL);
	target->ends_wanted = tasks->count - spi_int64(0, 1);
	if (target->ends_wanted > 0)
	{
		/* those that have gone meanwhile had ended */
		(void) spi_read_latest(&count_tasks, values, NULL);
		target->ends_wanted -= tasks->count - spi_int64(0, 1);
	}
	spi_end(&scope);
	return target->ends_wanted <= 0;
}

static int
compare_int64(const void *a, const void *b)
{
	int64		left = DatumGetInt64(*(const Datum *) a);
	int64		right = DatumGetInt64(*(const Datum *) b);

	return left < right ? -1 : left > right;
}

/* Take the ids, at least one, as what is waited for. */
static void
open_tasks(Datum *ids, int count, TaskList *tasks)
{
	int			unique = 1;

	qsort(ids, count, sizeof(Datum), compare_int64);
	for (int i = 1; i < count; i++)
	{
		if (compare_int64(&ids[i], &ids[unique - 1]) != 0)
			ids[unique++] = ids[i];
	}
	memset(tasks, 0, sizeof(TaskList));
	tasks->target.look = look_at_tasks;
	tasks->target.first_task = DatumGetInt64(ids[0]);
	tasks->target.last_task = DatumGetInt64(ids[unique - 1]);
	tasks->ids = construct_array(ids, unique, INT8OID, sizeof(int64), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);
	tasks->count = unique;
	check_tasks(tasks);
}

Datum
fanout_wait_tasks(PG_FUNCTION_ARGS)
{
	TaskList	tasks;
	int64		deadline;
	Datum	   *ids;
	int			count;

	require_readable();
	deadline = arg_deadline(fcinfo, 1);
	count = arg_ids(fcinfo, "tasks", &ids);
	if (count == 0)
		PG_RETURN_BOOL(true);
	open_tasks(ids, count, &tasks);
	PG_RETURN_BOOL(await(&tasks.target, deadline));
}

static const char *
outcome_word(char status)
{
	switch (status)
	{
		case OUTCOME_SUCCEEDED:
			return "succeeded";
		case OUTCOME_FAILED:
			return "failed";
		case OUTCOME_CANCELLED:
			return "cancelled";
	}
	elog(ERROR, "unknown outcome \"%c\"", status);
}

/* What memory says of the tasks of a range; NULL for those that are not in memory. */
static void
read_live_states(int64 first, int64 count, const char **states)
{
	TimestampTz now = GetCurrentTimestamp();

	for (int64 i = 0; i < count;)
	{
		int64		end = Min(count, i + FANOUT_WORK_CHUNK);

		dispatcher_lock();
		for (; i < end; i++)
		{
			Task	   *task = task_find(MyDatabaseId, first + i);

			states[i] = task != NULL ? state_in_memory(task, now) : NULL;
		}
		dispatcher_unlock();
	}
}

/* The state of a task without outcome that is not in memory, by its row; it is gone if it has none. */
static const char *
read_state_on_disk(TaskReader *reader, int64 task)
{
	Datum		values[TASK_COLUMNS];
	bool		nulls[TASK_COLUMNS];

	if (!task_reader_fetch(reader, task, NULL, values, nulls))
		return "gone";
	return state_on_disk(!nulls[TASK_RUN_AT], nulls[TASK_RUN_AT] ? 0 : DatumGetTimestampTz(values[TASK_RUN_AT]),
						 GetCurrentTimestamp());
}

static uint64
read_outcomes(int64 first, int64 count)
{
	Datum		values[2] = {Int64GetDatum(first), Int64GetDatum(first + count)};

	return spi_read_latest(&select_outcomes, values, NULL);
}

/* A collection on its way out. */
typedef struct Collector
{
	ResultSet	set;
	TaskReader *reader;
	int64		ordinal;
	const char *states[COLLECT_CHUNK];
} Collector;

/* Add the task whose outcome is in the row. */
static void
add_ended(Collector *collector, uint64 row)
{
	Datum		values[5];
	bool		nulls[5] = {false};

	values[0] = Int64GetDatum(++collector->ordinal);
	values[1] = spi_value(row, 1, &nulls[1]);
	values[2] = CStringGetTextDatum(outcome_word(DatumGetChar(spi_value(row, 2, &nulls[2]))));
	values[3] = spi_value(row, 3, &nulls[3]);
	values[4] = spi_value(row, 4, &nulls[4]);
	result_set_add(&collector->set, values, nulls);
	pfree(DatumGetPointer(values[2]));
}

static void
add_unfinished(Collector *collector, int64 task, const char *state)
{
	Datum		values[5] = {0};
	bool		nulls[5] = {false, false, false, true, true};

	values[0] = Int64GetDatum(++collector->ordinal);
	values[1] = Int64GetDatum(task);
	values[2] = CStringGetTextDatum(state != NULL ? state : read_state_on_disk(collector->reader, task));
	result_set_add(&collector->set, values, nulls);
	pfree(DatumGetPointer(values[2]));
}

static void
collect_chunk(Collector *collector, int64 first, int64 count)
{
	uint64		rows = read_outcomes(first, count);
	uint64		row = 0;

	if (rows < count)
	{
		SPI_freetuptable(SPI_tuptable);
		read_live_states(first, count, collector->states);
		rows = read_outcomes(first, count);
	}
	for (int64 i = 0; i < count; i++)
	{
		if (row < rows && spi_int64(row, 1) == first + i)
			add_ended(collector, row++);
		else
			add_unfinished(collector, first + i, collector->states[i]);
	}
	SPI_freetuptable(SPI_tuptable);
}

static void
collect_range(Collector *collector, const TaskRange *range)
{
	for (int64 done = 0; done < range->count; done += COLLECT_CHUNK)
	{
		CHECK_FOR_INTERRUPTS();
		collect_chunk(collector, range->first + done, Min(range->count - done, COLLECT_CHUNK));
	}
}

/*
 * The ranges of the batch's tasks in order, those that follow on joined into
 * one; their number.  A batch that has been removed since it was opened is not
 * taken for an empty one.
 */
int64
read_ranges(const Batch *batch, TaskRange **ranges)
{
	MemoryContext caller = CurrentMemoryContext;
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(batch->target.batch)};
	uint64		rows;
	int64		count = 0;
	bool		isnull;

	spi_begin(&scope);
	rows = spi_read_latest(&select_parts, values, NULL);
	if (rows == 0)
		throw_missing_batch(batch->target.batch);
	*ranges = MemoryContextAllocHuge(caller, rows * sizeof(TaskRange));
	for (uint64 i = 0; i < rows; i++)
	{
		TaskRange  *last = count > 0 ? &(*ranges)[count - 1] : NULL;
		int64		first = DatumGetInt64(spi_value(i, 1, &isnull));
		int64		tasks = DatumGetInt64(spi_value(i, 2, &isnull));

		if (isnull)
			break;
		if (last != NULL && last->first + last->count == first)
			last->count += tasks;
		else
		{
			(*ranges)[count].first = first;
			(*ranges)[count].count = tasks;
			count++;
		}
	}
	spi_end(&scope);
	return count;
}

/* Rows go into a tuplestore, which spills to disk; large results as pointers to where they are stored. */
Datum
fanout_collect(PG_FUNCTION_ARGS)
{
	Batch		batch;
	int64		deadline;
	Collector  *collector;
	TaskRange  *ranges;
	int64		range_count;
	SpiScope	scope;

	require_readable();
	require_arg(fcinfo, 0, "batch");
	deadline = arg_deadline(fcinfo, 1);
	open_batch(PG_GETARG_INT64(0), &batch);
	(void) await(&batch.target, deadline);
	FANOUT_POINT(COLLECT_AWAITED);
	range_count = read_ranges(&batch, &ranges);

	collector = palloc0(sizeof(Collector));
	collector->set = result_set_begin(fcinfo);
	spi_begin(&scope);
	collector->reader = task_reader_open();
	for (int64 i = 0; i < range_count; i++)
		collect_range(collector, &ranges[i]);
	task_reader_close(collector->reader);
	spi_end(&scope);
	return (Datum) 0;
}

/* Copy a column of the outcome to where it outlives the SPI scope. */
static Datum
copy_value(MemoryContext context, int column, bool *isnull)
{
	Datum		value = spi_value(0, column, isnull);
	MemoryContext caller = MemoryContextSwitchTo(context);

	if (!*isnull)
		value = datumCopy(value, false, -1);
	MemoryContextSwitchTo(caller);
	return value;
}

/* Read the outcome's status word, result and error; false if there is none. */
static bool
read_outcome(int64 task, const char **status, Datum *values, bool *nulls)
{
	MemoryContext caller = CurrentMemoryContext;
	SpiScope	scope;
	bool		found;
	bool		isnull;

	spi_begin(&scope);
	found = read_outcomes(task, 1) == 1;
	if (found)
	{
		*status = outcome_word(DatumGetChar(spi_value(0, 2, &isnull)));
		values[1] = copy_value(caller, 3, &nulls[1]);
		values[2] = copy_value(caller, 4, &nulls[2]);
	}
	spi_end(&scope);
	return found;
}

/* The state of one task and what it gave: as for a chunk of one. */
static void
read_result(int64 task, Datum *values, bool *nulls)
{
	const char *status;

	read_live_states(task, 1, &status);
	if (!read_outcome(task, &status, values, nulls))
	{
		nulls[1] = nulls[2] = true;
		if (status == NULL)
		{
			TaskReader *reader = task_reader_open();

			status = read_state_on_disk(reader, task);
			task_reader_close(reader);
		}
	}
	values[0] = CStringGetTextDatum(status);
}

Datum
fanout_result(PG_FUNCTION_ARGS)
{
	TaskList	tasks;
	int64		deadline;
	Datum		id;
	Datum		values[3] = {0};
	bool		nulls[3] = {false};

	require_readable();
	require_arg(fcinfo, 0, "task");
	deadline = arg_deadline(fcinfo, 1);
	id = PG_GETARG_DATUM(0);
	open_tasks(&id, 1, &tasks);
	(void) await(&tasks.target, deadline);
	read_result(DatumGetInt64(id), values, nulls);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(row_type(fcinfo), values, nulls)));
}
