/*
 * launcher.c
 *		The process that sees to it that each database with the extension has
 *		a keeper.
 *
 * At start it does not know which databases have the extension, so it starts
 * a keeper in each that can be connected to, one after the other; one that
 * finds no extension ends at once.  Later on, whoever calls a function in a
 * database without a keeper asks for one in the database's slot.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "points.h"
#include "shared_state.h"
#include "worker.h"

#define POLL_MS			1000	/* while one cannot be started, or not yet */
#define PATIENCE_MS		1500	/* before it is told that there is no worker slot */

/* What a DROP DATABASE that was interrupted leaves as the limit of connections. */
#ifndef DATCONNLIMIT_INVALID_DB
#define DATCONNLIMIT_INVALID_DB	(-2)
#endif

/* When a keeper of the database was started last. */
typedef struct Start
{
	Oid			db;
	TimestampTz at;
	int64		signed_on;		/* how many had signed on before */
	int			lost;			/* how many in a row have ended without that, this one not included */
	BackgroundWorkerHandle *worker;
} Start;

static Start *starts = NULL;
static TimestampTz refused_since = 0;	/* when there was no worker slot for the first time, and none since */
static bool complained = false;

/* There was no worker slot.  One that has just ended keeps its slot for a moment: that is nobody's business. */
static void
complain(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (refused_since == 0)
		refused_since = now;
	if (complained || !TimestampDifferenceExceeds(refused_since, now, PATIENCE_MS))
		return;
	complained = true;
	ereport(WARNING,
			(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
			 errmsg("pg_fanout could not start a keeper"),
			 errdetail("All of max_worker_processes are in use."),
			 errhint("It is tried again each second. Raise max_worker_processes if this goes on.")));
}

static void
stop_complaining(void)
{
	if (complained)
		ereport(LOG,
				(errmsg("pg_fanout can start keepers again")));
	complained = false;
	refused_since = 0;
}

/*
 * Start a keeper and wait until it runs, with the latch reset on the way; NULL
 * if there was no worker slot for it.  (The server's own function for this
 * wait would not end when the server shuts down, as then nothing is started
 * any more.)
 */
static BackgroundWorkerHandle *
start_keeper(Oid db)
{
	BackgroundWorker worker;
	BackgroundWorkerHandle *handle;
	pid_t		pid;

	memset(&worker, 0, sizeof(worker));
	snprintf(worker.bgw_name, BGW_MAXLEN, "pg_fanout keeper of database %u", db);
	snprintf(worker.bgw_type, BGW_MAXLEN, "pg_fanout keeper");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "pg_fanout");
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "fanout_keeper_main");
	worker.bgw_main_arg = ObjectIdGetDatum(db);
	worker.bgw_notify_pid = MyProcPid;

	if (!RegisterDynamicBackgroundWorker(&worker, &handle))
	{
		complain();
		return NULL;
	}
	stop_complaining();
	while (!ShutdownRequestPending && GetBackgroundWorkerPid(handle, &pid) == BGWH_NOT_YET_STARTED)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	FANOUT_POINT(LAUNCHER_WAITED);
	return handle;
}

static bool
has_ended(BackgroundWorkerHandle *worker)
{
	pid_t		pid;

	return GetBackgroundWorkerPid(worker, &pid) == BGWH_STOPPED;
}

/* Can a keeper connect to the database?  Where it cannot, nobody can. */
static bool
takes_keeper(Form_pg_database form)
{
	return form->datallowconn && form->datconnlimit != DATCONNLIMIT_INVALID_DB;
}

