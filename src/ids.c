/*
 * ids.c
 *		Numbers of tasks and leases.
 *
 * Numbers are handed out by counters in memory, in blocks that follow on.
 * What makes them unique for ever is a ceiling on disk, the last value of a
 * sequence: numbers are handed out only below it, and the keeper has it
 * flushed before memory knows of it.  After a crash the counters go on from
 * the ceiling, so a number that was lost with memory is not given again.
 *
 * (A claim takes a number without writing anything, which nextval() cannot
 * do; and a sequence gives no blocks without giving up the order.)
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "ids.h"
#include "points.h"
#include "spi.h"
#include "wait.h"

#define IDS_AHEAD	INT64CONST(1048576)

static SpiStatement select_ceilings = {
	"SELECT t.last_value + t.is_called::int, l.last_value + l.is_called::int FROM fanout.task_id t, fanout.lease_id l", 0, {0}
};

/* A restore fills the tables first and sets the sequences at its end. */
static SpiStatement select_used = {
	"SELECT greatest((SELECT max(id) FROM fanout.task), (SELECT max(first_task) - 1 FROM fanout.segment), 0) + 1,"
	" greatest((SELECT max(lease) FROM fanout.attempt), (SELECT max(lease) FROM fanout.outcome), 0) + 1", 0, {0}
};
static SpiStatement set_ceilings = {
	"SELECT setval('fanout.task_id', greatest($1, t.last_value)), setval('fanout.lease_id', greatest($2, l.last_value))"
	" FROM fanout.task_id t, fanout.lease_id l", 2, {INT8OID, INT8OID}
};

int64
ids_take_tasks(Database *database, int64 count)
{
	int64		first = 0;

	if (database->next_task + count <= database->task_ceiling)
	{
		first = database->next_task;
		database->next_task += count;
	}
	else
		database->task_need = Max(database->task_need, count);
	if (first == 0 || database->task_ceiling - database->next_task < IDS_AHEAD / 2)
		keeper_wake(database);
	return first;
}

void
ids_wait(void)
{
	(void) ConditionVariableTimedSleep(&fanout_shared->changed, 100, PG_WAIT_EXTENSION);
}

int64
ids_take_lease(Database *database)
{
	int64		lease = 0;

	for (;;)
	{
		dispatcher_lock();
		if (database->next_lease < database->lease_ceiling)
			lease = database->next_lease++;
		if (ids_want_ceiling(database))
			keeper_wake(database);
		dispatcher_unlock();
		if (lease != 0)
			break;
		ids_wait();
	}
	ConditionVariableCancelSleep();
	return lease;
}

void
ids_load(Database *database, bool foreign)
{
	SpiScope	scope;
	int64		task;
	int64		lease;

	spi_begin(&scope);
	if (spi_read_latest(&select_ceilings, NULL, NULL) != 1)
		elog(ERROR, "could not read the sequences of pg_fanout");
	task = spi_int64(0, 1);
	lease = spi_int64(0, 2);
	if (foreign && spi_read_latest(&select_used, NULL, NULL) == 1)
	{
		task = Max(task, spi_int64(0, 1));
		lease = Max(lease, spi_int64(0, 2));
	}
	spi_end(&scope);

	dispatcher_lock();
	database->next_task = database->task_ceiling = task;
	database->next_lease = database->lease_ceiling = lease;
	dispatcher_unlock();
}

/* Is less than half of the numbers left?  Under the lock, or for a hint without it. */
bool
ids_want_ceiling(const Database *database)
{
	return database->task_ceiling - database->next_task < Max(IDS_AHEAD / 2, database->task_need) ||
		database->lease_ceiling - database->next_lease < IDS_AHEAD / 2;
}

void
ids_raise_ceilings(Database *database)
{
	SpiScope	scope;
	Datum		values[2];
	int64		task_ceiling;
	int64		lease_ceiling;

	dispatcher_lock();
	task_ceiling = database->next_task + IDS_AHEAD + database->task_need;
	lease_ceiling = database->next_lease + IDS_AHEAD;
	dispatcher_unlock();

	values[0] = Int64GetDatum(task_ceiling);
	values[1] = Int64GetDatum(lease_ceiling);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	(void) spi_run(&set_ceilings, values, NULL);
	spi_end(&scope);
	PopActiveSnapshot();
	ForceSyncCommit();
	CommitTransactionCommand();
	FANOUT_POINT(CEILING_COMMITTED);

	dispatcher_lock();
	database->task_ceiling = Max(database->task_ceiling, task_ceiling);
	database->lease_ceiling = Max(database->lease_ceiling, lease_ceiling);
	database->task_need = 0;
	dispatcher_unlock();
	ConditionVariableBroadcast(&fanout_shared->changed);
}

int
ids_compare(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return left < right ? -1 : left > right;
}
