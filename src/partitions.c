/*
 * partitions.c
 *		Settings of single partitions, and what is to be seen of all.
 *
 * A partition needs no settings: it is there as long as it has tasks.  One
 * that has some keeps its lane in memory, so that they are at hand whenever a
 * task comes.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "commit_hooks.h"
#include "lane.h"
#include "lane_limits.h"
#include "partitions.h"
#include "queue_settings.h"
#include "queues.h"
#include "registry.h"
#include "spi.h"
#include "views.h"
#include "window.h"

PG_FUNCTION_INFO_V1(fanout_set_partition);
PG_FUNCTION_INFO_V1(fanout_pause_partition);
PG_FUNCTION_INFO_V1(fanout_resume_partition);
PG_FUNCTION_INFO_V1(fanout_backpressure);
PG_FUNCTION_INFO_V1(fanout_live_lanes);

#define LANE_SETTINGS_COLUMNS "concurrency, weight, paused, rate_limit, rate_period, held_until, max_backlog"

static SpiStatement upsert_partition = {
	"INSERT INTO fanout.partition AS p (queue, key, lane, concurrency, weight, rate_limit, rate_period, max_backlog)"
	" VALUES ($1, $2, $3, $4, coalesce($5, 1), $6, $7, $9)"
	" ON CONFLICT (queue, key) DO UPDATE SET weight = coalesce($5, p.weight),"
	" concurrency = CASE WHEN 'concurrency' = ANY ($8) THEN NULL ELSE coalesce($4, p.concurrency) END,"
	" rate_limit = CASE WHEN 'rate_limit' = ANY ($8) THEN NULL ELSE coalesce($6, p.rate_limit) END,"
	" rate_period = CASE WHEN 'rate_limit' = ANY ($8) THEN NULL ELSE coalesce($7, p.rate_period) END,"
	" max_backlog = CASE WHEN 'max_backlog' = ANY ($8) THEN NULL ELSE coalesce($9, p.max_backlog) END"
	" RETURNING " LANE_SETTINGS_COLUMNS,
	9, {INT4OID, TEXTOID, INT8OID, INT4OID, INT4OID, INT4OID, INTERVALOID, TEXTARRAYOID, INT4OID}
};
static SpiStatement pause_partition = {
	"INSERT INTO fanout.partition AS p (queue, key, lane, paused) VALUES ($1, $2, $3, true)"
	" ON CONFLICT (queue, key) DO UPDATE SET paused = true WHERE NOT p.paused RETURNING " LANE_SETTINGS_COLUMNS,
	3, {INT4OID, TEXTOID, INT8OID}
};
static SpiStatement resume_partition = {
	"UPDATE fanout.partition SET paused = false WHERE queue = $1 AND key = $2 AND lane = $3 AND paused"
	" RETURNING " LANE_SETTINGS_COLUMNS,
	3, {INT4OID, TEXTOID, INT8OID}
};
static SpiStatement hold_partition = {
	"INSERT INTO fanout.partition AS p (queue, key, lane, held_until) VALUES ($1, $2, $3, $4)"
	" ON CONFLICT (queue, key) DO UPDATE SET held_until = $4 RETURNING " LANE_SETTINGS_COLUMNS,
	4, {INT4OID, TEXTOID, INT8OID, TIMESTAMPTZOID}
};
static SpiStatement hold_queue = {
	"UPDATE fanout.queue SET held_until = $2 WHERE id = $1", 2, {INT4OID, TIMESTAMPTZOID}
};
static SpiStatement delete_idle = {
	"DELETE FROM fanout.partition WHERE queue = $1 AND key = $2 AND concurrency IS NULL AND weight = 1 AND NOT paused"
	" AND rate_limit IS NULL AND max_backlog IS NULL AND (held_until IS NULL OR held_until <= clock_timestamp())",
	2, {INT4OID, TEXTOID}
};
static SpiStatement select_partitions = {
	"SELECT queue, lane, " LANE_SETTINGS_COLUMNS " FROM fanout.partition"
	" WHERE concurrency IS NOT NULL OR weight <> 1 OR paused OR rate_limit IS NOT NULL OR max_backlog IS NOT NULL"
	" OR held_until > clock_timestamp()", 0, {0}
};

int64
hash_of_key(text *key)
{
	int64		hash = (int64) hash_bytes_extended((unsigned char *) VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key), 0);

	return hash != 0 ? hash : 1;
}

int64
partition_of(text *key)
{
	int			length = VARSIZE_ANY_EXHDR(key);

	if (length == 0 || length > PARTITION_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid partition key"),
				 errdetail("A partition key must have from 1 to %d bytes.", PARTITION_KEY_MAX)));
	return hash_of_key(key);
}

int64
fair_group_of(text *name)
{
	int			length = VARSIZE_ANY_EXHDR(name);

	if (length == 0 || length > PARTITION_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid fair group"),
				 errdetail("The name of a fair group must have from 1 to %d bytes.", PARTITION_KEY_MAX)));
	return hash_of_key(name);
}

static LaneSettings
read_settings(uint64 row, int first_column)
{
	LaneSettings settings = {0};
	bool		isnull;
	Datum		held_until;
	Datum		max_backlog;
	Datum		concurrency = spi_value(row, first_column, &isnull);

	settings.concurrency = isnull ? 0 : DatumGetInt32(concurrency);
	settings.weight = DatumGetInt32(spi_value(row, first_column + 1, &isnull));
	settings.paused = DatumGetBool(spi_value(row, first_column + 2, &isnull));
	settings.rate = rate_limit_read(row, first_column + 3);
	held_until = spi_value(row, first_column + 5, &isnull);
	settings.held_until = isnull ? 0 : DatumGetTimestampTz(held_until);
	max_backlog = spi_value(row, first_column + 6, &isnull);
	settings.max_backlog = isnull ? 0 : DatumGetInt32(max_backlog);
	return settings;
}

/* For a rebuild, before tasks are loaded. */
void
partitions_load(Database *database)
{
	SpiScope	scope;
	uint64		rows;
	int64		left_out = 0;

	spi_begin(&scope);
	rows = spi_read_latest(&select_partitions, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		int32		queue_id = DatumGetInt32(spi_value(i, 1, &isnull));
		int64		partition = spi_int64(i, 2);
		LaneSettings settings = read_settings(i, 3);
		Queue	   *queue;

		dispatcher_lock();
		queue = queue_find(database->db, queue_id);
		left_out += queue != NULL && !lane_set(queue, partition, &settings);
		dispatcher_unlock();
	}
	spi_end(&scope);
	if (left_out > 0)
		ereport(WARNING,
				(errmsg("pg_fanout has no place in memory for the settings of " INT64_FORMAT " partitions of database %u",
						left_out, database->db),
				 errdetail("Only what is set for their queues holds for them."),
				 errhint("Raise pg_fanout.max_lanes or pg_fanout.max_limited_lanes and restart the server.")));
}

