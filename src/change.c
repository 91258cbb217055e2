/*
 * change.c
 *		Changing tasks that wait: their priority, time, queue, partition, what
 *		they are to do.
 *
 * The task is withdrawn, its row updated, and the note that the withdrawal has
 * left is told on which terms the task goes back at commit.  If the
 * transaction aborts, or a savepoint of it, the task goes back as it was.  An
 * update leaves a dead row, which claims must not; to change one's mind is
 * rare.
 *
 * The row alone says what a task is that was not attempted yet.  Of one that
 * was, the time is told by the journal, so a new one is written there as well.
 * Its starts have been in the queue that it leaves: if that has rate limits,
 * the journal tells which one it was.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "change.h"
#include "commit_hooks.h"
#include "finish.h"
#include "ids.h"
#include "lane.h"
#include "partitions.h"
#include "queue_settings.h"
#include "queues.h"
#include "segments.h"
#include "spi.h"
#include "withdraw.h"

PG_FUNCTION_INFO_V1(fanout_reprioritize);
PG_FUNCTION_INFO_V1(fanout_reprioritize_many);
PG_FUNCTION_INFO_V1(fanout_reschedule);
PG_FUNCTION_INFO_V1(fanout_reschedule_many);
PG_FUNCTION_INFO_V1(fanout_move);
PG_FUNCTION_INFO_V1(fanout_move_many);

#define UPDATE_TASK(segment) { \
	"UPDATE fanout.task" segment " SET queue = $2, priority = nullif($3, 0), rank = $10, run_at = $4, lane = nullif($5, 0), partition_key = $6," \
	" name = coalesce($7, name), args = CASE WHEN $8 THEN $9 ELSE args END, cost = nullif($11, 1)," \
	" max_attempts = nullif($12, 0), deadline = $13, key_until = CASE WHEN $14 THEN NULL ELSE key_until END," \
	" fair_group = CASE WHEN $14 THEN $15 ELSE fair_group END WHERE id = $1 RETURNING ctid", \
	15, {INT8OID, INT4OID, INT4OID, TIMESTAMPTZOID, INT8OID, TEXTOID, TEXTOID, BOOLOID, JSONBOID, INT8OID, INT4OID, INT2OID, \
	TIMESTAMPTZOID, BOOLOID, TEXTOID} \
}
static SpiStatement update_task[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(UPDATE_TASK);

/* A change that is being made. */
typedef struct Changing
{
	const TaskChange *change;
	TaskRow		row;			/* as it is before */
	QueueRef	from;			/* the queue that the row names */
	QueueRef	target;
	bool		ranked;			/* the row tells its rank */
	bool		new_time;		/* and the journal is to tell it */
	bool		leaves_starts;	/* which stay with its queue and partition, should these have or get rate limits */
	TaskTerms	terms;			/* as they are to be */
} Changing;

/* Both queues, in the order of their ids: who purges or drops one of them waits for us, or we for that. */
static void
lock_queues(const QueueRef *from, const QueueRef *target)
{
	queue_lock(Min(from->id, target->id), RowExclusiveLock);
	if (from->id != target->id)
		queue_lock(Max(from->id, target->id), RowExclusiveLock);
}

/* What the task is to be, from what it is. */
static void
set_terms(Changing *changing, const Withdrawn *withdrawn)
{
	const TaskChange *change = changing->change;
	TaskTerms  *terms = &changing->terms;

	*terms = withdrawn->terms;
	terms->group = changing->row.seed.group;
	if (change->set_priority)
		terms->priority = change->priority;
	if (change->set_time)
	{
		terms->due = change->run_at > GetCurrentTimestamp() ? change->run_at : 0;
		terms->timed = terms->due != 0;
	}
	if (change->set_partition)
	{
		changing->row.partition_key = change->partition_key;
		terms->partition = change->partition_key != NULL ? partition_of(change->partition_key) : 0;
		terms->group = terms->partition != 0 ? changing->row.group : 0;
	}
	if (change->set_rest)
	{
		terms->group = terms->partition != 0 ? change->group : 0;
		terms->cost = change->cost;
		terms->max_attempts = change->max_attempts;
		terms->deadline = change->deadline;
	}
	changing->new_time = change->set_time && !withdrawn->untouched;
	changing->leaves_starts = !withdrawn->fresh &&
		(changing->target.id != changing->from.id || terms->partition != withdrawn->terms.partition);
}

