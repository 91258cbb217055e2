/*
 * keeper_guard.c
 *		What a keeper does about settings that others have made, and about its
 *		own failure.
 *
 * An error ends a keeper, and the launcher starts another one, which finds
 * memory as the last one left it.  If that one fails as well, and so on, what
 * makes them fail lasts: a full disk, a broken catalogue.  Then the launcher
 * waits longer from one to the next, the log has the error once and not once
 * for each of them, and says so when a keeper works again.  A keeper works if
 * it has come to the end of a turn: whatever made the last one fail is still
 * there to be done, so the first turn meets it again.
 *
 * Retention is the exception.  It goes on from turn to turn and begins anew
 * with each keeper, and nobody waits for it: after a failure in it there is a
 * pause of retention, and of nothing else.
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "shared_state.h"
#include "worker.h"

#define PAUSE_LEAST		1000	/* milliseconds between the starts of two keepers */
#define PAUSE_MOST		10000
#define RETENTION_PAUSE	(10 * USECS_PER_SEC)
#define TELL_AGAIN		(3600 * USECS_PER_SEC)	/* so long is one error of retention told once */

/* What ALTER DATABASE, ALTER ROLE and the configuration may not decide for a keeper. */
typedef struct OwnSetting
{
	const char *name;
	const char *value;
} OwnSetting;

static const OwnSetting own_settings[] = {
	/* nobody is there to be told of the error, and the next one would meet it again */
	{"statement_timeout", "0"},
	{"lock_timeout", "0"},
	{"idle_in_transaction_session_timeout", "0"},
#if PG_VERSION_NUM >= 170000
	{"transaction_timeout", "0"},
#endif
	{"temp_file_limit", "-1"},
	{"exit_on_error", "off"},

	/* it writes, with what has been promised, and reads what has committed last */
	{"default_transaction_read_only", "off"},
	{"default_transaction_isolation", "read committed"},
	{"default_transaction_deferrable", "off"},
	{"synchronous_commit", "on"},

	/* it is who it is, and its tables are what they are */
	{"role", "none"},
	{"search_path", "pg_catalog, pg_temp"},
	{"session_replication_role", "origin"},
	{"row_security", "on"},
	{"transform_null_equals", "off"},

	/* its queries are written for these plans, and it takes no worker away from anybody */
	{"enable_indexscan", "on"},
	{"enable_indexonlyscan", "on"},
	{"enable_bitmapscan", "on"},
	{"enable_nestloop", "on"},
	{"enable_sort", "on"},
	{"max_parallel_workers_per_gather", "0"},
};

/* The keeper is at what retention asks for. */
static bool retaining = false;

void
keeper_settings(void)
{
	for (int i = 0; i < lengthof(own_settings); i++)
		(void) set_config_option(own_settings[i].name, own_settings[i].value, PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_SET,
								 true, 0, false);
}

static void
keeper_context(void *arg)
{
	errcontext("pg_fanout keeper of database %u", MyDatabaseId);
}

/* Is it an error that nobody has been told of? */
static bool
is_news(const Database *database, int sqlstate, TimestampTz now)
{
	if (database == NULL || database->told_sqlstate != sqlstate)
		return true;			/* the words may differ by the name of a file */
	if (retaining)
		return now - database->told_at > TELL_AGAIN;
	return database->failed_in_a_row == 0;
}

/* Note the failure where others can see it.  Under the lock. */
static void
note_failure(Database *database, const char *message, int told_sqlstate, TimestampTz now)
{
	database->keeper_failures++;
	database->failed_at = now;
	if (retaining)
		database->retention_failed_at = now;
	else
		database->failed_in_a_row++;
	if (told_sqlstate != 0)
	{
		database->told_at = now;
		database->told_sqlstate = told_sqlstate;
	}
	strlcpy(database->last_error, message, FANOUT_ERROR_LEN);
}

/* The error is the end of this keeper: tell of it, unless that was done, and undo what it was at. */
static void
fail(void)
{
	TimestampTz now = GetCurrentTimestamp();
	char		message[FANOUT_ERROR_LEN];
	int			length;
	ErrorData  *error;
	Database   *database;
	bool		told;

	HOLD_INTERRUPTS();
	MemoryContextSwitchTo(TopMemoryContext);
	error = CopyErrorData();
	length = pg_mbcliplen(error->message, strlen(error->message), FANOUT_ERROR_LEN - 1);
	strlcpy(message, error->message, length + 1);

	/* without the lock: nobody else writes what this reads, and the transaction may have locks of the server's own */
	database = database_find(MyDatabaseId);
	told = is_news(database, error->sqlerrcode, now);
	if (told)
		EmitErrorReport();
	FlushErrorState();
	AbortOutOfAnyTransaction();

	dispatcher_lock();
	if (database != NULL && database->db == MyDatabaseId)
		note_failure(database, message, told ? error->sqlerrcode : 0, now);
	dispatcher_unlock();

	/* the postmaster would log any other code, each time */
	proc_exit(0);
}

/* Run a keeper until it ends, or fails. */
void
keeper_guard(void (*run) (void))
{
	ErrorContextCallback callback = {.previous = error_context_stack, .callback = keeper_context};

	error_context_stack = &callback;
	PG_TRY();
	{
		run();
	}
	PG_CATCH();
	{
		fail();
	}
	PG_END_TRY();
	error_context_stack = callback.previous;
}

/* This keeper has come to the end of a turn. */
void
keeper_works(Database *database)
{
	int32		failed = database->failed_in_a_row;

	if (failed == 0)
		return;
	dispatcher_lock();
	database->failed_in_a_row = 0;
	database->told_sqlstate = 0;
	dispatcher_unlock();
	if (failed > 1)
		ereport(LOG,
				(errmsg("pg_fanout keeper of database %u works again", MyDatabaseId),
				 errdetail("%d in a row had failed.", failed),
				 errhidecontext(true)));
}

/* When retention may go on; to be followed, if that is now, by retention_ends(). */
TimestampTz
retention_begins(const Database *database, TimestampTz now)
{
	TimestampTz at = database->retention_failed_at != 0 ? database->retention_failed_at + RETENTION_PAUSE : 0;

	retaining = at <= now;
	return at;
}

void
retention_ends(void)
{
	retaining = false;
}

/* How long after the start of the last of so many keepers in a row that have failed the next one may start. */
int
keeper_pause(int failed)
{
	return Min(PAUSE_LEAST << Min(Max(failed - 1, 0), 10), PAUSE_MOST);
}