/* The lane will have settings: it is to stay until then. */
static void
keep_lane(const QueueRef *ref, int64 partition)
{
	bool		gone;
	bool		kept;

	dispatcher_lock();
	gone = !queue_ref_is_valid(ref);
	kept = !gone && lane_keep(ref->queue, partition);
	dispatcher_unlock();

	if (gone)
		throw_queue_gone(ref->name);
	if (!kept)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many partitions"),
				 errhint("Raise pg_fanout.max_lanes or pg_fanout.max_limited_lanes and restart the server.")));
}

/*
 * Change the settings of a partition by the statement, whose first three
 * parameters are the same for all; false if it did nothing.
 */
static bool
change_partition(const QueueRef *ref, text *key, SpiStatement *statement, Datum *values, const char *nulls)
{
	int64		partition = partition_of(key);
	SpiScope	scope;
	bool		changed;

	values[0] = Int32GetDatum(ref->id);
	values[1] = PointerGetDatum(key);
	values[2] = Int64GetDatum(partition);

	spi_begin(&scope);
	changed = spi_run(statement, values, nulls) == 1;
	if (changed)
	{
		LaneSettings settings = read_settings(0, 1);

		pending_prepare(1);
		keep_lane(ref, partition);
		pending_lane_set(ref->queue, partition, &settings);

		/* a row that says nothing any more goes; of one that only held the partition back, with the next change */
		(void) spi_run(&delete_idle, values, NULL);
	}
	spi_end(&scope);
	return changed;
}