/* The time that the row is to tell, which it keeps when it has come, or none. */
static TimestampTz
run_at_of_row(const Changing *changing, bool *isnull)
{
	*isnull = !changing->terms.timed;
	return changing->change->set_time ? changing->terms.due : changing->row.seed.run_at;
}

/* Its place goes by the aging of the queue that it will be in, and by the time since when it waits.  Under the lock. */
static void
set_rank(Changing *changing)
{
	const QueueSettings *settings = pending_settings(changing->target.queue);
	bool		isnull;
	TimestampTz run_at = run_at_of_row(changing, &isnull);
	TimestampTz since = changing->row.enqueued_at;

	changing->ranked = settings->aging > 0;
	changing->terms.rank = rank_of(settings, changing->terms.priority, isnull ? since : Max(since, run_at));
}

typedef enum Reservation
{
	RESERVED,
	NO_ROOM,
	QUEUE_FULL,
	PARTITION_FULL,
	QUEUE_GONE
} Reservation;

/* Under the lock. */
static Reservation
try_to_reserve(Changing *changing, int64 *backlog, int32 *partition_backlog, int32 *partition_most)
{
	const QueueRef *target = &changing->target;
	Task	   *task = task_find(MyDatabaseId, changing->row.seed.task);
	int64		most;

	if (!queue_ref_is_valid(target) || task == NULL)
		return QUEUE_GONE;
	set_rank(changing);
	*backlog = target->queue->waiting + target->queue->pending;
	most = target->queue->settings.max_backlog;

	/* one that goes back where it came from is counted there */
	if (target->id != changing->from.id && &fanout_queues[task->queue] != target->queue && most > 0 && *backlog >= most)
		return QUEUE_FULL;
	if (pending_change_enters(task, target->queue, changing->terms.partition) &&
		!queue_has_backlog_room(target->queue, changing->terms.partition, partition_backlog, partition_most))
		return PARTITION_FULL;
	return pending_change_reserve(task, target->queue, changing->terms.partition) ? RESERVED : NO_ROOM;
}

/* Count the task among those to come to its queue, and see to it that its lane is there at commit. */
static void
reserve(Changing *changing)
{
	const QueueRef *target = &changing->target;
	int64		backlog = 0;
	int32		partition_backlog = 0;
	int32		partition_most = 0;
	Reservation result;

	dispatcher_lock();
	result = try_to_reserve(changing, &backlog, &partition_backlog, &partition_most);
	dispatcher_unlock();

	if (result == QUEUE_GONE)
		throw_queue_gone(target->name);
	if (result == NO_ROOM)
		throw_no_memory_for_task();
	if (result == PARTITION_FULL)
		ereport(ERROR,
				(errcode(ERRCODE_BACKLOG_FULL),
				 errmsg("partition \"%s\" of queue \"%s\" is full", text_to_cstring(changing->row.partition_key), target->name),
				 errdetail("%d tasks of it wait, 1 is to be added, its max_backlog is %d.", partition_backlog, partition_most)));
	if (result == QUEUE_FULL)
		ereport(ERROR,
				(errcode(ERRCODE_BACKLOG_FULL),
				 errmsg("queue \"%s\" is full", target->name),
				 errdetail(INT64_FORMAT " tasks wait, 1 is to be added, max_backlog is " INT64_FORMAT ".",
						   backlog, target->queue->settings.max_backlog),
				 errhint("Try again when workers have caught up, or raise max_backlog.")));
}