/* The databases that may have the extension, in the caller's memory. */
static List *
list_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;
	List	   *databases = NIL;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	while (HeapTupleIsValid(tuple = heap_getnext(scan, ForwardScanDirection)))
	{
		Form_pg_database form = (Form_pg_database) GETSTRUCT(tuple);

		if (!form->datistemplate)
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			databases = lappend_oid(databases, form->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
	return databases;
}

/* Is the database there, and does it take a keeper? */
static bool
database_exists(Oid db, bool *open)
{
	HeapTuple	tuple;

	StartTransactionCommand();
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	*open = HeapTupleIsValid(tuple) && takes_keeper((Form_pg_database) GETSTRUCT(tuple));
	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	CommitTransactionCommand();
	return HeapTupleIsValid(tuple);
}

static void
forget_database(Database *database, Oid db)
{
	dispatcher_lock();
	if (database->db == db && database->keeper == NULL)
	{
		database_clear(database);
		database->state = DATABASE_FREE;
	}
	dispatcher_unlock();
}

/*
 * Start the keeper of a slot if it is time for it.  False if the slots have to
 * be looked at again even if nobody sets the latch: it is not time yet, or this
 * has waited, for the keeper to start or for a lock, and so may have reset the
 * latch that another keeper's end had set, or this one's.
 */
static bool
serve_slot(Database *database, Start *start)
{
	Start		next = {.db = InvalidOid, .at = GetCurrentTimestamp()};
	int			failed = 0;
	TimestampTz last = 0;
	bool		open;

	dispatcher_lock();
	if (database->state != DATABASE_FREE && database->keeper == NULL && database->held_by == 0)
	{
		next.db = database->db;
		next.signed_on = database->keeper_starts;
		failed = database->failed_in_a_row;
		last = database->keeper_since;
	}
	dispatcher_unlock();
	if (!OidIsValid(next.db))
		return true;
	if (!database_exists(next.db, &open))
	{
		forget_database(database, next.db);
		return false;
	}
	if (!open)
		return false;			/* nobody tells when it opens again */

	if (start->db == next.db)
	{
		if (!has_ended(start->worker))
			return false;		/* it has yet to sign on, or is about to end */
		if (start->signed_on == next.signed_on)
			next.lost = start->lost + 1;
		last = Max(last, start->at);
	}
	/* not where the clock was set back since */
	if (last != 0 && last <= next.at && !TimestampDifferenceExceeds(last, next.at, keeper_pause(failed + next.lost)))
		return false;
	next.worker = start_keeper(next.db);
	if (next.worker != NULL)
	{
		if (start->worker != NULL)
			pfree(start->worker);
		*start = next;
	}
	return false;
}

/* Start keepers where they are wanted; false if that has to be tried again later. */
static bool
serve_slots(void)
{
	bool		done = true;

	for (int i = 0; i < fanout_shared->database_high; i++)
		done &= serve_slot(&fanout_databases[i], &starts[i]);
	return done;
}

/* Start keepers in databases that may have the extension; those that there was no worker slot for are left. */
static List *
start_keepers(List *databases)
{
	List	   *left = NIL;
	ListCell   *cell;

	foreach(cell, databases)
	{
		Oid			db = lfirst_oid(cell);
		BackgroundWorkerHandle *worker;
		bool		open;

		if (ShutdownRequestPending)
			break;
		if (left == NIL && !(database_exists(db, &open) && open))
			continue;
		worker = left == NIL ? start_keeper(db) : NULL;
		if (worker == NULL)
			left = lappend_oid(left, db);
		else
			pfree(worker);
	}
	list_free(databases);
	return left;
}

static void
sign_off(int code, Datum arg)
{
	dispatcher_lock();
	if (fanout_shared->launcher == MyProc)
		fanout_shared->launcher = NULL;
	dispatcher_unlock();
}

void
fanout_launcher_main(Datum arg)
{
	List	   *databases;

	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);

	starts = MemoryContextAllocZero(TopMemoryContext, fanout_max_databases * sizeof(Start));
	before_shmem_exit(sign_off, (Datum) 0);
	dispatcher_lock();
	fanout_shared->launcher = MyProc;
	dispatcher_unlock();

	databases = list_databases();
	while (!ShutdownRequestPending)
	{
		bool		done;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		databases = start_keepers(databases);
		done = serve_slots() && databases == NIL;
		if (ShutdownRequestPending)
			break;				/* a latch that told so may have been reset on the way */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (done ? 0 : WL_TIMEOUT),
						 done ? -1 : POLL_MS, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}

	/* if it is only us who are to go, the postmaster starts another launcher: not so after an exit with 0 */
	proc_exit(1);
}

void
launcher_register(void)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	snprintf(worker.bgw_name, BGW_MAXLEN, "pg_fanout launcher");
	snprintf(worker.bgw_type, BGW_MAXLEN, "pg_fanout launcher");
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	snprintf(worker.bgw_library_name, sizeof(worker.bgw_library_name), "pg_fanout");
	snprintf(worker.bgw_function_name, sizeof(worker.bgw_function_name), "fanout_launcher_main");
	RegisterBackgroundWorker(&worker);
}