/* The same for a function whose first arguments are queue and key, and that needs the right to manage. */
static bool
manage_partition(FunctionCallInfo fcinfo, SpiStatement *statement, Datum *values, const char *nulls)
{
	QueueRef	ref;

	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 1, "key");
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	return change_partition(&ref, PG_GETARG_TEXT_PP(1), statement, values, nulls);
}

static void
check_unset(FunctionCallInfo fcinfo, int arg)
{
	Datum	   *names;
	bool	   *nulls;
	int			count = array_elements(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, "unset", &names, &nulls, false);

	for (int i = 0; i < count; i++)
	{
		char	   *name = TextDatumGetCString(names[i]);
		bool		concurrency = strcmp(name, "concurrency") == 0 && PG_ARGISNULL(2);
		bool		rate = strcmp(name, "rate_limit") == 0 && PG_ARGISNULL(4);
		bool		backlog = strcmp(name, "max_backlog") == 0 && PG_ARGISNULL(7);

		if (!concurrency && !rate && !backlog)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cannot unset \"%s\"", name),
					 errdetail("Only concurrency, rate_limit and max_backlog can be unset, each unless it is given a value.")));
	}
}

Datum
fanout_set_partition(PG_FUNCTION_ARGS)
{
	Datum		values[9];
	char		nulls[10] = "         ";

	require_writable("fanout.set_partition()");
	if (!PG_ARGISNULL(2) && PG_GETARG_INT32(2) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("concurrency must be at least 1")));
	if (!PG_ARGISNULL(3) && (PG_GETARG_INT32(3) < 1 || PG_GETARG_INT32(3) > LANE_WEIGHT_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("weight must be from 1 to %d", LANE_WEIGHT_MAX)));
	if (!PG_ARGISNULL(7) && PG_GETARG_INT32(7) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_backlog must be at least 1")));
	check_rate(fcinfo, 4, "rate_limit", "rate_period");
	if (!PG_ARGISNULL(6))
		check_unset(fcinfo, 6);
	for (int i = 2; i < 8; i++)
	{
		values[i + 1] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i + 1] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	(void) manage_partition(fcinfo, &upsert_partition, values, nulls);
	PG_RETURN_VOID();
}

Datum
fanout_pause_partition(PG_FUNCTION_ARGS)
{
	Datum		values[3];

	require_writable("fanout.pause_partition()");
	PG_RETURN_BOOL(manage_partition(fcinfo, &pause_partition, values, NULL));
}

Datum
fanout_resume_partition(PG_FUNCTION_ARGS)
{
	Datum		values[3];

	require_writable("fanout.resume_partition()");
	PG_RETURN_BOOL(manage_partition(fcinfo, &resume_partition, values, NULL));
}

/* For workers: those who may dequeue know when what is behind the queue has had enough. */
Datum
fanout_backpressure(PG_FUNCTION_ARGS)
{
	QueueRef	ref;
	Datum		values[4];

	require_writable("fanout.backpressure()");
	require_arg(fcinfo, 0, "queue");
	require_arg(fcinfo, 1, "until");
	if (TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(1)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("until must be finite"),
				 errhint("Use fanout.pause_queue() or fanout.pause_partition() to stop it for good.")));
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_DEQUEUE);
	if (PG_ARGISNULL(2))
	{
		SpiScope	scope;

		values[0] = Int32GetDatum(ref.id);
		values[1] = PG_GETARG_DATUM(1);
		spi_begin(&scope);
		if (spi_run(&hold_queue, values, NULL) == 1)
			queue_follow_catalogue(&ref);
		spi_end(&scope);
		PG_RETURN_VOID();
	}
	values[3] = PG_GETARG_DATUM(1);
	(void) change_partition(&ref, PG_GETARG_TEXT_PP(2), &hold_partition, values, NULL);
	PG_RETURN_VOID();
}