static void
update_row(Changing *changing)
{
	const TaskChange *change = changing->change;
	TaskTerms  *terms = &changing->terms;
	int64		task = changing->row.seed.task;
	text	   *key = changing->row.partition_key;
	Datum		values[15];
	char		nulls[16] = "               ";
	bool		isnull;
	SpiScope	scope;

	values[0] = Int64GetDatum(task);
	values[1] = Int32GetDatum(changing->target.id);
	values[2] = Int32GetDatum(terms->priority);
	values[3] = TimestampTzGetDatum(run_at_of_row(changing, &isnull));
	nulls[3] = isnull ? 'n' : ' ';
	values[4] = Int64GetDatum(terms->partition);
	values[5] = PointerGetDatum(key);
	nulls[5] = key == NULL ? 'n' : ' ';
	values[6] = PointerGetDatum(change->name);
	nulls[6] = change->name == NULL ? 'n' : ' ';
	values[7] = BoolGetDatum(change->set_args);
	values[8] = change->args;
	nulls[8] = !change->set_args || change->args_isnull ? 'n' : ' ';
	values[9] = Int64GetDatum(terms->rank);
	nulls[9] = changing->ranked ? ' ' : 'n';
	values[10] = Int32GetDatum(terms->cost);
	values[11] = Int16GetDatum(terms->max_attempts);
	values[12] = TimestampTzGetDatum(terms->deadline);
	nulls[12] = terms->deadline == 0 ? 'n' : ' ';
	values[13] = BoolGetDatum(change->set_rest);
	values[14] = PointerGetDatum(change->fair_group);
	nulls[14] = change->fair_group == NULL ? 'n' : ' ';
	spi_begin(&scope);
	if (spi_run_latest(&update_task[segment_hold(LOG_TASK, task, RowExclusiveLock)], values, nulls) != 1)
		elog(ERROR, "task " INT64_FORMAT " has lost its row", task);
	terms->tid = *(ItemPointer) DatumGetPointer(spi_value(0, 1, &isnull));
	spi_end(&scope);
}

/* What the row does not tell of a task that has been attempted. */
static void
write_journal(const Changing *changing)
{
	LogWriter  *writer = log_writer_open(LOG_ATTEMPT, 2);
	int64		task = changing->row.seed.task;
	TimestampTz now = GetCurrentTimestamp();

	if (changing->leaves_starts)
		write_attempt(writer, 0, task, 'm', now, 0, NULL,
					  CStringGetTextDatum(psprintf("%d " INT64_FORMAT, changing->from.id, changing->row.seed.partition)), false);
	if (changing->new_time)
		write_attempt(writer, ids_take_lease(require_database()), task, 's', now, changing->terms.due, NULL, (Datum) 0, true);
	log_writer_close(writer);
}

/* The task is withdrawn: carry out the change as far as it can be before the commit. */
static void
make_change(Changing *changing, const Withdrawn *withdrawn)
{
	int64		number = changing->row.seed.task;
	Task	   *task;

	/* it was read before the withdrawal, and is ours now */
	if (!task_row_read(number, &changing->row))
		elog(ERROR, "task " INT64_FORMAT " has lost its row", number);
	set_terms(changing, withdrawn);
	reserve(changing);
	update_row(changing);
	if (changing->leaves_starts || changing->new_time)
		write_journal(changing);

	dispatcher_lock();
	task = task_find(MyDatabaseId, number);
	if (task != NULL && pending_is_change(task))
		pending_change_set(task, &changing->terms);
	dispatcher_unlock();
}

ChangeResult
change_task(int64 task, const TaskChange *change)
{
	Changing	changing = {.change = change};
	Withdrawn	withdrawn;

	for (;;)
	{
		CHECK_FOR_INTERRUPTS();
		if (!task_row_read(task, &changing.row) ||
			!registry_queue_by_id(changing.row.queue_id, PRIVILEGE_ENQUEUE, &changing.from))
			return CHANGE_UNKNOWN;
		changing.target = change->queue != NULL ? *change->queue : changing.from;
		lock_queues(&changing.from, &changing.target);
		switch (task_row_withdraw(changing.from.queue, &changing.row, change->unstarted ? TO_REPLACE : TO_CHANGE, &withdrawn))
		{
			case WITHDRAWN:
				make_change(&changing, &withdrawn);
				return CHANGE_DONE;
			case NOT_WAITING:
				return CHANGE_NOT_WAITING;
			case NO_MEMORY:
				throw_no_memory_for_task();
			case BUSY:
				wait_for_other(&withdrawn);
				break;
			case MOVED:
				break;
		}
	}
}

/* Of the functions below, the first argument is the task or, of the array forms, the tasks. */
static Datum
change_one(FunctionCallInfo fcinfo, const TaskChange *change)
{
	ChangeResult result;

	require_arg(fcinfo, 0, "task");
	result = change_task(PG_GETARG_INT64(0), change);
	if (result == CHANGE_UNKNOWN)
		throw_unknown_task(PG_GETARG_INT64(0));
	PG_RETURN_BOOL(result == CHANGE_DONE);
}

