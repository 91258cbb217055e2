/*
 * registry.c
 *		What this backend knows of the extension's catalogues: relations,
 *		queues, who may use them.
 *
 * The catalogue is the configuration bus: whoever changes a queue or a grant
 * sends a relation cache invalidation for fanout.queue with its commit, and
 * every backend then forgets what it has cached.  What a limit is at this
 * moment does not come from here but from shared memory.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"

#include "registry.h"
#include "spi.h"
#include "version.h"
#include "wait.h"

#define KEEPER_PATIENCE	(30 * USECS_PER_SEC)

static const char *const kind_names[LOG_KINDS] = {
	[LOG_TASK] = "task",
	[LOG_ATTEMPT] = "attempt",
	[LOG_CHECKPOINT] = "checkpoint",
	[LOG_OUTCOME] = "outcome",
};

typedef struct QueueGrant
{
	Oid			grantee;
	QueuePrivilege privilege;
} QueueGrant;

/* A queue in the cache.  An invalidation frees it, so nobody else holds on to it. */
typedef struct QueueInfo
{
	char		name[FANOUT_NAME_LEN];	/* the cache's key */
	int32		id;
	Oid			owner;
	Queue	   *queue;			/* NULL until the entry is complete */
	int			grant_count;
	QueueGrant *grants;
} QueueInfo;

static SpiStatement select_queue = {
	"SELECT id, owner::oid, name FROM fanout.queue WHERE name = $1", 1, {TEXTOID}
};
static SpiStatement select_queue_by_id = {
	"SELECT name FROM fanout.queue WHERE id = $1", 1, {INT4OID}
};
static SpiStatement select_grants = {
	"SELECT grantee::oid, CASE privilege WHEN 'enqueue' THEN 0 WHEN 'dequeue' THEN 1 ELSE 2 END"
	" FROM fanout.queue_grant WHERE queue = $1", 1, {INT4OID}
};

static Oid	anchor_oid = InvalidOid;
static Oid	log_oids[LOG_KINDS][FANOUT_SEGMENTS];
static Oid	owner_oid = InvalidOid;
static bool version_checked = false;

static HTAB *queue_cache = NULL;
static MemoryContext queue_cache_context = NULL;

/* The last queue that was looked up: most sessions use one. */
static QueueInfo *last_queue = NULL;

static bool invalidated = false;

static void
relation_callback(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == anchor_oid)
		invalidated = true;
}

void
registry_init(void)
{
	CacheRegisterRelcacheCallback(relation_callback, (Datum) 0);
}

/* Tell every backend, at commit, that queues or grants have changed. */
void
registry_invalidate(void)
{
	CacheInvalidateRelcacheByRelid(registry_anchor());
}

/* Forget what an invalidation has made doubtful. */
static void
accept_invalidation(void)
{
	if (!invalidated)
		return;
	invalidated = false;
	anchor_oid = InvalidOid;
	memset(log_oids, 0, sizeof(log_oids));
	owner_oid = InvalidOid;
	version_checked = false;
	last_queue = NULL;
	if (queue_cache_context != NULL)
		MemoryContextDelete(queue_cache_context);
	queue_cache_context = NULL;
	queue_cache = NULL;
}

/* A right that was revoked a moment ago is gone, in the middle of a transaction too. */
static void
catch_up(void)
{
	AcceptInvalidationMessages();
	accept_invalidation();
}

bool
registry_extension_exists(void)
{
	return OidIsValid(get_extension_oid("pg_fanout", true));
}

bool
registry_extension_is_ours(void)
{
	HeapTuple	tuple;
	bool		ours;

	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(registry_anchor()));
	if (!HeapTupleIsValid(tuple))
		return false;
	ours = TransactionIdIsCurrentTransactionId(HeapTupleHeaderGetXmin(tuple->t_data));
	ReleaseSysCache(tuple);
	return ours;
}

