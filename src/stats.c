/*
 * stats.c
 *		What the extension is doing: status(), and the views of counters and
 *		of pools.
 *
 * Counters are plain numbers in the database's slot, counted by whoever has
 * the dispatcher lock anyway; all are copied out in one hold of it, so what is
 * shown together was true together.  As in views.c, nothing here fails or
 * waits where there is no memory to look at.
 */
#include "postgres.h"

#include "access/xlog.h"
#include "catalog/pg_authid.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "journal.h"
#include "lane_pools.h"
#include "registry.h"
#include "room.h"
#include "shared_state.h"
#include "version.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fanout_status);
PG_FUNCTION_INFO_V1(fanout_stats);
PG_FUNCTION_INFO_V1(fanout_pools);

/* What is told of the database, copied out of its slot. */
typedef struct Status
{
	bool		known;			/* the database has a slot */
	Database	slot;
	TimestampTz oldest_claim;	/* that is to be journaled; 0: none */
	int32		launcher_pid;	/* 0: none */
	int32		queues;
	bool		wrong_version;	/* of the library or of the extension */
} Status;

/* A pool of the server, or what is used like one. */
typedef struct PoolUse
{
	const char *pool;
	int64		used;
	int64		size;
	const char *setting;
} PoolUse;

#define STATUS_COLUMNS	2

#define MAX_POOLS	16

/* Count the queues that are in memory, of all databases or of one. */
static int32
count_queues(Oid db)
{
	int32		count = 0;

	for (int i = 0; i < fanout_shared->queue_high; i++)
		count += fanout_queues[i].state != QUEUE_FREE && (!OidIsValid(db) || fanout_queues[i].db == db);
	return count;
}

static int32
count_databases(void)
{
	int32		count = 0;

	for (int i = 0; i < fanout_shared->database_high; i++)
		count += fanout_databases[i].state != DATABASE_FREE;
	return count;
}

static void
copy_status(Status *status)
{
	Database   *database;

	memset(status, 0, sizeof(Status));
	dispatcher_lock();
	database = database_find(MyDatabaseId);
	if (database != NULL)
	{
		status->known = true;
		status->slot = *database;
		status->oldest_claim = journal_oldest(database);
	}
	status->launcher_pid = fanout_shared->launcher != NULL ? fanout_shared->launcher->pid : 0;
	status->queues = count_queues(MyDatabaseId);
	dispatcher_unlock();
	if (status->slot.keeper == NULL)
		status->slot.keeper_pid = 0;
}

/* What a keeper failed with may tell of anybody's queues. */
static bool
may_see_errors(void)
{
	return has_privs_of_role(GetUserId(), ROLE_PG_READ_ALL_STATS);
}

static const char *
state_word(const Status *status)
{
	if (RecoveryInProgress())
		return "standby";
	if (status->wrong_version)
		return "wrong version";
	if (!status->known)
		return "no keeper";
	if (status->slot.state == DATABASE_READY)
		return "ready";
	if (status->slot.failed_in_a_row > 0)
		return "failing";
	return status->slot.keeper_pid != 0 ? "starting" : "no keeper";
}

static bool
is_ready(const Status *status)
{
	return status->known && status->slot.state == DATABASE_READY;
}

/* -- status() -- */

static void add_item(ResultSet *set, const char *item, const char *format,...) pg_attribute_printf(3, 4);

/* An item of the status; without a format, its value is NULL. */
static void
add_item(ResultSet *set, const char *item, const char *format,...)
{
	Datum		values[STATUS_COLUMNS];
	bool		nulls[STATUS_COLUMNS] = {false, format == NULL};
	char		buffer[FANOUT_ERROR_LEN] = "";
	va_list		args;

	if (format != NULL)
	{
		va_start(args, format);
		vsnprintf(buffer, sizeof(buffer), format, args);
		va_end(args);
	}
	values[0] = CStringGetTextDatum(item);
	values[1] = CStringGetTextDatum(buffer);
	result_set_add(set, values, nulls);
}

static void
add_time(ResultSet *set, const char *item, TimestampTz time)
{
	if (time != 0)
		add_item(set, item, "%s", timestamptz_to_str(time));
	else
		add_item(set, item, NULL);
}

static void
add_pid(ResultSet *set, const char *item, int32 pid)
{
	if (pid != 0)
		add_item(set, item, "%d", pid);
	else
		add_item(set, item, NULL);
}