static Datum
change_many(FunctionCallInfo fcinfo, const TaskChange *change)
{
	Datum	   *tasks;
	int			count;
	ResultSet	set;
	bool		isnull = false;

	count = arg_ids(fcinfo, "tasks", &tasks);
	set = result_set_begin(fcinfo);
	for (int i = 0; i < count; i++)
	{
		if (change_task(DatumGetInt64(tasks[i]), change) == CHANGE_DONE)
			result_set_add(&set, &tasks[i], &isnull);
	}
	return (Datum) 0;
}

static TaskChange
priority_change(FunctionCallInfo fcinfo)
{
	TaskChange	change = {.set_priority = true};

	require_writable("fanout.reprioritize()");
	require_arg(fcinfo, 1, "priority");
	(void) require_database();
	change.priority = PG_GETARG_INT32(1);
	return change;
}

Datum
fanout_reprioritize(PG_FUNCTION_ARGS)
{
	TaskChange	change = priority_change(fcinfo);

	return change_one(fcinfo, &change);
}

Datum
fanout_reprioritize_many(PG_FUNCTION_ARGS)
{
	TaskChange	change = priority_change(fcinfo);

	return change_many(fcinfo, &change);
}

static TaskChange
time_change(FunctionCallInfo fcinfo)
{
	TaskChange	change = {.set_time = true};

	require_writable("fanout.reschedule()");
	if (PG_ARGISNULL(1) == PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("one of run_at and delay must be given"),
				 errhint("A delay of 0 means now.")));
	if (PG_ARGISNULL(1))
		change.run_at = GetCurrentTimestamp() + arg_duration(fcinfo, 2, "delay", 0);
	else
		change.run_at = PG_GETARG_TIMESTAMPTZ(1);
	if (TIMESTAMP_NOT_FINITE(change.run_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("run_at must be finite")));
	(void) require_database();
	return change;
}

Datum
fanout_reschedule(PG_FUNCTION_ARGS)
{
	TaskChange	change = time_change(fcinfo);

	return change_one(fcinfo, &change);
}

Datum
fanout_reschedule_many(PG_FUNCTION_ARGS)
{
	TaskChange	change = time_change(fcinfo);

	return change_many(fcinfo, &change);
}

/* unset => '{partition_key}' */
static bool
unsets_partition(FunctionCallInfo fcinfo, int arg)
{
	Datum	   *names;
	bool	   *nulls;
	int			count;

	if (PG_ARGISNULL(arg))
		return false;
	count = array_elements(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, "unset", &names, &nulls, false);
	for (int i = 0; i < count; i++)
	{
		char	   *name = TextDatumGetCString(names[i]);

		if (strcmp(name, "partition_key") != 0 || !PG_ARGISNULL(2))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cannot unset \"%s\"", name),
					 errdetail("Only partition_key can be unset, unless it is given a value.")));
	}
	return count > 0;
}

static TaskChange
place_change(FunctionCallInfo fcinfo, QueueRef *target)
{
	TaskChange	change = {0};

	require_writable("fanout.move()");
	change.set_partition = unsets_partition(fcinfo, 3);
	if (PG_ARGISNULL(1) && PG_ARGISNULL(2) && !change.set_partition)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("neither queue nor partition_key is given"),
				 errhint("unset => '{partition_key}' takes the partition key away.")));
	if (!PG_ARGISNULL(2))
	{
		change.set_partition = true;
		change.partition_key = PG_GETARG_TEXT_PP(2);
		(void) partition_of(change.partition_key);
	}
	(void) require_database();
	if (!PG_ARGISNULL(1))
	{
		*target = registry_queue(PG_GETARG_TEXT_PP(1), PRIVILEGE_ENQUEUE);
		change.queue = target;
	}
	return change;
}

Datum
fanout_move(PG_FUNCTION_ARGS)
{
	QueueRef	target;
	TaskChange	change = place_change(fcinfo, &target);

	return change_one(fcinfo, &change);
}

Datum
fanout_move_many(PG_FUNCTION_ARGS)
{
	QueueRef	target;
	TaskChange	change = place_change(fcinfo, &target);

	return change_many(fcinfo, &change);
}