static Oid
resolve_relation(const char *name)
{
	Oid			schema = get_namespace_oid("fanout", true);
	Oid			relation = OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;

	if (!OidIsValid(relation))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("relation \"fanout.%s\" does not exist", name),
				 errhint("Create the extension with CREATE EXTENSION pg_fanout.")));
	return relation;
}

/* The OID of fanout.queue, which tells one life of the extension from the next; its owner is ours. */
Oid
registry_anchor(void)
{
	HeapTuple	tuple;
	Oid			relation;

	accept_invalidation();
	if (OidIsValid(anchor_oid))
		return anchor_oid;

	relation = resolve_relation("queue");
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(relation));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", relation);
	owner_oid = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	anchor_oid = relation;
	return anchor_oid;
}

/* The OID of a segment's table; it belongs to the same life as the anchor. */
Oid
registry_relation(LogKind kind, int segment)
{
	Oid		   *oid = &log_oids[kind][segment];

	(void) registry_anchor();
	if (!OidIsValid(*oid))
	{
		char		name[NAMEDATALEN];

		snprintf(name, sizeof(name), "%s_%d", kind_names[kind], segment + 1);
		*oid = resolve_relation(name);
	}
	return *oid;
}

/* The role that owns the extension's tables. */
Oid
registry_owner(void)
{
	(void) registry_anchor();
	return owner_oid;
}

/* Does the library that was preloaded belong to the catalogue that it finds? */
static void
check_version(void)
{
	(void) registry_anchor();	/* an invalidation of that has us look again */
	if (version_checked)
		return;
	require_same_version();
	version_checked = true;
}

void
require_readable(void)
{
	require_preload();
	check_version();
}

void
require_writable(const char *function)
{
	require_preload();
	PreventCommandDuringRecovery(function);
	PreventCommandIfReadOnly(function);
	PreventCommandIfParallelMode(function);
	check_version();
}

static bool
database_is_ready(Database *database, Oid anchor)
{
	return database != NULL && database->state == DATABASE_READY && database->anchor == anchor;
}

/* Ask for a keeper, if there is none for this life of the extension. */
static Database *
call_keeper(Oid anchor, bool *ready)
{
	Database   *database;

	dispatcher_lock();
	database = database_enter(MyDatabaseId);
	*ready = database_is_ready(database, anchor);
	if (database != NULL && !*ready)
	{
		database->keeper_wanted = true;
		if (fanout_shared->launcher != NULL)
			set_latch_after_unlock(fanout_shared->launcher);
		keeper_wake(database);
	}
	dispatcher_unlock();

	if (database == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases use pg_fanout"),
				 errhint("Raise pg_fanout.max_databases and restart the server.")));
	return database;
}

static const char *
why_not_ready(const Database *database)
{
	if (fanout_shared->launcher == NULL)
		return "The launcher of pg_fanout, which starts keepers, is not there.";
	if (database->failed_in_a_row > 0)
		return "Its keeper fails each time that it starts.";
	return database->keeper != NULL ? "Its keeper has not finished starting." : "It has no keeper yet.";
}

Database *
require_database(void)
{
	static Database *known = NULL;
	Oid			anchor = registry_anchor();
	int64		deadline;
	bool		ready;

	/* Read without the lock: whatever is done later looks again under it. */
	if (known != NULL && known->db == MyDatabaseId && database_is_ready(known, anchor))
		return known;

	if (registry_extension_is_ours())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the extension pg_fanout was created by this very transaction"),
				 errhint("Commit before you use it; only queues can be created before.")));

	deadline = wait_clock() + KEEPER_PATIENCE;
	ConditionVariablePrepareToSleep(&fanout_shared->changed);
	for (;;)
	{
		known = call_keeper(anchor, &ready);
		if (ready)
			break;
		if (wait_clock() >= deadline)
			ereport(ERROR,
					(errcode(ERRCODE_CANNOT_CONNECT_NOW),
					 errmsg("pg_fanout is not ready in this database"),
					 errdetail("%s", why_not_ready(known)),
					 errhint("Look into the server log and fanout.stats; max_worker_processes may be too low.")));
		(void) ConditionVariableTimedSleep(&fanout_shared->changed, 1000, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
	return known;
}

/* Is the current role a member of this one? */
bool
role_is_mine(Oid role)
{
	return has_privs_of_role(GetUserId(), role);
}

static bool
queue_allows(const QueueInfo *info, QueuePrivilege privilege)
{
	if (role_is_mine(info->owner))
		return true;
	for (int i = 0; i < info->grant_count; i++)
	{
		if (info->grants[i].privilege == privilege && role_is_mine(info->grants[i].grantee))
			return true;
	}
	return false;
}

static void
require_privilege(const QueueInfo *info, QueuePrivilege privilege)
{
	static const char *const words[] = {"enqueue to", "dequeue from", "manage"};

	if (!queue_allows(info, privilege))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to %s queue \"%s\"", words[privilege], info->name),
				 errhint("Its owner can allow it with fanout.grant_queue().")));
}

