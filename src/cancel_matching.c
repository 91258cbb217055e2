/*
 * cancel_matching.c
 *		Cancelling the tasks of a queue that match all that is given.
 *
 * What may match is looked for where unfinished tasks are, not in all of the
 * log: those in memory are listed, and of what is on disk each order of the
 * queue is read from its bound on, as a refill does, some rows at a time.
 * Bounds and list are as of one moment, so that a task that waits or runs then
 * is looked at, wherever it goes meanwhile, unless another transaction changes
 * it: such a one may be missed.  One that is found is cancelled only if it
 * matches when it is withdrawn.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "cancel.h"
#include "commit_hooks.h"
#include "ids.h"
#include "lane.h"
#include "partitions.h"
#include "registry.h"
#include "seed.h"
#include "segments.h"
#include "spi.h"
#include "window.h"

PG_FUNCTION_INFO_V1(fanout_cancel_matching);

#define MATCH_CHUNK	1000		/* rows looked for at a time */

/* The arguments of the function; the first ones are parameters of each statement. */
enum MatchArgument
{
	MATCH_QUEUE, MATCH_NAME, MATCH_ARGS, MATCH_PARTITION_KEY, MATCH_BATCH, MATCH_MIN_PRIORITY, MATCH_MAX_PRIORITY,
	MATCH_ENQUEUED_BEFORE, MATCH_PARAMETERS, MATCH_REASON = MATCH_PARAMETERS, MATCH_MAX_TASKS
};

#define MATCHES \
	" t.queue = $1 AND ($2 IS NULL OR t.name = $2) AND ($3 IS NULL OR t.args @> $3)" \
	" AND ($4 IS NULL OR t.partition_key = $4) AND ($5 IS NULL OR t.batch = $5)" \
	" AND ($6 IS NULL OR coalesce(t.priority, 0) >= $6) AND ($7 IS NULL OR coalesce(t.priority, 0) <= $7)" \
	" AND ($8 IS NULL OR t.enqueued_at < $8) "
#define RANK "coalesce(t.rank, t.priority)"
#define RANK_IN_PARTITION "coalesce(t.rank, t.priority, 0)"
#define MATCH_TYPES	INT4OID, TEXTOID, JSONBOID, TEXTOID, INT8OID, INT4OID, INT4OID, TIMESTAMPTZOID

/* One task, and some. */
static SpiStatement match_task = {
	"SELECT FROM fanout.task t WHERE t.id = $9 AND" MATCHES, 9, {MATCH_TYPES, INT8OID}
};
static SpiStatement match_tasks = {
	"SELECT t.id FROM fanout.task t WHERE t.id = ANY ($9) AND" MATCHES, 9, {MATCH_TYPES, INT8ARRAYOID}
};

/* The tasks of a batch, by its ranges of ids: $9, a key, says nothing. */
static SpiStatement match_batch = {
	"SELECT u.id, 0::bigint FROM fanout.batch_part p, LATERAL (SELECT t.id FROM fanout.task t"
	"   WHERE t.id >= greatest(p.first_task, $10) AND t.id < p.first_task + p.tasks AND" MATCHES "AND" UNFINISHED("")
	"   ORDER BY t.id LIMIT $11) u"
	" WHERE p.batch = $5 AND $9 = 0 ORDER BY u.id LIMIT $11",
	11, {MATCH_TYPES, INT8OID, INT8OID, INT8OID}
};

/*
 * The orders of a queue that have tasks on disk, from a key ($9) and an id on
 * ($10); $12 is the lane of a partition.
 */