static void
add_keeper_items(ResultSet *set, const Status *status)
{
	const Database *slot = &status->slot;

	add_pid(set, "launcher pid", status->launcher_pid);
	add_pid(set, "keeper pid", slot->keeper_pid);
	add_item(set, "keeper starts", INT64_FORMAT, slot->keeper_starts);
	add_item(set, "keeper failures", INT64_FORMAT, slot->keeper_failures);
	if (slot->failed_at != 0 && may_see_errors())
		add_item(set, "last keeper error", "%s", slot->last_error);
	else
		add_item(set, "last keeper error", NULL);
	add_time(set, "ready since", is_ready(status) ? slot->ready_since : 0);
	if (is_ready(status))
		add_item(set, "rebuild time", "%.1f ms", slot->rebuild_time / 1000.0);
	else
		add_item(set, "rebuild time", NULL);
}

static void
add_database_items(ResultSet *set, const Status *status)
{
	const Database *slot = &status->slot;

	add_item(set, "journal lag", INT64_FORMAT " leases", slot->journal_count);
	add_item(set, "journaled", INT64_FORMAT, slot->journaled);
	add_item(set, "refills", INT64_FORMAT, slot->refills);
	add_item(set, "evictions", INT64_FORMAT, slot->evictions);
	add_item(set, "wake-ups", INT64_FORMAT ", " INT64_FORMAT " for nothing", slot->wakeups, slot->idle_wakeups);
	add_item(set, "expired leases", INT64_FORMAT, slot->expired);
	add_item(set, "retired segments", INT64_FORMAT, slot->retired);
	add_item(set, "carried tasks", INT64_FORMAT, slot->carried);
	add_time(set, "last retirement", slot->retired_at);
	add_item(set, "next task", INT64_FORMAT, slot->next_task);
	add_item(set, "next lease", INT64_FORMAT, slot->next_lease);
	add_item(set, "queues", "%d", status->queues);
}

/* -- the pools, which all databases of the server share -- */

static int
copy_pools(PoolUse *pools)
{
	int			count = 0;

#define ADD_POOL(name, in_use, most, by_setting) \
	pools[count++] = (PoolUse) {.pool = name, .used = (in_use), .size = (most), .setting = by_setting}

	dispatcher_lock();
	ADD_POOL("tasks", fanout_max_tracked_tasks - fanout_shared->free_tasks, fanout_max_tracked_tasks,
			 "pg_fanout.max_tracked_tasks");
	ADD_POOL("uncommitted tasks", fanout_shared->reserved, reserved_most(), "pg_fanout.max_tracked_tasks");
	ADD_POOL("leases", fanout_max_tracked_tasks - fanout_shared->free_leases, fanout_max_tracked_tasks,
			 "pg_fanout.max_tracked_tasks");
	ADD_POOL("workers", fanout_max_workers - fanout_shared->free_workers, fanout_max_workers,
			 "pg_fanout.max_workers_tracked");
	ADD_POOL("queues of workers", (int64) fanout_max_workers * 2 - fanout_shared->free_uses, (int64) fanout_max_workers * 2,
			 "pg_fanout.max_workers_tracked");
	ADD_POOL("lanes", fanout_max_lanes - fanout_shared->free_lanes, fanout_max_lanes, "pg_fanout.max_lanes");
	ADD_POOL("limited lanes", fanout_max_limited_lanes - fanout_shared->free_limited_lanes, fanout_max_limited_lanes,
			 "pg_fanout.max_limited_lanes");
	ADD_POOL("fair groups", max_groups() - fanout_shared->free_groups, max_groups(), "pg_fanout.max_lanes");
	ADD_POOL("rate entries", fanout_max_rate_entries - fanout_shared->free_rate_entries, fanout_max_rate_entries,
			 "pg_fanout.max_rate_entries");
	ADD_POOL("queues", count_queues(InvalidOid), fanout_max_queues, "pg_fanout.max_queues");
	ADD_POOL("databases", count_databases(), fanout_max_databases, "pg_fanout.max_databases");
	ADD_POOL("waiting backends", waiters_count(), waiters_most(), "max_connections");
	dispatcher_unlock();
	Assert(count <= MAX_POOLS);
	return count;
}

/* The status tells of those that run out in practice. */
static void
add_pool_items(ResultSet *set)
{
	static const char *const told[] = {"tasks", "leases", "workers", "lanes", "limited lanes", "fair groups"};
	PoolUse		pools[MAX_POOLS];
	int			count = copy_pools(pools);

	for (int i = 0; i < count; i++)
	{
		for (int j = 0; j < lengthof(told); j++)
		{
			if (strcmp(pools[i].pool, told[j]) == 0)
				add_item(set, psprintf("%s in memory", told[j]), INT64_FORMAT " of " INT64_FORMAT, pools[i].used,
						 pools[i].size);
		}
	}
}

