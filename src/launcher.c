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

#include "shared_state.h"
#include "wait.h"
#include "worker.h"

#define RESTART_DELAY	USECS_PER_SEC	/* between two starts in one database, should they keep failing */

/* When a keeper of the database was started last. */
typedef struct Start
{
	Oid			db;
	int64		at;				/* by wait_clock() */
} Start;

static Start *starts = NULL;
static bool complained = false;

/*
 * Start a keeper and wait until it runs; false if there was no worker slot for
 * it.  (The server's own function for this wait would not end when the server
 * shuts down, as then nothing is started any more.)
 */
static bool
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
		if (!complained)
			ereport(WARNING,
					(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
					 errmsg("pg_fanout could not start a keeper"),
					 errhint("Raise max_worker_processes; it is tried again until then.")));
		complained = true;
		return false;
	}
	complained = false;
	while (!ShutdownRequestPending && GetBackgroundWorkerPid(handle, &pid) == BGWH_NOT_YET_STARTED)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 100, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
	pfree(handle);
	return true;
}

/* The databases that a keeper could connect to, in the caller's memory. */
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

		if (form->datallowconn && !form->datistemplate)
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

static bool
database_exists(Oid db)
{
	bool		exists;

	StartTransactionCommand();
	exists = SearchSysCacheExists1(DATABASEOID, ObjectIdGetDatum(db));
	CommitTransactionCommand();
	return exists;
}

/* Start keepers where they are wanted; false if one has to be tried again later. */
static bool
serve_slots(void)
{
	bool		done = true;

	for (int i = 0; i < fanout_shared->database_high; i++)
	{
		Database   *database = &fanout_databases[i];
		Oid			db = InvalidOid;
		int64		now = wait_clock();

		dispatcher_lock();
		if (database->state != DATABASE_FREE && database->keeper == NULL && database->held_by == 0)
			db = database->db;
		dispatcher_unlock();
		if (!OidIsValid(db))
			continue;

		if (!database_exists(db))
		{
			dispatcher_lock();
			if (database->db == db && database->keeper == NULL)
			{
				database_clear(database);
				database->state = DATABASE_FREE;
			}
			dispatcher_unlock();
			continue;
		}
		if (starts[i].db == db && now < starts[i].at + RESTART_DELAY)
		{
			done = false;
			continue;
		}
		starts[i].db = db;
		starts[i].at = now;
		done &= start_keeper(db);
	}
	return done;
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
	ListCell   *cell;

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
	foreach(cell, databases)
	{
		if (ShutdownRequestPending)
			break;
		(void) start_keeper(lfirst_oid(cell));
	}

	while (!ShutdownRequestPending)
	{
		bool		done;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		done = serve_slots();
		if (ShutdownRequestPending)
			break;				/* a latch that told so may have been reset on the way */
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (done ? 0 : WL_TIMEOUT),
						 done ? -1 : RESTART_DELAY / 1000, PG_WAIT_EXTENSION);
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