#define MATCH_USUAL(segment) { \
	"SELECT t.id, 0::bigint FROM fanout.task" segment " t WHERE t.lane IS NULL AND t.priority IS NULL AND t.rank IS NULL AND t.run_at IS NULL" \
	" AND $9 = 0 AND t.id >= $10 AND" MATCHES "AND" UNFINISHED(segment) "ORDER BY t.id LIMIT $11", \
	11, {MATCH_TYPES, INT8OID, INT8OID, INT8OID} \
}
#define MATCH_PRIORITY(segment) { \
	"SELECT t.id, " RANK " FROM fanout.task" segment " t WHERE t.lane IS NULL AND " RANK " IS NOT NULL AND t.run_at IS NULL" \
	" AND (" RANK ", t.id) >= ($9, $10) AND" MATCHES "AND" UNFINISHED(segment) "ORDER BY " RANK ", t.id LIMIT $11", \
	11, {MATCH_TYPES, INT8OID, INT8OID, INT8OID} \
}
#define MATCH_LANE(segment) { \
	"SELECT t.id, " RANK_IN_PARTITION " FROM fanout.task" segment " t WHERE t.lane = $12 AND t.run_at IS NULL" \
	" AND (" RANK_IN_PARTITION ", t.id) >= ($9, $10) AND" MATCHES "AND" UNFINISHED(segment) \
	"ORDER BY " RANK_IN_PARTITION ", t.id LIMIT $11", \
	12, {MATCH_TYPES, INT8OID, INT8OID, INT8OID, INT8OID} \
}
#define MATCH_LANES(segment) { \
	"SELECT t.id, 0::bigint FROM fanout.task" segment " t WHERE t.lane IS NOT NULL AND t.run_at IS NULL" \
	" AND $9 = 0 AND t.id >= $10 AND" MATCHES "AND" UNFINISHED(segment) "ORDER BY t.id LIMIT $11", \
	11, {MATCH_TYPES, INT8OID, INT8OID, INT8OID} \
}
#define MATCH_TIMED(segment) { \
	"SELECT t.id, t.run_at FROM fanout.task" segment " t WHERE t.run_at IS NOT NULL" \
	" AND (t.run_at, t.id) >= ($9, $10) AND" MATCHES "AND" UNFINISHED(segment) "ORDER BY t.run_at, t.id LIMIT $11", \
	11, {MATCH_TYPES, TIMESTAMPTZOID, INT8OID, INT8OID} \
}
/* Those that this transaction has enqueued, whatever their order. */
#define MATCH_OWN(segment) { \
	"SELECT t.id, 0::bigint FROM fanout.task" segment " t WHERE $9 = 0 AND t.id >= $10" \
	" AND" MATCHES "AND" UNFINISHED(segment) "ORDER BY t.id LIMIT $11", \
	11, {MATCH_TYPES, INT8OID, INT8OID, INT8OID} \
}

typedef enum MatchOrder
{
	ORDER_USUAL,
	ORDER_PRIORITY,
	ORDER_LANE,
	ORDER_LANES,
	ORDER_TIMED,
	ORDER_OWN,
	MATCH_ORDERS
}			MatchOrder;

static SpiStatement match_orders[MATCH_ORDERS][FANOUT_SEGMENTS] = {
	[ORDER_USUAL] = FOR_EACH_SEGMENT(MATCH_USUAL),
	[ORDER_PRIORITY] = FOR_EACH_SEGMENT(MATCH_PRIORITY),
	[ORDER_LANE] = FOR_EACH_SEGMENT(MATCH_LANE),
	[ORDER_LANES] = FOR_EACH_SEGMENT(MATCH_LANES),
	[ORDER_TIMED] = FOR_EACH_SEGMENT(MATCH_TIMED),
	[ORDER_OWN] = FOR_EACH_SEGMENT(MATCH_OWN),
};

/* From where on an order has tasks on disk. */
typedef struct MatchBound
{
	bool		on_disk;
	int64		key;
	int64		id;
} MatchBound;

typedef struct Match
{
	QueueRef	ref;
	Database   *database;
	int64		partition;		/* 0: any */
	Datum		values[MATCH_PARAMETERS + 4];
	char		nulls[MATCH_PARAMETERS + 5];
	const char *reason;
	int64		left;			/* so many may still be cancelled */
	ResultSet	result;
	MemoryContext chunk;		/* of one chunk */

	MatchBound	bounds[MATCH_ORDERS];
	int64	   *tasks;			/* those in memory */
	int64		room;
	int64		count;
	int64		changes;		/* of tasks in the database, before the chunk was read */
} Match;

static void
take_criteria(FunctionCallInfo fcinfo, Match *match)
{
	bool		any = false;

	memset(match->nulls, ' ', sizeof(match->nulls) - 1);
	match->nulls[sizeof(match->nulls) - 1] = '\0';
	match->values[MATCH_QUEUE] = Int32GetDatum(match->ref.id);
	for (int i = MATCH_QUEUE + 1; i < MATCH_PARAMETERS; i++)
	{
		match->nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
		match->values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		any |= !PG_ARGISNULL(i);
	}
	if (!any)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("nothing is given that tasks are to match"),
				 errhint("Use fanout.purge_queue() to cancel all that wait.")));
	if (!PG_ARGISNULL(MATCH_PARTITION_KEY))
		match->partition = partition_of(PG_GETARG_TEXT_PP(MATCH_PARTITION_KEY));
	match->reason = PG_ARGISNULL(MATCH_REASON) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(MATCH_REASON));
	match->left = PG_ARGISNULL(MATCH_MAX_TASKS) ? PG_INT64_MAX : PG_GETARG_INT64(MATCH_MAX_TASKS);
	if (match->left < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_tasks must be at least 1")));
}

static void
set_bound(MatchBound *bound, bool on_disk, int64 key, int64 id)
{
	bound->on_disk = on_disk;
	bound->key = key;
	bound->id = id;
}