/* What is shown of a lane, copied out. */
typedef struct LiveLane
{
	int32		queue_id;
	int64		partition;
	int64		sample_task;
	int64		ready;
	int32		running;
	int32		concurrency;
	int32		startable;
	int32		backlog;
	int32		max_backlog;
	bool		more_on_disk;
	TimestampTz next_start;		/* 0: not a matter of time */
	int64		group_task;		/* one that names its fair group; 0: it is in none */
	int64		awaits_task;	/* one that is to be tried again; 0: none */
} LiveLane;

/* Copy the lanes of this database's partitions; their number. */
static int64
copy_lanes(LiveLane **lanes)
{
	int64		room = fanout_max_lanes;
	int64		count = 0;

	*lanes = MemoryContextAllocHuge(CurrentMemoryContext, room * sizeof(LiveLane));
	dispatcher_lock();
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state == QUEUE_FREE || queue->db != MyDatabaseId)
			continue;
		short_list_foreach(node, &queue->lanes)
		{
			Lane	   *lane = link_container(Lane, link, node);
			LiveLane   *live = &(*lanes)[count++];
			Task	   *retry;

			live->queue_id = queue->id;
			live->partition = lane->partition;
			live->sample_task = lane_sample(lane);
			live->ready = lane->ready.set.count;
			live->running = lane->running;
			live->concurrency = lane_limit(lane);
			live->startable = lane->startable;
			live->backlog = lane->backlog;
			live->max_backlog = lane_max_backlog(lane);
			live->more_on_disk = window_is_bounded(lane->with_strays ? &queue->strays : &lane->ready);
			live->next_start = lane->ready.set.count > 0 ? lane_throttled_until(lane) : 0;
			live->group_task = lane->group != 0 ? group_of(lane)->sample_task : 0;
			retry = lane_awaited_retry(lane);
			live->awaits_task = retry != NULL ? retry->node.id : 0;
			if (retry != NULL)
				live->next_start = Max(live->next_start, retry->node.key);
		}
	}
	dispatcher_unlock();
	return count;
}

Datum
fanout_live_lanes(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	VisibleQueues *visible;
	LiveLane   *lanes;
	int64		count;

	require_readable();
	set = result_set_begin(fcinfo);
	if (RecoveryInProgress())
		return (Datum) 0;

	visible = read_visible_queues();
	count = copy_lanes(&lanes);
	for (int64 i = 0; i < count; i++)
	{
		LiveLane   *lane = &lanes[i];
		Datum		values[13];
		bool		nulls[13] = {false};

		if (!queue_is_visible(visible, lane->queue_id))
			continue;
		values[0] = Int32GetDatum(lane->queue_id);
		values[1] = Int64GetDatum(lane->partition);
		values[2] = Int64GetDatum(lane->sample_task);
		values[3] = Int64GetDatum(lane->ready);
		values[4] = Int32GetDatum(lane->running);
		values[5] = Int32GetDatum(lane->concurrency);
		nulls[5] = lane->concurrency == 0;
		values[6] = Int32GetDatum(lane->startable);
		values[7] = BoolGetDatum(lane->more_on_disk);
		values[8] = TimestampTzGetDatum(lane->next_start);
		nulls[8] = lane->next_start == 0;
		values[9] = Int64GetDatum(lane->awaits_task);
		nulls[9] = lane->awaits_task == 0;
		values[10] = Int64GetDatum(lane->group_task);
		nulls[10] = lane->group_task == 0;
		values[11] = Int32GetDatum(lane->backlog);
		values[12] = Int32GetDatum(lane->max_backlog);
		nulls[12] = lane->max_backlog == 0;
		result_set_add(&set, values, nulls);
	}
	return (Datum) 0;
}
