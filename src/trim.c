/*
 * trim.c
 *		Queues that keep what is finished for a shorter time.
 *
 * Their finished tasks are deleted one by one, in small transactions, from
 * whatever segment they are in.  So they leave dead rows to autovacuum, unlike
 * those that go with their segment.
 *
 * The log is walked through in the order of ids, in which tasks were enqueued,
 * up to the first one that was enqueued too late to be old.  The next walk goes
 * on there.  One that ended long after it was enqueued is passed by; every so
 * many walks begin anew and find it.
 *
 * Outcomes are locked before the rest goes, and who is giving a task another
 * life has its outcome locked: one of both gets it, and the keeper does not
 * wait.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/datum.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "points.h"
#include "segments.h"
#include "spi.h"
#include "starts.h"
#include "trim.h"

#define TRIM_CHUNK		2000	/* tasks that are looked at in one go */
#define TRIM_BATCHES	64		/* of which it is remembered whether they have ended */
#define TRIM_ANEW		16		/* every so many walks begin anew */
#define TRIM_IDLE		(60 * USECS_PER_SEC)
#define TRIM_LEAST		(100 * INT64CONST(1000))	/* microseconds */

static SpiStatement select_queues = {
	"SELECT id, retention FROM fanout.queue WHERE retention IS NOT NULL", 0, {0}
};

/*
 * What of the next tasks has ended long enough ago, with the rest of its batch,
 * is deleted.  The result tells how far that got and how many these were.  To
 * ask whether a batch has ended may be to read all of it, so it also tells what
 * is known of those that have most of these tasks, and may have more.  Of the
 * journal one range of tasks is read: its index is not to be asked for each of
 * them.
 */
