/*
 * remains.c
 *		What is left in the small catalogues of tasks that are gone.
 *
 * A batch goes, with its parts, when it is sealed and the last of its tasks is
 * gone, or the retention is over if it never had any; what a task has spawned is forgotten with the task.  These are deletions
 * of ordinary rows, which autovacuum is to clean up after.  They are found by
 * walking through the catalogues, which takes a row or two for each call that
 * made a batch or used a step: no index is kept for it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "points.h"
#include "remains.h"
#include "spi.h"

#define REMAINS_CHUNK	1000

/* One that somebody has locked is left for the next walk. */
static SpiStatement delete_batches = {
	"WITH chunk AS MATERIALIZED (SELECT id FROM fanout.batch WHERE id >= $1 ORDER BY id LIMIT $2),"
	" gone AS MATERIALIZED (SELECT b.id FROM fanout.batch b JOIN chunk USING (id) WHERE b.sealed"
	"   AND (b.created_at <= $3 OR EXISTS (SELECT FROM fanout.batch_part p WHERE p.batch = b.id)) AND NOT EXISTS (SELECT FROM fanout.batch_part p, LATERAL (SELECT FROM fanout.task t"
	"     WHERE t.id >= p.first_task AND t.id < p.first_task + p.tasks LIMIT 1) AS t WHERE p.batch = b.id)"
	"   FOR UPDATE OF b SKIP LOCKED),"
	" parts AS (DELETE FROM fanout.batch_part p USING gone WHERE p.batch = gone.id),"
	" batches AS (DELETE FROM fanout.batch b USING gone WHERE b.id = gone.id)"
	" SELECT max(id) FROM chunk", 3, {INT8OID, INT8OID, TIMESTAMPTZOID}
};
static SpiStatement delete_spawns = {
	"WITH chunk AS MATERIALIZED (SELECT parent FROM fanout.spawn WHERE parent >= $1 ORDER BY parent LIMIT $2),"
	" gone AS MATERIALIZED (SELECT DISTINCT parent FROM chunk"
	"   WHERE NOT EXISTS (SELECT FROM fanout.task t WHERE t.id = chunk.parent)),"
	" spawns AS (DELETE FROM fanout.spawn s USING gone WHERE s.parent = gone.parent)"
	" SELECT max(parent) FROM chunk WHERE $3 IS NOT NULL", 3, {INT8OID, INT8OID, TIMESTAMPTZOID}
};

static SpiStatement *const phases[] = {&delete_batches, &delete_spawns};

bool
remains_continue(RemainsWalk *walk, TimestampTz cut)
{
	SpiScope	scope;
	Datum		values[3] = {Int64GetDatum(walk->from), Int64GetDatum(REMAINS_CHUNK), TimestampTzGetDatum(cut)};
	Datum		last;
	bool		done;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	(void) spi_run(phases[walk->phase], values, NULL);
	last = spi_value(0, 1, &done);
	walk->from = done ? 0 : DatumGetInt64(last) + 1;
	walk->phase += done;
	spi_end(&scope);
	FANOUT_POINT(REMAINS_DELETED);
	PopActiveSnapshot();
	CommitTransactionCommand();
	return walk->phase < lengthof(phases);
}
