/*
 * database_commands.c
 *		Commands that need a database to have no other sessions.
 *
 * A keeper is a session, so DROP DATABASE, CREATE DATABASE ... TEMPLATE and
 * some forms of ALTER DATABASE would fail on its account.  Before such a
 * command runs, its database is held: the keeper leaves, and the launcher
 * starts none until the command has ended, well or not.
 *
 * Who may not run the command sends no keeper away.
 *
 * And those that concern the extension itself: the keeper is told.  Before it
 * is dropped the keeper leaves as well, since both lock many tables, each in an
 * order of its own.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "commit_hooks.h"
#include "registry.h"
#include "shared_state.h"
#include "version.h"
#include "wait.h"
#include "worker.h"

#define KEEPER_LEAVES	(10 * USECS_PER_SEC)

static ProcessUtility_hook_type previous_hook = NULL;
static bool holds_own = false;	/* this session's database, until the transaction ends */

/* The database that the statement needs for itself, or NULL. */
static const char *
database_wanted(Node *statement)
{
	ListCell   *cell;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_RenameStmt:
			if (((RenameStmt *) statement)->renameType == OBJECT_DATABASE)
				return ((RenameStmt *) statement)->subname;
			return NULL;
		case T_AlterDatabaseStmt:
			foreach(cell, ((AlterDatabaseStmt *) statement)->options)
			{
				if (strcmp(lfirst_node(DefElem, cell)->defname, "tablespace") == 0)
					return ((AlterDatabaseStmt *) statement)->dbname;
			}
			return NULL;
		case T_CreatedbStmt:
			foreach(cell, ((CreatedbStmt *) statement)->options)
			{
				DefElem    *option = lfirst_node(DefElem, cell);

				if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
					return defGetString(option);
			}
			return "template1";
		default:
			return NULL;
	}
}

static bool
drops_extension(Node *statement)
{
	ListCell   *cell;

	if (!IsA(statement, DropStmt) || ((DropStmt *) statement)->removeType != OBJECT_EXTENSION)
		return false;
	foreach(cell, ((DropStmt *) statement)->objects)
	{
		if (strcmp(strVal(lfirst(cell)), "pg_fanout") == 0)
			return true;
	}
	return false;
}

static bool
caller_owns_extension(void)
{
	Oid			extension = get_extension_oid("pg_fanout", true);

#if PG_VERSION_NUM >= 160000
	return OidIsValid(extension) && object_ownercheck(ExtensionRelationId, extension, GetUserId());
#else
	return OidIsValid(extension) && pg_extension_ownercheck(extension, GetUserId());
#endif
}

/* A copy of a database that has the extension has it, too: have the launcher look when it is committed. */
static void
announce_copy(Node *statement, Oid template)
{
	bool		known;
	Oid			copy;

	if (!IsA(statement, CreatedbStmt))
		return;
	dispatcher_lock();
	known = database_find(template) != NULL;
	dispatcher_unlock();
	if (!known)
		return;

	CommandCounterIncrement();
	copy = get_database_oid(((CreatedbStmt *) statement)->dbname, true);
	if (OidIsValid(copy))
	{
		pending_prepare(1);
		pending_register(copy);
	}
}

/*
 * Will the command let the caller, as far as rights go?  If not, it is for
 * the command to say so; the keeper stays, or anybody could keep it away.
 */
static bool
caller_may(Node *statement, Oid db)
{
	HeapTuple	tuple;
	bool		allowed;

#if PG_VERSION_NUM >= 160000
	allowed = object_ownercheck(DatabaseRelationId, db, GetUserId());
#else
	allowed = pg_database_ownercheck(db, GetUserId());
#endif
	if (allowed || !IsA(statement, CreatedbStmt))
		return allowed;

	/* who may create databases may copy a template that is not his */
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(db));
	if (!HeapTupleIsValid(tuple))
		return false;
	allowed = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	if (!allowed)
		return false;

	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (!HeapTupleIsValid(tuple))
		return false;
	allowed = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return allowed;
}