/* Of tasks of all partitions, the first id that may be on disk. */
static void
set_bound_of_lanes(Queue *queue, MatchBound *bound)
{
	int64		first = window_is_bounded(&queue->strays) ? queue->strays.bound_id : PG_INT64_MAX;

	short_list_foreach(node, &queue->lanes)
	{
		Lane	   *lane = link_container(Lane, link, node);

		if (window_is_bounded(&lane->ready))
			first = Min(first, lane_disk_first(lane));
	}
	set_bound(bound, first != PG_INT64_MAX, 0, first);
}

/* Which orders of the queue have tasks on disk, and from where on.  Under the lock. */
static void
copy_bounds(Match *match)
{
	Queue	   *queue = match->ref.queue;
	const Window *main = &queue->main.ready;
	MatchBound *timed = &match->bounds[ORDER_TIMED];
	int64		last;

	if (match->partition != 0)
	{
		Lane	   *lane = lane_find(queue, match->partition);
		bool		stray = (lane == NULL || lane->with_strays) && window_is_bounded(&queue->strays);

		if (lane != NULL && window_is_bounded(&lane->ready))
			set_bound(&match->bounds[ORDER_LANE], true, lane->ready.bound_key, lane->ready.bound_id);
		else
			set_bound(&match->bounds[ORDER_LANE], stray, PG_INT64_MIN, 0);
	}
	else
	{
		/* those of the usual priority are all in memory if the bound is one of a later one */
		set_bound(&match->bounds[ORDER_USUAL], window_is_bounded(main) && main->bound_key <= 0, 0,
				  main->bound_key == 0 ? main->bound_id : lane_disk_first(&queue->main));
		set_bound(&match->bounds[ORDER_PRIORITY], window_is_bounded(main), main->bound_key, main->bound_id);
		set_bound_of_lanes(queue, &match->bounds[ORDER_LANES]);
	}
	timed->on_disk = window_is_bounded(&queue->scheduled);
	timed->key = queue->scheduled.bound_key;
	timed->id = queue->scheduled.bound_id;
	match->bounds[ORDER_OWN].on_disk = pending_range(&match->bounds[ORDER_OWN].id, &last);
}

/* List a task of the queue that waits or runs, as far as this transaction sees it. */
static void
list_if_in_queue(Task *task, void *arg)
{
	Match	   *match = arg;
	Queue	   *queue = match->ref.queue;

	if (fanout_queues[task->queue].db != MyDatabaseId || task->state == TASK_ENDED || match->count == match->room ||
		(pending_is_change(task) ? pending_queue(task) : &fanout_queues[task->queue]) != queue ||
		(match->partition != 0 && !pending_is_change(task) && lane_of(task)->partition != match->partition))
		return;
	match->tasks[match->count++] = task->node.id;
}

/* What is in memory, and from where on there is more on disk. */
static void
list_tasks(Match *match)
{
	bool		gone;

	match->room = fanout_max_tracked_tasks;
	match->tasks = MemoryContextAllocHuge(CurrentMemoryContext, match->room * sizeof(int64));
	dispatcher_lock();
	gone = !queue_ref_is_valid(&match->ref);
	if (!gone)
	{
		task_iterate(list_if_in_queue, match);
		copy_bounds(match);
	}
	dispatcher_unlock();
	if (gone)
		throw_queue_gone(match->ref.name);
	qsort(match->tasks, match->count, sizeof(int64), ids_compare);
}

/* How many changes of tasks have been committed. */
static int64
changes_so_far(const Match *match)
{
	int64		changes;

	dispatcher_lock();
	changes = match->database->changes;
	dispatcher_unlock();
	return changes;
}

/*
 * Does the task, which is withdrawn or runs, still match?  Yes if none was
 * changed since the rows were read: whoever did so has counted it before the
 * task could be withdrawn.
 */
static bool
still_matches(int64 task, void *arg)
{
	Match	   *match = arg;
	SpiScope	scope;
	bool		matches;

	if (changes_so_far(match) == match->changes)
		return true;
	match->values[MATCH_PARAMETERS] = Int64GetDatum(task);
	spi_begin(&scope);
	matches = spi_read_latest(&match_task, match->values, match->nulls) == 1;
	spi_end(&scope);
	return matches;
}

/* Cancel these tasks, up to as many as may be. */
static void
cancel_tasks(Match *match, const int64 *tasks, uint64 count)
{
	CancelFilter filter = {match->ref.id, still_matches, match};
	bool		isnull = false;

	for (uint64 i = 0; i < count && match->left > 0; i++)
	{
		Datum		task = Int64GetDatum(tasks[i]);

		if (cancel_task(tasks[i], match->reason, &filter) != CANCEL_DONE)
			continue;
		match->left--;
		result_set_add(&match->result, &task, &isnull);
	}
}