/* It tells of versions that differ, too, as long as it has the two columns that it knows. */
Datum
fanout_status(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	Status		status;
	char	   *version;

	require_preload();
	version = extension_version();
	copy_status(&status);
	status.wrong_version = version == NULL || strcmp(version, PG_FANOUT_VERSION) != 0;

	set = result_set_begin(fcinfo);
	if (set.desc->natts != STATUS_COLUMNS)
		require_readable();
	add_item(&set, "library version", "%s", PG_FANOUT_VERSION);
	add_item(&set, "extension version", "%s", version != NULL ? version : "none");
	add_item(&set, "state", "%s", state_word(&status));
	add_keeper_items(&set, &status);
	add_database_items(&set, &status);
	add_pool_items(&set);
	return (Datum) 0;
}

Datum
fanout_pools(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	PoolUse		pools[MAX_POOLS];
	int			count;

	require_readable();
	set = result_set_begin(fcinfo);
	count = copy_pools(pools);
	for (int i = 0; i < count; i++)
	{
		Datum		values[4];
		bool		nulls[4] = {false};

		values[0] = CStringGetTextDatum(pools[i].pool);
		values[1] = Int64GetDatum(pools[i].used);
		values[2] = Int64GetDatum(pools[i].size);
		values[3] = CStringGetTextDatum(pools[i].setting);
		result_set_add(&set, values, nulls);
	}
	return (Datum) 0;
}

/* -- fanout.stats -- */

/* A row in the making. */
typedef struct Row
{
	Datum		values[32];
	bool		nulls[32];
	int			count;
} Row;

static void
row_add(Row *row, Datum value, bool isnull)
{
	Assert(row->count < lengthof(row->values));
	row->values[row->count] = value;
	row->nulls[row->count++] = isnull;
}

static void
row_add_count(Row *row, int64 count)
{
	row_add(row, Int64GetDatum(count), false);
}

/* 0 and the ends of time are none. */
static void
row_add_time(Row *row, TimestampTz time)
{
	row_add(row, TimestampTzGetDatum(time), time == 0 || TIMESTAMP_NOT_FINITE(time));
}

/* The columns of fanout._stats() in their order. */
static void
fill_stats(Row *row, const Status *status)
{
	const Database *slot = &status->slot;
	bool		has_error = slot->failed_at != 0 && may_see_errors();

	row_add(row, CStringGetTextDatum(state_word(status)), false);
	row_add_time(row, is_ready(status) ? slot->ready_since : 0);
	row_add_count(row, slot->rebuilds);
	row_add_time(row, slot->rebuild_began);
	row_add(row, Int64GetDatum(slot->rebuild_time), !is_ready(status));
	row_add_count(row, slot->rebuilt_tasks);
	row_add(row, Int32GetDatum(status->launcher_pid), status->launcher_pid == 0);
	row_add(row, Int32GetDatum(slot->keeper_pid), slot->keeper_pid == 0);
	row_add_time(row, slot->keeper_pid != 0 ? slot->keeper_since : 0);
	row_add_time(row, slot->keeper_pid != 0 ? slot->keeper_wakes_at : 0);
	row_add_count(row, slot->keeper_starts);
	row_add_count(row, slot->keeper_failures);
	row_add(row, Int32GetDatum(slot->failed_in_a_row), false);
	row_add_time(row, slot->failed_at);
	row_add(row, CStringGetTextDatum(slot->last_error), !has_error);
	row_add_count(row, slot->journal_count);
	row_add_time(row, status->oldest_claim);
	row_add_count(row, slot->journaled);
	row_add_count(row, slot->refills);
	row_add_count(row, slot->evictions);
	row_add_count(row, slot->wakeups);
	row_add_count(row, slot->idle_wakeups);
	row_add_count(row, slot->expired);
	row_add_count(row, slot->retired);
	row_add_count(row, slot->carried);
	row_add_time(row, slot->retired_at);
	row_add(row, Int32GetDatum(slot->dirty_join_count), slot->dirty_join_overflow);
	row_add_count(row, slot->next_task);
	row_add_count(row, slot->next_lease);
	row_add(row, Int32GetDatum(status->queues), false);
}

Datum
fanout_stats(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	Status		status;
	Row			row = {.count = 0};

	require_readable();
	set = result_set_begin(fcinfo);
	copy_status(&status);
	fill_stats(&row, &status);
	Assert(row.count == set.desc->natts);
	result_set_add(&set, row.values, row.nulls);
	return (Datum) 0;
}