/*
 * Send the keeper away, also from a lock that it waits for, and wait until it
 * has gone.  NULL if the database has no slot.
 */
static Database *
hold(Oid db)
{
	int64		deadline = wait_clock() + KEEPER_LEAVES;
	Database   *database;
	bool		told = false;
	bool		gone;

	ConditionVariablePrepareToSleep(&fanout_shared->changed);
	for (;;)
	{
		dispatcher_lock();
		database = database_find(db);
		gone = database == NULL || database->keeper == NULL;
		if (database != NULL)
			database->held_by = MyProcPid;
		if (!gone && !told)
			told = kill(database->keeper_pid, SIGTERM) == 0;
		dispatcher_unlock();
		if (gone || wait_clock() >= deadline)
			break;
		(void) ConditionVariableTimedSleep(&fanout_shared->changed, 100, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return database;
}

/* Also when the session is ended in the middle of the command: nobody else would let go of it. */
static void
let_go(int code, Datum arg)
{
	Oid			db = DatumGetObjectId(arg);
	Database   *database;

	dispatcher_lock();
	database = database_find(db);
	if (database != NULL && database->held_by == MyProcPid)
		database->held_by = 0;
	if (fanout_shared->launcher != NULL)
		set_latch_after_unlock(fanout_shared->launcher);
	dispatcher_unlock();
}

/* The extension goes at commit, or stays: no keeper before that. */
static void
let_go_of_own(XactEvent event, void *arg)
{
	if (!holds_own || (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT))
		return;
	holds_own = false;
	let_go(0, ObjectIdGetDatum(MyDatabaseId));
}

/* What has to be seen to before a command that concerns the extension. */
static void
before_extension_command(bool updates, bool drops, Node *statement)
{
	if (updates)
		check_update(statement);
	if (drops && !holds_own && caller_owns_extension())
	{
		holds_own = true;
		(void) hold(MyDatabaseId);
	}
}

static void
after_extension_command(bool updates)
{
	if (updates)
		registry_invalidate();	/* what sessions know of the version */

	/* the keeper looks at commit, and leaves; or comes, to what has the version of the library by now */
	pending_prepare(1);
	pending_register(MyDatabaseId);
}

static void
process_utility(PlannedStmt *pstmt, const char *query, bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *environment, DestReceiver *dest, QueryCompletion *completion)
{
	const char *name = database_wanted(pstmt->utilityStmt);
	Oid			db = InvalidOid;
	ProcessUtility_hook_type next = previous_hook != NULL ? previous_hook : standard_ProcessUtility;

	if (name != NULL && fanout_shared != NULL && IsTransactionState() && context == PROCESS_UTILITY_TOPLEVEL)
		db = get_database_oid(name, true);
	if (!OidIsValid(db) || !caller_may(pstmt->utilityStmt, db))
	{
		bool		updates = fanout_shared != NULL && updates_extension(pstmt->utilityStmt);
		bool		drops = fanout_shared != NULL && drops_extension(pstmt->utilityStmt);

		before_extension_command(updates, drops, pstmt->utilityStmt);
		next(pstmt, query, readOnlyTree, context, params, environment, dest, completion);
		if (updates || drops)
			after_extension_command(updates);
		return;
	}

	PG_ENSURE_ERROR_CLEANUP(let_go, ObjectIdGetDatum(db));
	{
		(void) hold(db);
		next(pstmt, query, readOnlyTree, context, params, environment, dest, completion);
		announce_copy(pstmt->utilityStmt, db);
	}
	PG_END_ENSURE_ERROR_CLEANUP(let_go, ObjectIdGetDatum(db));
	let_go(0, ObjectIdGetDatum(db));
}

void
database_commands_init(void)
{
	previous_hook = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	RegisterXactCallback(let_go_of_own, NULL);
}