static void
read_grants(QueueInfo *info)
{
	Datum		values[1] = {Int32GetDatum(info->id)};
	uint64		rows = spi_read_latest(&select_grants, values, NULL);

	info->grants = MemoryContextAlloc(queue_cache_context, Max(rows, 1) * sizeof(QueueGrant));
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		info->grants[i].grantee = DatumGetObjectId(spi_value(i, 1, &isnull));
		info->grants[i].privilege = DatumGetInt32(spi_value(i, 2, &isnull));
	}
	info->grant_count = rows;
}

static void
create_cache(void)
{
	HASHCTL		info = {0};

	queue_cache_context = AllocSetContextCreate(CacheMemoryContext, "pg_fanout queues", ALLOCSET_SMALL_SIZES);
	info.keysize = FANOUT_NAME_LEN;
	info.entrysize = sizeof(QueueInfo);
	info.hcxt = queue_cache_context;
	queue_cache = hash_create("pg_fanout queues", 16, &info, HASH_ELEM | HASH_STRINGS | HASH_CONTEXT);
}

/* The slot of a queue that the catalogue has; throws if memory has none. */
static Queue *
slot_of(int32 id, const char *name)
{
	Queue	   *queue;

	(void) require_database();
	dispatcher_lock();
	queue = queue_find(MyDatabaseId, id);
	dispatcher_unlock();
	if (queue == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("queue \"%s\" has no place in memory", name),
				 errhint("Raise pg_fanout.max_queues and restart the server.")));
	return queue;
}

static QueueInfo *
load_queue(const char *name)
{
	SpiScope	scope;
	Datum		values[1];
	bool		isnull;
	QueueInfo  *info = NULL;

	spi_begin(&scope);
	values[0] = CStringGetTextDatum(name);
	if (spi_run(&select_queue, values, NULL) == 1)
	{
		int32		id = DatumGetInt32(spi_value(0, 1, &isnull));
		Oid			owner = DatumGetObjectId(spi_value(0, 2, &isnull));
		Queue	   *queue = slot_of(id, name);

		if (queue_cache == NULL)
			create_cache();
		info = hash_search(queue_cache, name, HASH_ENTER, NULL);
		memset((char *) info + FANOUT_NAME_LEN, 0, sizeof(QueueInfo) - FANOUT_NAME_LEN);
		info->id = id;
		info->owner = owner;
		read_grants(info);
		info->queue = queue;
	}
	spi_end(&scope);
	return info;
}

/* Does the cached entry still name the queue that its slot holds? */
static bool
still_valid(const QueueInfo *info)
{
	return info->queue != NULL && info->queue->state != QUEUE_FREE &&
		info->queue->id == info->id && info->queue->db == MyDatabaseId;
}

static QueueInfo *
find_queue(const char *name)
{
	QueueInfo  *info;

	if (last_queue != NULL && strcmp(last_queue->name, name) == 0 && still_valid(last_queue))
		return last_queue;

	info = queue_cache != NULL ? hash_search(queue_cache, name, HASH_FIND, NULL) : NULL;
	if (info == NULL || !still_valid(info))
		info = load_queue(name);
	last_queue = info;
	return info;
}

