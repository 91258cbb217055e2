/*
 * survivors.c
 *		Which tasks of a segment have to stay when it is retired.
 *
 * A task stays that is unfinished, that has ended or failed not so long ago,
 * that holds its key for a time, and of a batch every task as long as one of
 * them stays for the first two reasons.  The segment is not the current one, so
 * no task is added; it is read in parts, each in a transaction of its own,
 * between which the keeper does what else it has to.
 *
 * What has ended stays so meanwhile unless somebody unsettles the segment
 * (segments.c), which is counted.  The look begins when the count has been read
 * and nobody holds a ROW EXCLUSIVE lock on the tasks or outcomes: who has
 * unsettled it before has ended then, and is seen.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/array.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ids.h"
#include "points.h"
#include "registry.h"
#include "segments.h"
#include "spi.h"
#include "survivors.h"

#define LOOK_ROWS		5000	/* tasks that are looked at in one go */
#define LOOK_AT_BATCHES	1000
#define LOOK_AT_PARTS	100		/* batches of which all tasks are listed in one go */

/* The last row tells how far it got, and has no reason. */
#define SELECT_SURVIVORS(segment) { \
	"WITH chunk AS MATERIALIZED (SELECT t.id, t.batch, t.queue, t.key, t.key_until, o.finished_at, o.status" \
	"   FROM fanout.task" segment " t LEFT JOIN fanout.outcome" segment " o ON o.task = t.id" \
	"  WHERE t.id >= $1 ORDER BY t.id LIMIT $2)," \
	" marked AS (SELECT id, batch, CASE WHEN finished_at IS NULL THEN 1 WHEN finished_at > $3 THEN 2" \
	"   WHEN status = 'f' AND finished_at > $4 THEN 3" \
	"   WHEN key_until > $5 AND NOT EXISTS (SELECT FROM fanout.task n" \
	"     WHERE n.queue = chunk.queue AND n.key = chunk.key AND n.id > chunk.id) THEN 4 END AS reason FROM chunk)" \
	" SELECT id, batch, reason FROM marked WHERE reason IS NOT NULL" \
	" UNION ALL SELECT max(id), count(*), NULL FROM chunk", \
	5, {INT8OID, INT8OID, TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID} \
}
static SpiStatement select_survivors[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(SELECT_SURVIVORS);

/*
 * Batches with tasks here ($4 to $5) and elsewhere, where some have not ended
 * since $3; NULL, in the last row, for how far it got.
 */
static SpiStatement select_batches = {
	"WITH chunk AS MATERIALIZED (SELECT id FROM fanout.batch WHERE id >= $1 ORDER BY id LIMIT $2)"
	" SELECT id, 1 FROM chunk WHERE EXISTS (SELECT FROM fanout.batch_part p"
	"   WHERE p.batch = chunk.id AND p.first_task >= $4 AND p.first_task < $5)"
	"  AND EXISTS (SELECT FROM fanout.batch_part p, LATERAL (SELECT FROM fanout.task t"
	"     WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks"
	"       AND NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id AND o.finished_at <= $3) LIMIT 1) AS t"
	"   WHERE p.batch = chunk.id AND (p.first_task < $4 OR p.first_task >= $5))"
	" UNION ALL SELECT max(id), NULL FROM chunk", 5, {INT8OID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID}
};
#define SELECT_TASKS_OF_BATCHES(segment) { \
	"SELECT t.id FROM fanout.batch_part p, LATERAL (SELECT t.id FROM fanout.task" segment " t" \
	"   WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks) AS t WHERE p.batch = ANY ($1) LIMIT $2", \
	2, {INT8ARRAYOID, INT8OID} \
}
static SpiStatement select_tasks_of_batches[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(SELECT_TASKS_OF_BATCHES);

/* The first unfinished one of the next tasks; the last of these. */
#define SELECT_UNFINISHED(segment) { \
	"SELECT min(t.id) FILTER (WHERE t.unfinished), max(t.id) FROM" \
	" (SELECT t.id, NOT EXISTS (SELECT FROM fanout.outcome" segment " o WHERE o.task = t.id) AS unfinished" \
	"    FROM fanout.task" segment " t WHERE t.id >= $1 ORDER BY t.id LIMIT $2) AS t", 2, {INT8OID, INT8OID} \
}
static SpiStatement select_unfinished[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(SELECT_UNFINISHED);

static uint64
read_unsettled(const Database *database, int segment)
{
	uint64		unsettled;

	dispatcher_lock();
	unsettled = database->unsettled[segment];
	dispatcher_unlock();
	return unsettled;
}

/* Lock both tables against who makes tasks unfinished, if nobody is at it. */
static bool
exclude_unsettlers(int segment)
{
	return ConditionalLockRelationOid(registry_relation(LOG_TASK, segment), ShareLock) &&
		ConditionalLockRelationOid(registry_relation(LOG_OUTCOME, segment), ShareLock);
}

/* Read the count, and see to it that whoever has counted so far has ended. */
static bool
begin_look(const Database *database, int segment, uint64 *unsettled)
{
	bool		excluded;

	*unsettled = read_unsettled(database, segment);
	StartTransactionCommand();
	excluded = exclude_unsettlers(segment);
	CommitTransactionCommand();
	return excluded;
}

bool
survivors_begin(Database *database, SurvivorLook *look, MemoryContext context)
{
	MemoryContextReset(context);
	look->context = context;
	look->phase = LOOK_TASKS;
	look->from = PG_INT64_MIN;
	memset(&look->survivors, 0, sizeof(IdList));
	memset(&look->batches, 0, sizeof(IdList));
	memset(look->reasons, 0, sizeof(look->reasons));
	return begin_look(database, look->segment, &look->unsettled);
}

static void
add_id(MemoryContext context, IdList *list, int64 id)
{
	if (list->count > 0 && list->ids[list->count - 1] == id)
		return;
	if (list->count == list->room)
	{
		list->room = Max(list->room * 2, 1024);
		list->ids = list->ids == NULL ? MemoryContextAllocHuge(context, list->room * sizeof(int64)) :
			repalloc_huge(list->ids, list->room * sizeof(int64));
	}
	list->ids[list->count++] = id;
}

/* Each once, in their order. */
static void
make_unique(IdList *list)
{
	int64		unique = 0;

	if (list->count > 1)
		qsort(list->ids, list->count, sizeof(int64), ids_compare);
	for (int64 i = 0; i < list->count; i++)
	{
		if (unique == 0 || list->ids[unique - 1] != list->ids[i])
			list->ids[unique++] = list->ids[i];
	}
	list->count = unique;
}

bool
survivors_too_many(const SurvivorLook *look)
{
	return look->survivors.count > SURVIVORS_MOST;
}

KeptReason
survivors_reason(const SurvivorLook *look)
{
	KeptReason	reason = KEPT_UNFINISHED;

	for (int i = KEPT_UNFINISHED; i <= KEPT_BATCH; i++)
	{
		if (look->reasons[i] > look->reasons[reason])
			reason = i;
	}
	return reason;
}

static void
next_phase(SurvivorLook *look, LookPhase phase)
{
	look->phase = phase;
	look->from = phase == LOOK_BATCHES ? PG_INT64_MIN : 0;
	if (phase == LOOK_EXPAND)
		make_unique(&look->batches);
	if (phase == LOOK_DONE)
		make_unique(&look->survivors);
}

static void
look_at_tasks(SurvivorLook *look)
{
	static const KeptReason reasons[] = {KEPT_NOT, KEPT_UNFINISHED, KEPT_RECENT, KEPT_FAILED, KEPT_KEY};
	Datum		values[5] = {Int64GetDatum(look->from), Int64GetDatum(LOOK_ROWS), TimestampTzGetDatum(look->cut),
	TimestampTzGetDatum(look->failed_cut), TimestampTzGetDatum(GetCurrentTimestamp())};
	uint64		rows = spi_read_latest(&select_survivors[look->segment], values, NULL);
	bool		isnull;

	for (uint64 i = 0; i < rows; i++)
	{
		int			reason = DatumGetInt32(spi_value(i, 3, &isnull));
		Datum		batch;

		if (isnull)
		{
			if (spi_int64(i, 2) < LOOK_ROWS)
				next_phase(look, LOOK_BATCHES);
			else
				look->from = spi_int64(i, 1) + 1;
			continue;
		}
		look->reasons[reasons[reason]]++;
		add_id(look->context, &look->survivors, spi_int64(i, 1));
		batch = spi_value(i, 2, &isnull);
		if (!isnull && reasons[reason] <= KEPT_RECENT)
			add_id(look->context, &look->batches, DatumGetInt64(batch));
	}
}

static void
look_at_batches(SurvivorLook *look)
{
	Datum		values[5] = {Int64GetDatum(look->from), Int64GetDatum(LOOK_AT_BATCHES), TimestampTzGetDatum(look->cut),
	Int64GetDatum(look->first), Int64GetDatum(look->end)};
	uint64		rows = spi_read_latest(&select_batches, values, NULL);

	for (uint64 i = 0; i < rows; i++)
	{
		bool		is_last;
		bool		none;
		Datum		batch = spi_value(i, 1, &none);

		(void) spi_value(i, 2, &is_last);
		if (!is_last)
			add_id(look->context, &look->batches, DatumGetInt64(batch));
		else if (none)
			next_phase(look, LOOK_EXPAND);
		else
			look->from = DatumGetInt64(batch) + 1;
	}
}

static void
expand_batches(SurvivorLook *look)
{
	int64		count = Min(look->batches.count - look->from, LOOK_AT_PARTS);
	Datum		values[2];
	Datum		ids[LOOK_AT_PARTS];
	uint64		rows;

	if (count <= 0)
	{
		next_phase(look, LOOK_DONE);
		return;
	}
	for (int64 i = 0; i < count; i++)
		ids[i] = Int64GetDatum(look->batches.ids[look->from + i]);
	values[0] = PointerGetDatum(construct_array(ids, count, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	values[1] = Int64GetDatum(SURVIVORS_MOST * 2);
	rows = spi_read_latest(&select_tasks_of_batches[look->segment], values, NULL);
	for (uint64 i = 0; i < rows; i++)
		add_id(look->context, &look->survivors, spi_int64(i, 1));
	look->reasons[KEPT_BATCH] += rows;
	make_unique(&look->survivors);
	look->from += count;
}

bool
survivors_continue(SurvivorLook *look)
{
	SpiScope	scope;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	spi_follow_order();
	if (look->phase == LOOK_TASKS)
		look_at_tasks(look);
	else if (look->phase == LOOK_BATCHES)
		look_at_batches(look);
	else
		expand_batches(look);
	spi_end(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return look->phase == LOOK_DONE || survivors_too_many(look);
}

/* Nobody has the tables for himself: they can be read without a wait. */
static bool
lock_for_reading(int segment)
{
	return ConditionalLockRelationOid(registry_relation(LOG_TASK, segment), AccessShareLock) &&
		ConditionalLockRelationOid(registry_relation(LOG_OUTCOME, segment), AccessShareLock);
}

/* Look at the next tasks; false if one of them is, or may be, unfinished.  "more" tells if there are more. */
static bool
pass_finished(int segment, FinishLook *look, bool *more)
{
	SpiScope	scope;
	Datum		values[2] = {Int64GetDatum(look->from), Int64GetDatum(LOOK_ROWS)};
	bool		finished;
	bool		isnull;
	Datum		value;

	StartTransactionCommand();
	if (!lock_for_reading(segment))
	{
		CommitTransactionCommand();
		return false;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	spi_follow_order();
	(void) spi_read_latest(&select_unfinished[segment], values, NULL);
	value = spi_value(0, 1, &finished);
	if (!finished)
		look->from = DatumGetInt64(value);
	else
	{
		value = spi_value(0, 2, &isnull);
		*more = !isnull;
		if (*more)
			look->from = DatumGetInt64(value) + 1;
	}
	spi_end(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return finished;
}

/* All tasks have ended: have that on disk, unless the segment was unsettled. */
static bool
note_finished(Database *database, int segment, const FinishLook *look)
{
	SegmentMap	map;

	FANOUT_POINT(FINISH_LOOKED);
	segments_begin_change(database, &map);

	/* who unsettles the segment from here on waits for our locks, and then sees that it is finished */
	if (!exclude_unsettlers(segment) || read_unsettled(database, segment) != look->unsettled)
	{
		PopActiveSnapshot();
		CommitTransactionCommand();
		return false;
	}
	segment_store_finished(segment, true);
	map.finished[segment] = true;
	FANOUT_POINT(FINISH_STORED);
	segments_commit_change(&map);
	FANOUT_POINT(FINISH_COMMITTED);
	return true;
}

FinishResult
finish_continue(Database *database, int segment, FinishLook *look)
{
	bool		more = false;

	if (look->begun && read_unsettled(database, segment) != look->unsettled)
		look->begun = false;
	if (!look->begun)
	{
		look->from = PG_INT64_MIN;
		look->begun = begin_look(database, segment, &look->unsettled);
		if (!look->begun)
			return FINISH_LATER;
	}
	if (!pass_finished(segment, look, &more))
		return FINISH_LATER;
	if (more)
		return FINISH_MORE;

	/* one that is empty costs nothing to read, and may be about to be restored: its tasks come all at once */
	if (look->from == PG_INT64_MIN)
		return FINISH_LATER;
	return note_finished(database, segment, look) ? FINISHED : FINISH_LATER;
}