#define TRIM(segment) { \
	"WITH chunk AS MATERIALIZED (SELECT t.id, t.enqueued_at, t.queue, t.batch, t.key_until, o.finished_at, o.status" \
	"   FROM fanout.task" segment " t LEFT JOIN fanout.outcome" segment " o ON o.task = t.id" \
	"  WHERE t.id >= $1 ORDER BY t.id LIMIT $2)," \
	" old AS MATERIALIZED (SELECT c.id, c.batch, q.cut FROM chunk c, unnest($3, $4, $5) AS q (queue, cut, failed_cut)" \
	"  WHERE q.queue = c.queue AND c.finished_at <= CASE c.status WHEN 'f' THEN q.failed_cut ELSE q.cut END" \
	"   AND (c.key_until IS NULL OR c.key_until <= $6))," \
	" seen AS MATERIALIZED (SELECT b.batch, b.cut, b.tasks, CASE WHEN b.batch = ANY ($7) THEN false" \
	"   WHEN EXISTS (SELECT FROM unnest($8, $9) AS k (batch, cut) WHERE k.batch = b.batch AND k.cut >= b.cut) THEN true" \
	"   ELSE EXISTS (SELECT FROM fanout.batch_part p, LATERAL (SELECT FROM fanout.task t" \
	"     WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks" \
	"       AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id AND o.finished_at <= b.cut) LIMIT 1) AS t" \
	"   WHERE p.batch = b.batch) END AS alive" \
	"  FROM (SELECT batch, max(cut) AS cut, count(*) AS tasks FROM old WHERE batch IS NOT NULL GROUP BY batch) b)," \
	" known AS (SELECT batch, cut, alive FROM seen ORDER BY tasks DESC LIMIT " CppAsString2(TRIM_BATCHES) ")," \
	" gone AS MATERIALIZED (SELECT o.task FROM fanout.outcome" segment " o JOIN old ON old.id = o.task" \
	"  WHERE NOT EXISTS (SELECT FROM seen WHERE seen.alive AND seen.batch = old.batch) FOR UPDATE OF o SKIP LOCKED)," \
	" outcomes AS (DELETE FROM fanout.outcome" segment " o USING gone WHERE o.task = gone.task)," \
	" checkpoints AS (DELETE FROM fanout.checkpoint" segment " c USING gone WHERE c.task = gone.task)," \
	" attempts AS (DELETE FROM fanout.attempt" segment " a USING gone WHERE a.task + 0 = gone.task" \
	"  AND a.task >= $1 AND a.task <= (SELECT max(id) FROM chunk) AND EXISTS (SELECT FROM gone))," \
	" tasks AS (DELETE FROM fanout.task" segment " t USING gone WHERE t.id = gone.task)" \
	" SELECT max(id), max(enqueued_at), (SELECT count(*) FROM gone), ARRAY(SELECT batch FROM known WHERE NOT alive)," \
	"  ARRAY(SELECT batch FROM known WHERE alive ORDER BY batch), ARRAY(SELECT cut FROM known WHERE alive ORDER BY batch)" \
	"  FROM chunk", \
	9, {INT8OID, INT8OID, INT4ARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZARRAYOID, TIMESTAMPTZOID, \
		INT8ARRAYOID, INT8ARRAYOID, TIMESTAMPTZARRAYOID} \
}
static SpiStatement trim_segment[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(TRIM);

static int64 walks = 0;
static int64 passed = 0;		/* walks have got so far */

/* How long the queue's tasks are kept: as long as its rate limits look back at least. */
static int64
kept_for(const Database *database, int32 queue_id, int64 retention)
{
	const Queue *queue;

	dispatcher_lock();
	queue = queue_find(database->db, queue_id);
	if (queue != NULL)
		retention = Max(retention, queue_longest_window(queue));
	dispatcher_unlock();
	return retention;
}

static void
add_queue(TrimWalk *walk, int32 id, int64 retention, TimestampTz now)
{
	int			i = walk->queue_count++;
	TimestampTz cut = now - retention;

	walk->queues[i] = Int32GetDatum(id);
	walk->cuts[i] = TimestampTzGetDatum(cut);
	walk->failed_cuts[i] = TimestampTzGetDatum(now - Max(retention, fanout_keep_failed * USECS_PER_SEC));
	walk->latest_cut = Max(walk->latest_cut, cut);
}

/* Which queues there are; the shortest time for which one keeps its tasks. */
static int64
read_queues(Database *database, TrimWalk *walk, TimestampTz now)
{
	int64 global = fanout_retention < 0 ? PG_INT64_MAX : fanout_retention * USECS_PER_SEC;
	int64		shortest = PG_INT64_MAX;
	SpiScope	scope;
	uint64		rows;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	rows = spi_read_latest(&select_queues, NULL, NULL);
	walk->queues = MemoryContextAlloc(walk->context, Max(rows, 1) * sizeof(Datum));
	walk->cuts = MemoryContextAlloc(walk->context, Max(rows, 1) * sizeof(Datum));
	walk->failed_cuts = MemoryContextAlloc(walk->context, Max(rows, 1) * sizeof(Datum));
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		int32		id = DatumGetInt32(spi_value(i, 1, &isnull));
		int64		retention = kept_for(database, id, duration_of(DatumGetIntervalP(spi_value(i, 2, &isnull)), "retention"));

		if (retention >= global ||retention >= now)
			continue;			/* they go with their segments */
		add_queue(walk, id, retention, now);
		shortest = Min(shortest, retention);
	}
	spi_end(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return shortest;
}

/* Of batches. */
static void
know_nothing(TrimWalk *walk)
{
	MemoryContext caller = MemoryContextSwitchTo(walk->context);

	walk->ended = PointerGetDatum(construct_empty_array(INT8OID));
	walk->alive = PointerGetDatum(construct_empty_array(INT8OID));
	walk->alive_cuts = PointerGetDatum(construct_empty_array(TIMESTAMPTZOID));
	MemoryContextSwitchTo(caller);
}

int64
trim_begin(Database *database, TrimWalk *walk, TimestampTz now)
{
	static MemoryContext context = NULL;
	int64		shortest;

	if (context == NULL)
		context = AllocSetContextCreate(TopMemoryContext, "pg_fanout trim", ALLOCSET_DEFAULT_SIZES);
	MemoryContextReset(context);
	memset(walk, 0, sizeof(TrimWalk));
	walk->context = context;
	shortest = read_queues(database, walk, now);
	if (walk->queue_count == 0)
		return TRIM_IDLE;
	know_nothing(walk);
	walk->segment_count = segments_in_use(database, walk->segments);
	walk->from = walks++ % TRIM_ANEW == 0 ? 0 : passed;
	return Max(TRIM_LEAST, Min(shortest / 4, TRIM_IDLE));
}

/* The tables are locked for writing, unless that would be to wait for somebody. */
static bool
lock_segment(int segment)
{
	for (int kind = 0; kind < LOG_KINDS; kind++)
	{
		if (!ConditionalLockRelationOid(registry_relation(kind, segment), RowExclusiveLock))
			return false;
	}
	return true;
}

static Datum
make_array(Datum *elements, int count, Oid type)
{
	int			length = type == INT4OID ? 4 : 8;

	return PointerGetDatum(construct_array(elements, count, type, length, true,
										   type == INT4OID ? TYPALIGN_INT : TYPALIGN_DOUBLE));
}

/* Keep an array of the result for the next part. */
static void
remember(TrimWalk *walk, Datum *array, int column)
{
	MemoryContext caller = MemoryContextSwitchTo(walk->context);
	bool		isnull;

	pfree(DatumGetPointer(*array));
	*array = datumCopy(spi_value(0, column, &isnull), false, -1);
	MemoryContextSwitchTo(caller);
}

/* Remove what can be of the next tasks of the segment; false if it has no more that may be old. */
static bool
trim_chunk(TrimWalk *walk, int segment)
{
	SpiScope	scope;
	Datum		values[9];
	Datum		last;
	bool		done;
	bool		isnull;
	int64		removed;

	spi_begin(&scope);
	values[0] = Int64GetDatum(walk->from);
	values[1] = Int64GetDatum(TRIM_CHUNK);
	values[2] = make_array(walk->queues, walk->queue_count, INT4OID);
	values[3] = make_array(walk->cuts, walk->queue_count, TIMESTAMPTZOID);
	values[4] = make_array(walk->failed_cuts, walk->queue_count, TIMESTAMPTZOID);
	values[5] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[6] = walk->ended;
	values[7] = walk->alive;
	values[8] = walk->alive_cuts;
	(void) spi_run(&trim_segment[segment], values, NULL);
	last = spi_value(0, 1, &done);
	if (!done)
	{
		done = DatumGetTimestampTz(spi_value(0, 2, &isnull)) > walk->latest_cut;
		removed = spi_int64(0, 3);
		walk->removed += removed;
		remember(walk, &walk->ended, 4);
		remember(walk, &walk->alive, 5);
		remember(walk, &walk->alive_cuts, 6);
		walk->from = done ? walk->from : DatumGetInt64(last) + 1;
		if (removed > 0)
			segments_note_removed(DatumGetInt64(last) + 1);
	}
	spi_end(&scope);
	return !done;
}

bool
trim_continue(Database *database, TrimWalk *walk)
{
	int			segment = walk->segments[walk->at];
	bool		more = false;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (!database->retention_changed && lock_segment(segment))
		more = trim_chunk(walk, segment);
	FANOUT_POINT(TRIM_DELETED);
	PopActiveSnapshot();
	CommitTransactionCommand();
	passed = walk->from;
	if (!more)
		walk->at++;
	return walk->at < walk->segment_count && !database->retention_changed;
}