/*
 * Run the statement, and copy the ids that it gives, as cancels have
 * statements of their own; the key of the last one goes to "last_key".
 */
static uint64
read_ids(Match *match, SpiStatement *statement, int64 *ids, int64 *last_key)
{
	SpiScope	scope;
	uint64		rows;
	bool		isnull;

	match->changes = changes_so_far(match);
	spi_begin(&scope);
	spi_follow_order();
	rows = spi_read_latest(statement, match->values, match->nulls);
	for (uint64 i = 0; i < rows; i++)
		ids[i] = spi_int64(i, 1);
	if (rows > 0 && last_key != NULL)
	{
		Datum		key = spi_value(rows - 1, 2, &isnull);

		*last_key = statement->types[MATCH_PARAMETERS] == TIMESTAMPTZOID ? DatumGetTimestampTz(key) : DatumGetInt64(key);
	}
	spi_end(&scope);
	return rows;
}

/* Cancel what matches of those that are in memory. */
static void
cancel_listed(Match *match)
{
	for (int64 done = 0; done < match->count && match->left > 0; done += MATCH_CHUNK)
	{
		MemoryContext caller = MemoryContextSwitchTo(match->chunk);
		int			count = Min(MATCH_CHUNK, match->count - done);
		Datum	   *elements = palloc(count * sizeof(Datum));
		int64		ids[MATCH_CHUNK];
		uint64		rows;

		for (int i = 0; i < count; i++)
			elements[i] = Int64GetDatum(match->tasks[done + i]);
		match->values[MATCH_PARAMETERS] =
			PointerGetDatum(construct_array(elements, count, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
		rows = read_ids(match, &match_tasks, ids, NULL);
		qsort(ids, rows, sizeof(int64), ids_compare);
		cancel_tasks(match, ids, rows);
		MemoryContextSwitchTo(caller);
		MemoryContextReset(match->chunk);
	}
}

/* Cancel what matches of one order of tasks on disk, from a place on. */
static void
cancel_in_order(Match *match, SpiStatement *statement, int64 key, int64 id)
{
	uint64		rows = MATCH_CHUNK;

	while (rows == MATCH_CHUNK && match->left > 0)
	{
		MemoryContext caller = MemoryContextSwitchTo(match->chunk);
		int64		ids[MATCH_CHUNK];

		match->values[MATCH_PARAMETERS] = statement->types[MATCH_PARAMETERS] == TIMESTAMPTZOID ?
			TimestampTzGetDatum(key) : Int64GetDatum(key);
		match->values[MATCH_PARAMETERS + 1] = Int64GetDatum(id);
		match->values[MATCH_PARAMETERS + 2] = Int64GetDatum(MATCH_CHUNK);
		match->values[MATCH_PARAMETERS + 3] = Int64GetDatum(match->partition);
		rows = read_ids(match, statement, ids, &key);
		cancel_tasks(match, ids, rows);
		if (rows > 0)
			id = ids[rows - 1] + 1;
		MemoryContextSwitchTo(caller);
		MemoryContextReset(match->chunk);
	}
}

static void
cancel_on_disk(Match *match)
{
	int			segments[FANOUT_SEGMENTS];
	int			count;

	segments_pin();				/* none is to move to a segment that was looked at before */
	dispatcher_lock();
	count = segments_in_use(match->database, segments);
	dispatcher_unlock();
	for (int order = 0; order < MATCH_ORDERS; order++)
	{
		MatchBound *bound = &match->bounds[order];

		for (int i = 0; i < count && bound->on_disk; i++)
			cancel_in_order(match, &match_orders[order][segments[i]], bound->key, bound->id);
	}
}

Datum
fanout_cancel_matching(PG_FUNCTION_ARGS)
{
	Match		match = {0};

	require_writable("fanout.cancel_matching()");
	require_arg(fcinfo, MATCH_QUEUE, "queue");
	match.ref = registry_queue(PG_GETARG_TEXT_PP(MATCH_QUEUE), PRIVILEGE_ENQUEUE);
	take_criteria(fcinfo, &match);
	match.database = require_database();
	match.result = result_set_begin(fcinfo);
	match.chunk = AllocSetContextCreate(CurrentMemoryContext, "pg_fanout cancel_matching", ALLOCSET_DEFAULT_SIZES);

	if (!PG_ARGISNULL(MATCH_BATCH))
	{
		cancel_in_order(&match, &match_batch, 0, 0);
		return (Datum) 0;
	}
	list_tasks(&match);
	cancel_listed(&match);
	cancel_on_disk(&match);
	return (Datum) 0;
}
