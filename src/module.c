/*
 * module.c
 *		Loading of the library: settings, shared memory, hooks, workers.
 */
#include "postgres.h"

#include <limits.h>

#include "commands/trigger.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/guc.h"

#include "commit_hooks.h"
#include "registry.h"
#include "shared_state.h"
#include "spi.h"
#include "storage.h"
#include "version.h"
#include "worker.h"

PG_MODULE_MAGIC;

#ifdef FANOUT_SANITIZE_OPTIONS
extern const char *__ubsan_default_options(void);

/* Not from the environment: the server has written over that by the time that this library is loaded. */
const char *
__ubsan_default_options(void)
{
	return FANOUT_SANITIZE_OPTIONS;
}
#endif

extern PGDLLEXPORT void _PG_init(void);

PG_FUNCTION_INFO_V1(fanout_register);
PG_FUNCTION_INFO_V1(fanout_filled);

int			fanout_max_tracked_tasks;
int			fanout_max_queues;
int			fanout_max_databases;
int			fanout_max_workers;
int			fanout_max_lanes;
int			fanout_max_limited_lanes;
int			fanout_max_rate_entries;
int			fanout_journal_interval;
int			fanout_max_wait;
int			fanout_retention;
int			fanout_keep_failed;

static shmem_request_hook_type previous_shmem_request_hook = NULL;
static shmem_startup_hook_type previous_shmem_startup_hook = NULL;

static void
shmem_request(void)
{
	if (previous_shmem_request_hook != NULL)
		previous_shmem_request_hook();
	shared_state_request();
}

static void
shmem_startup(void)
{
	if (previous_shmem_startup_hook != NULL)
		previous_shmem_startup_hook();
	shared_state_startup();
}

/* What is not kept at all could not be collected. */
static bool
check_retention(int *value, void **extra, GucSource source)
{
	if (*value == 0)
		GUC_check_errdetail("It is at least 1 s, or -1 to keep finished tasks for ever.");
	return *value != 0;
}

static void
define_settings(void)
{
	DefineCustomIntVariable("pg_fanout.max_tracked_tasks",
							"Unfinished tasks that are kept in memory; further ones wait on disk.",
							NULL, &fanout_max_tracked_tasks, 131072, 64, 64 * 1024 * 1024,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.max_queues",
							"Queues of all databases together.",
							NULL, &fanout_max_queues, 1024, 1, 65536,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.max_databases",
							"Databases that can have the extension.",
							NULL, &fanout_max_databases, 64, 1, 4096,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.max_workers_tracked",
							"Workers that can hold leases at one time.",
							NULL, &fanout_max_workers, 4096, 16, 1024 * 1024,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.max_lanes",
							"Partitions with unfinished tasks that are kept in memory; further ones wait on disk.",
							NULL, &fanout_max_lanes, 65536, 16, 64 * 1024 * 1024,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.max_limited_lanes",
							"Partitions with settings of their own, or with starts that a rate limit remembers.",
							"Should they not suffice, settings are refused, and partitions with a rate limit wait.",
							&fanout_max_limited_lanes, 16384, 16, 64 * 1024 * 1024,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.max_rate_entries",
							"Moments at which tasks of rate-limited queues have started that are remembered.",
							"Should they not suffice, starts count for longer than their period.",
							&fanout_max_rate_entries, 65536, 1024, 64 * 1024 * 1024,
							PGC_POSTMASTER, 0, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.journal_interval",
							"Time within which a lease is journaled.",
							"A lease that was given less than this before a crash may be redelivered.",
							&fanout_journal_interval, 10, 2, 10000,
							PGC_SIGHUP, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.max_wait",
							"Longest time that a function waits, whatever it is told.",
							"A function that waits holds the snapshot of its statement; procedures do not, and are not bound by this.",
							&fanout_max_wait, 30000, 0, 24 * 3600 * 1000,
							PGC_USERSET, GUC_UNIT_MS, NULL, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.retention",
							"Time for which finished tasks are kept; -1: for ever.",
							NULL, &fanout_retention, 7 * 24 * 3600, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, check_retention, NULL, NULL);
	DefineCustomIntVariable("pg_fanout.keep_failed",
							"Time for which failed tasks are kept, if that is longer; -1: as others.",
							NULL, &fanout_keep_failed, -1, -1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S, NULL, NULL, NULL);
	MarkGUCPrefixReserved("pg_fanout");
}

void
_PG_init(void)
{
	/* without a preload, functions say so in words when they are called */
	if (!process_shared_preload_libraries_in_progress || IsBinaryUpgrade)
		return;

	define_settings();
	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = shmem_request;
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;

	commit_hooks_init();
	registry_init();
	storage_init();
	database_commands_init();
	launcher_register();
}

/* Called by the install script: have the launcher start a keeper once the extension is committed. */
Datum
fanout_register(PG_FUNCTION_ARGS)
{
	require_preload();
	require_same_version();
	pending_prepare(1);
	pending_register(MyDatabaseId);
	PG_RETURN_VOID();
}

/* A trigger on tables that memory follows from: when others than we fill them, memory has to be built again. */
Datum
fanout_filled(PG_FUNCTION_ARGS)
{
	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("fanout._filled() must be called as a trigger")));
	if (fanout_shared != NULL && !spi_is_ours())
	{
		pending_prepare(1);
		pending_reload();
	}
	return PointerGetDatum(NULL);
}
