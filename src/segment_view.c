/*
 * segment_view.c
 *		What memory knows of the segments of the log, for the view of them.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "registry.h"
#include "survivors.h"

PG_FUNCTION_INFO_V1(fanout_live_segments);

/* In words, for what the segment is kept; NULL: for nothing that is known. */
static const char *
kept_because(const SegmentKept *kept)
{
	const char *words = NULL;

	switch (kept->reason)
	{
		case KEPT_NOT:
			return NULL;
		case KEPT_LOCKED:
			return "a transaction uses its tables";
		case KEPT_SNAPSHOT:
			return "a snapshot is older than its tasks' move to the next one";
		case KEPT_UNFINISHED:
			words = "unfinished";
			break;
		case KEPT_RECENT:
			words = "not old enough";
			break;
		case KEPT_FAILED:
			words = "failed";
			break;
		case KEPT_KEY:
			words = "holding a key";
			break;
		case KEPT_BATCH:
			words = "of a batch that goes on";
			break;
		case KEPT_SLOW:
			return psprintf(INT64_FORMAT " tasks have to stay, and to move them takes too long", kept->tasks);
	}
	return psprintf("more than %d tasks have to stay, most of them %s", SURVIVORS_MOST, words);
}

Datum
fanout_live_segments(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	SegmentKept kept[FANOUT_SEGMENTS] = {0};
	Database   *database;

	require_readable();
	set = result_set_begin(fcinfo);
	if (RecoveryInProgress())
		return (Datum) 0;

	dispatcher_lock();
	database = database_find(MyDatabaseId);
	if (database != NULL)
		memcpy(kept, database->kept, sizeof(kept));
	dispatcher_unlock();
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
	{
		const char *because = kept_because(&kept[i]);
		Datum		values[3];
		bool		nulls[3] = {false, kept[i].at == 0, because == NULL};

		values[0] = Int16GetDatum(i + 1);
		values[1] = TimestampTzGetDatum(kept[i].at);
		values[2] = because == NULL ? (Datum) 0 : CStringGetTextDatum(because);
		result_set_add(&set, values, nulls);
	}
	return (Datum) 0;
}