static QueueRef
ref_to(const QueueInfo *info)
{
	QueueRef	ref;

	ref.id = info->id;
	ref.queue = info->queue;
	memcpy(ref.name, info->name, FANOUT_NAME_LEN);
	return ref;
}

QueueRef
registry_queue(text *name, QueuePrivilege privilege)
{
	char		buffer[FANOUT_NAME_LEN];
	int			length = VARSIZE_ANY_EXHDR(name);
	QueueInfo  *info = NULL;

	(void) require_database();
	catch_up();
	if (length < FANOUT_NAME_LEN && length > 0)
	{
		memcpy(buffer, VARDATA_ANY(name), length);
		buffer[length] = '\0';
		info = find_queue(buffer);
	}
	if (info == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("queue \"%s\" does not exist", text_to_cstring(name)),
				 errhint("Create it with fanout.create_queue().")));
	require_privilege(info, privilege);
	return ref_to(info);
}

bool
queue_ref_is_valid(const QueueRef *ref)
{
	return ref->queue->state != QUEUE_FREE && ref->queue->id == ref->id && ref->queue->db == MyDatabaseId;
}

void
throw_queue_gone(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("queue \"%s\" does not exist", name),
			 errdetail("It was dropped a moment ago.")));
}

/* The cache's entry for the id, or NULL if there is none. */
static QueueInfo *
find_cached_by_id(int32 id)
{
	HASH_SEQ_STATUS scan;
	QueueInfo  *info;

	if (last_queue != NULL && last_queue->id == id && still_valid(last_queue))
		return last_queue;
	if (queue_cache == NULL)
		return NULL;
	hash_seq_init(&scan, queue_cache);
	while ((info = hash_seq_search(&scan)) != NULL)
	{
		if (info->id == id && still_valid(info))
		{
			hash_seq_term(&scan);
			return info;
		}
	}
	return NULL;
}

/* The queue's name by the catalogue, or NULL. */
static char *
name_of_queue(int32 id)
{
	MemoryContext caller = CurrentMemoryContext;
	SpiScope	scope;
	Datum		values[1] = {Int32GetDatum(id)};
	char	   *name = NULL;

	spi_begin(&scope);
	if (spi_run(&select_queue_by_id, values, NULL) == 1)
		name = MemoryContextStrdup(caller, SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	spi_end(&scope);
	return name;
}

static QueueInfo *
find_queue_by_id(int32 id)
{
	QueueInfo  *info;
	char	   *name;

	(void) require_database();
	catch_up();
	info = find_cached_by_id(id);
	if (info != NULL)
		return info;
	name = name_of_queue(id);
	return name != NULL ? find_queue(name) : NULL;
}

bool
registry_queue_by_id(int32 id, QueuePrivilege privilege, QueueRef *ref)
{
	QueueInfo  *info = find_queue_by_id(id);

	if (info == NULL)
		return false;
	require_privilege(info, privilege);
	*ref = ref_to(info);
	return true;
}

int32
registry_recent_queue(QueuePrivilege privilege)
{
	catch_up();
	if (last_queue == NULL || !still_valid(last_queue) || !queue_allows(last_queue, privilege))
		return 0;
	return last_queue->id;
}

bool
registry_queue_allows(int32 id, QueuePrivilege privilege)
{
	QueueInfo  *info = find_queue_by_id(id);

	return info != NULL && queue_allows(info, privilege);
}

bool
registry_queue_exists(int32 id)
{
	return find_queue_by_id(id) != NULL;
}

bool
registry_queue_visible(int32 id)
{
	QueueInfo  *info = find_queue_by_id(id);

	return info != NULL &&
		(queue_allows(info, PRIVILEGE_MANAGE) || queue_allows(info, PRIVILEGE_DEQUEUE) ||
		 queue_allows(info, PRIVILEGE_ENQUEUE));
}
