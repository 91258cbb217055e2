/*
 * queues.c
 *		Creating, changing and dropping queues, and who may use them.
 *
 * The catalogue row is the durable side, changed by ordinary statements; the
 * slot in shared memory follows at commit.  Two that change one queue wait
 * for each other at its row, so memory sees the changes in the order of their
 * commits.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "commit_hooks.h"
#include "queue_settings.h"
#include "queues.h"
#include "registry.h"
#include "segments.h"
#include "spi.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fanout_create_queue);
PG_FUNCTION_INFO_V1(fanout_alter_queue);
PG_FUNCTION_INFO_V1(fanout_drop_queue);
PG_FUNCTION_INFO_V1(fanout_pause_queue);
PG_FUNCTION_INFO_V1(fanout_resume_queue);
PG_FUNCTION_INFO_V1(fanout_purge_queue);
PG_FUNCTION_INFO_V1(fanout_grant_queue);
PG_FUNCTION_INFO_V1(fanout_revoke_queue);
PG_FUNCTION_INFO_V1(fanout_grant_usage);

/* Places of arguments of create_queue and alter_queue: settings are the ones from 1 on. */
#define SETTING_PARTITION_CONCURRENCY	9
#define SETTING_PARTITION_RATE			10	/* and its period */
#define SETTING_PARTITION_RETRIES		12
#define SETTING_AGING					13
#define SETTING_COUNT					13
#define SETTING_RATE					14	/* and its period: kept in fanout.rate */
#define AFTER_SETTINGS					16
#define SETTING_PARTITION_BACKLOG		17
#define SETTING_RETENTION				18

static SpiStatement insert_queue = {
	"INSERT INTO fanout.queue (name, owner, concurrency, worker_concurrency, lease, max_attempts, backoff, backoff_max,"
	" max_backlog, synchronous_claims, partition_concurrency, partition_rate_limit, partition_rate_period, partition_retries,"
	" aging, partition_max_backlog, retention)"
	" VALUES ($1, $2::regrole, $3, $4, coalesce($5, '60 s'), coalesce($6, 5), coalesce($7, '1 s'), coalesce($8, '5 min'),"
	" $9, coalesce($10, false), $11, $12, $13, coalesce($14, 'block'), $15, $16, $17)"
	" ON CONFLICT (name) DO NOTHING RETURNING id",
	17, {TEXTOID, OIDOID, INT4OID, INT4OID, INTERVALOID, INT4OID, INTERVALOID, INTERVALOID, INT8OID, BOOLOID, INT4OID,
	INT4OID, INTERVALOID, TEXTOID, INTERVALOID, INT4OID, INTERVALOID}
};
static SpiStatement update_queue = {
	"UPDATE fanout.queue SET"
	" concurrency = CASE WHEN 'concurrency' = ANY ($15) THEN NULL ELSE coalesce($2, concurrency) END,"
	" worker_concurrency = CASE WHEN 'worker_concurrency' = ANY ($15) THEN NULL ELSE coalesce($3, worker_concurrency) END,"
	" partition_concurrency = CASE WHEN 'partition_concurrency' = ANY ($15) THEN NULL ELSE coalesce($10, partition_concurrency) END,"
	" partition_rate_limit = CASE WHEN 'partition_rate_limit' = ANY ($15) THEN NULL ELSE coalesce($11, partition_rate_limit) END,"
	" partition_rate_period = CASE WHEN 'partition_rate_limit' = ANY ($15) THEN NULL ELSE coalesce($12, partition_rate_period) END,"
	" lease = coalesce($4, lease), max_attempts = coalesce($5, max_attempts), backoff = coalesce($6, backoff),"
	" backoff_max = coalesce($7, backoff_max),"
	" max_backlog = CASE WHEN 'max_backlog' = ANY ($15) THEN NULL ELSE coalesce($8, max_backlog) END,"
	" partition_max_backlog = CASE WHEN 'partition_max_backlog' = ANY ($15) THEN NULL ELSE coalesce($16, partition_max_backlog) END,"
	" synchronous_claims = coalesce($9, synchronous_claims), partition_retries = coalesce($13, partition_retries),"
	" aging = CASE WHEN 'aging' = ANY ($15) THEN NULL ELSE coalesce($14, aging) END,"
	" retention = CASE WHEN 'retention' = ANY ($15) THEN NULL ELSE coalesce($17, retention) END"
	" WHERE id = $1",
	17, {INT4OID, INT4OID, INT4OID, INTERVALOID, INT4OID, INTERVALOID, INTERVALOID, INT8OID, BOOLOID, INT4OID,
	INT4OID, INTERVALOID, TEXTOID, INTERVALOID, TEXTARRAYOID, INT4OID, INTERVALOID}
};
static SpiStatement update_paused = {
	"UPDATE fanout.queue SET paused = $2 WHERE id = $1 AND paused <> $2",
	2, {INT4OID, BOOLOID}
};
static SpiStatement delete_queue = {
	"DELETE FROM fanout.queue WHERE id = $1", 1, {INT4OID}
};
#define CANCEL_UNFINISHED(segment) { \
	"INSERT INTO fanout.outcome" segment " (task, finished_at, attempt, status, value)" \
	" SELECT t.id, clock_timestamp(), 0, 'c', to_jsonb($2) FROM fanout.task" segment " t" \
	" WHERE t.queue = $1 AND NOT EXISTS (SELECT FROM fanout.outcome" segment " o WHERE o.task = t.id)" \
	" AND NOT EXISTS (SELECT FROM unnest($3) AS running (task) WHERE running.task = t.id)" \
	" ON CONFLICT (task) DO NOTHING", \
	3, {INT4OID, TEXTOID, INT8ARRAYOID} \
}
static SpiStatement cancel_unfinished[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(CANCEL_UNFINISHED);
static SpiStatement insert_grant = {
	"INSERT INTO fanout.queue_grant (queue, grantee, privilege) VALUES ($1, $2::regrole, $3) ON CONFLICT DO NOTHING",
	3, {INT4OID, OIDOID, TEXTOID}
};
static SpiStatement delete_grant = {
	"DELETE FROM fanout.queue_grant WHERE queue = $1 AND grantee = $2::regrole AND privilege = $3",
	3, {INT4OID, OIDOID, TEXTOID}
};
static SpiStatement usage_statements = {
	"SELECT 'GRANT USAGE ON SCHEMA fanout TO ' || quote_ident($1)"
	" UNION ALL"
	" SELECT format('GRANT EXECUTE ON ROUTINE %s TO %I', p.oid::regprocedure, $1) FROM pg_catalog.pg_proc p"
	" WHERE p.pronamespace = 'fanout'::regnamespace AND p.proname NOT IN ('grant_usage', '_register', '_filled', '_next_segment', '_violations', '_points', '_set_point')"
	" AND (p.proname <> 'create_queue' OR $2) AND NOT has_function_privilege($1::name, p.oid, 'EXECUTE')"
	" UNION ALL"
	" SELECT format('GRANT SELECT ON %s TO %I', c.oid::regclass, $1) FROM pg_catalog.pg_class c"
	" WHERE c.relnamespace = 'fanout'::regnamespace AND c.relkind = 'v'"
	" AND NOT has_table_privilege($1::name, c.oid, 'SELECT')",
	2, {TEXTOID, BOOLOID}
};

void
queue_lock(int32 id, LOCKMODE mode)
{
	LockDatabaseObject(registry_anchor(), (Oid) id, 0, mode);
}

static void
check_queue_name(text *name)
{
	char	   *chars = VARDATA_ANY(name);
	int			length = VARSIZE_ANY_EXHDR(name);
	bool		valid = length > 0 && length < FANOUT_NAME_LEN && chars[0] != ' ' && chars[length - 1] != ' ';

	for (int i = 0; i < length && valid; i++)
		valid = (unsigned char) chars[i] >= ' ' && chars[i] != 0x7f;
	if (!valid)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid queue name"),
				 errdetail("A queue's name must have from 1 to %d bytes, no control characters, and no blank at its ends.",
						   FANOUT_NAME_LEN - 1)));
}

static void
check_at_least_one(FunctionCallInfo fcinfo, int arg, int64 value, const char *name, int64 most)
{
	if (!PG_ARGISNULL(arg) && (value < 1 || value > most))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be from 1 to " INT64_FORMAT, name, most),
				 errhint("Leave it out, or unset it, for no limit; pause the queue to stop it.")));
}

void
check_period(FunctionCallInfo fcinfo, int arg, const char *name)
{
	if (arg_duration(fcinfo, arg, name, 0) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be longer than 0", name)));
}

void
check_rate(FunctionCallInfo fcinfo, int arg, const char *limit_name, const char *period_name)
{
	if (PG_ARGISNULL(arg) != PG_ARGISNULL(arg + 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s and %s must be given together", limit_name, period_name)));
	if (PG_ARGISNULL(arg))
		return;
	if (PG_GETARG_INT32(arg) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be at least 1", limit_name),
				 errhint("Leave it out, or unset it, for no limit; pause the queue to stop it.")));
	check_period(fcinfo, arg + 1, period_name);
}

static void
check_partition_retries(FunctionCallInfo fcinfo)
{
	char	   *value;

	if (PG_ARGISNULL(SETTING_PARTITION_RETRIES))
		return;
	value = text_to_cstring(PG_GETARG_TEXT_PP(SETTING_PARTITION_RETRIES));
	if (strcmp(value, "block") != 0 && strcmp(value, "pass") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partition_retries must be block or pass"),
				 errhint("block: a partition that runs one task at a time waits for one that is to be tried again; pass: those behind go on.")));
}

/* The arguments that are settings stand at the same places in create_queue and alter_queue. */
static void
check_settings(FunctionCallInfo fcinfo)
{
	if (arg_duration(fcinfo, 3, "lease", 1) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease must be longer than 0")));
	(void) arg_duration(fcinfo, 5, "backoff", 0);
	(void) arg_duration(fcinfo, 6, "backoff_max", 0);
	check_at_least_one(fcinfo, 1, PG_GETARG_INT32(1), "concurrency", PG_INT32_MAX);
	check_at_least_one(fcinfo, 2, PG_GETARG_INT32(2), "worker_concurrency", PG_INT32_MAX);
	check_at_least_one(fcinfo, SETTING_PARTITION_CONCURRENCY, PG_GETARG_INT32(SETTING_PARTITION_CONCURRENCY),
					   "partition_concurrency", PG_INT32_MAX);
	check_at_least_one(fcinfo, SETTING_PARTITION_BACKLOG, PG_GETARG_INT32(SETTING_PARTITION_BACKLOG),
					   "partition_max_backlog", PG_INT32_MAX);
	if (!PG_ARGISNULL(4))
		check_max_attempts(PG_GETARG_INT32(4));
	check_rate(fcinfo, SETTING_PARTITION_RATE, "partition_rate_limit", "partition_rate_period");
	check_rate(fcinfo, SETTING_RATE, "rate_limit", "rate_period");
	check_partition_retries(fcinfo);
	if (arg_duration(fcinfo, SETTING_AGING, "aging", 1) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("aging must be longer than 0"),
				 errhint("Leave it out, or unset it, for none.")));
	if (arg_duration(fcinfo, SETTING_RETENTION, "retention", 1) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("retention must be longer than 0"),
				 errhint("Leave it out, or unset it, for pg_fanout.retention.")));
	if (!PG_ARGISNULL(7))
		check_at_least_one(fcinfo, 7, PG_GETARG_INT64(7), "max_backlog", PG_INT64_MAX);
}

/* Copy arguments to the values of a statement. */
static void
take_args(FunctionCallInfo fcinfo, int first, int count, Datum *values, char *nulls)
{
	for (int i = 0; i < count; i++)
	{
		values[i] = PG_ARGISNULL(first + i) ? (Datum) 0 : PG_GETARG_DATUM(first + i);
		nulls[i] = PG_ARGISNULL(first + i) ? 'n' : ' ';
	}
}

/* A slot for the new queue, which opens when the transaction commits. */
static void
add_slot(int32 id, const QueueSettings *settings)
{
	Queue	   *queue;

	pending_prepare(1);
	dispatcher_lock();
	queue = queue_enter(MyDatabaseId, id);
	if (queue != NULL)
	{
		queue->settings = *settings;
		pending_queue_create(queue);
	}
	dispatcher_unlock();
	if (queue == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many queues"),
				 errhint("Raise pg_fanout.max_queues and restart the server.")));
}

Datum
fanout_create_queue(PG_FUNCTION_ARGS)
{
	SpiScope	scope;
	Datum		values[4 + SETTING_COUNT];
	char		nulls[4 + SETTING_COUNT + 1] = "  ";
	Oid			owner = GetUserId();
	bool		created;
	bool		in_memory;

	require_writable("fanout.create_queue()");
	require_arg(fcinfo, 0, "queue");
	check_queue_name(PG_GETARG_TEXT_PP(0));
	check_settings(fcinfo);

	/* before the extension itself is committed there is no keeper yet; it will find the row */
	in_memory = !registry_extension_is_ours();
	if (in_memory)
		(void) require_database();

	values[0] = PG_GETARG_DATUM(0);
	values[1] = ObjectIdGetDatum(owner);
	take_args(fcinfo, 1, SETTING_COUNT, &values[2], &nulls[2]);
	take_args(fcinfo, SETTING_PARTITION_BACKLOG, 2, &values[2 + SETTING_COUNT], &nulls[2 + SETTING_COUNT]);

	spi_begin(&scope);
	created = spi_run(&insert_queue, values, nulls) == 1;
	if (created)
	{
		bool		isnull;
		int32		id = DatumGetInt32(spi_value(0, 1, &isnull));
		QueueSettings settings;

		if (!PG_ARGISNULL(SETTING_RATE))
			rate_limit_store(id, PG_GETARG_DATUM(SETTING_RATE), PG_GETARG_DATUM(SETTING_RATE + 1));
		settings = queue_settings_load(id);
		if (in_memory)
			add_slot(id, &settings);
		registry_invalidate();
	}
	spi_end(&scope);

	if (!created && (PG_ARGISNULL(AFTER_SETTINGS) || !PG_GETARG_BOOL(AFTER_SETTINGS)))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("queue \"%s\" already exists", text_to_cstring(PG_GETARG_TEXT_PP(0))),
				 errhint("Use if_not_exists => true if that is fine, or fanout.alter_queue() to change it.")));
	PG_RETURN_BOOL(created);
}

/* Refuse names that cannot be unset, or that are given a value at the same time; are rate_limit or aging among them? */
static void
check_unset(FunctionCallInfo fcinfo, ArrayType *unset, bool *rate, bool *aging)
{
	static const struct
	{
		const char *name;
		int			arg;
	}			limits[] = {{"concurrency", 1}, {"worker_concurrency", 2}, {"max_backlog", 7},
	{"partition_concurrency", SETTING_PARTITION_CONCURRENCY},
	{"partition_rate_limit", SETTING_PARTITION_RATE}, {"rate_limit", SETTING_RATE}, {"aging", SETTING_AGING},
	{"partition_max_backlog", SETTING_PARTITION_BACKLOG}, {"retention", SETTING_RETENTION}};
	Datum	   *names;
	bool	   *nulls;
	int			count = array_elements(unset, TEXTOID, "unset", &names, &nulls, false);

	for (int i = 0; i < count; i++)
	{
		char	   *name = TextDatumGetCString(names[i]);
		bool		fits = false;

		for (int j = 0; j < lengthof(limits); j++)
			fits |= strcmp(name, limits[j].name) == 0 && PG_ARGISNULL(limits[j].arg);
		if (!fits)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("cannot unset \"%s\"", name),
					 errdetail("Only concurrency, worker_concurrency, partition_concurrency, rate_limit, partition_rate_limit, aging, max_backlog, partition_max_backlog and retention can be unset, each unless it is given a value.")));
		*rate |= strcmp(name, "rate_limit") == 0;
		*aging |= strcmp(name, "aging") == 0;
	}
}

/* Have memory follow what the catalogue says of the queue now; in an SpiScope. */
void
queue_follow_catalogue(const QueueRef *ref)
{
	QueueSettings settings = queue_settings_load(ref->id);

	pending_prepare(1);
	pending_queue_alter(ref->queue, &settings);
	registry_invalidate();
}

/*
 * The queue's aging is to change, if this is another one.  Ranks by the old
 * and by the new one do not compare, so there must be no task that has one:
 * none that waits, nor one that runs, as it may come back.  Nobody enqueues
 * until this transaction has ended, by the queue's lock.
 */
static void
prepare_aging(const QueueRef *ref, int64 aging)
{
	bool		gone;
	bool		same;
	int64		waiting;
	int64		running;

	queue_lock(ref->id, AccessExclusiveLock);
	dispatcher_lock();
	gone = !queue_ref_is_valid(ref);
	same = !gone && pending_settings(ref->queue)->aging == aging;
	waiting = ref->queue->waiting + ref->queue->pending;
	running = ref->queue->running;
	dispatcher_unlock();

	if (gone)
		throw_queue_gone(ref->name);
	if (!same && (waiting > 0 || running > 0))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("aging of queue \"%s\" cannot change while it has unfinished tasks", ref->name),
				 errdetail(INT64_FORMAT " wait and " INT64_FORMAT " run, in an order that goes by the aging when they were enqueued.",
						   waiting, running),
				 errhint("Change it when they have ended, or enqueue to another queue.")));
}

Datum
fanout_alter_queue(PG_FUNCTION_ARGS)
{
	SpiScope	scope;
	Datum		values[4 + SETTING_COUNT];
	char		nulls[4 + SETTING_COUNT + 1] = " ";
	QueueRef	ref;
	bool		unset_rate = false;
	bool		unset_aging = false;

	require_writable("fanout.alter_queue()");
	require_arg(fcinfo, 0, "queue");
	check_settings(fcinfo);
	if (!PG_ARGISNULL(AFTER_SETTINGS))
		check_unset(fcinfo, PG_GETARG_ARRAYTYPE_P(AFTER_SETTINGS), &unset_rate, &unset_aging);
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	if (unset_aging || !PG_ARGISNULL(SETTING_AGING))
		prepare_aging(&ref, arg_duration(fcinfo, SETTING_AGING, "aging", 0));

	values[0] = Int32GetDatum(ref.id);
	take_args(fcinfo, 1, SETTING_COUNT, &values[1], &nulls[1]);
	take_args(fcinfo, AFTER_SETTINGS, 1, &values[1 + SETTING_COUNT], &nulls[1 + SETTING_COUNT]);
	take_args(fcinfo, SETTING_PARTITION_BACKLOG, 2, &values[2 + SETTING_COUNT], &nulls[2 + SETTING_COUNT]);
	spi_begin(&scope);
	if (spi_run(&update_queue, values, nulls) == 1)
	{
		if (unset_rate || !PG_ARGISNULL(SETTING_RATE))
			rate_limits_delete(ref.id);
		if (!PG_ARGISNULL(SETTING_RATE))
			rate_limit_store(ref.id, PG_GETARG_DATUM(SETTING_RATE), PG_GETARG_DATUM(SETTING_RATE + 1));
		queue_follow_catalogue(&ref);
	}
	spi_end(&scope);
	PG_RETURN_VOID();
}

static bool
set_paused(FunctionCallInfo fcinfo, bool paused)
{
	SpiScope	scope;
	Datum		values[2];
	QueueRef	ref;
	bool		changed;

	require_arg(fcinfo, 0, "queue");
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	values[0] = Int32GetDatum(ref.id);
	values[1] = BoolGetDatum(paused);
	spi_begin(&scope);
	changed = spi_run(&update_paused, values, NULL) == 1;
	if (changed)
		queue_follow_catalogue(&ref);
	spi_end(&scope);
	return changed;
}

Datum
fanout_pause_queue(PG_FUNCTION_ARGS)
{
	require_writable("fanout.pause_queue()");
	PG_RETURN_BOOL(set_paused(fcinfo, true));
}

Datum
fanout_resume_queue(PG_FUNCTION_ARGS)
{
	require_writable("fanout.resume_queue()");
	PG_RETURN_BOOL(set_paused(fcinfo, false));
}

/* Give every unfinished task of the queue, but the running ones, a cancelled outcome; their number. */
static int64
cancel_all(int32 id, const char *reason, Datum *running, int running_count)
{
	SpiScope	scope;
	Datum		values[3];
	int64		cancelled = 0;

	values[0] = Int32GetDatum(id);
	values[1] = CStringGetTextDatum(reason);
	values[2] = PointerGetDatum(construct_array(running, running_count, INT8OID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
	spi_begin(&scope);
	segments_pin();				/* none is to move to a segment that was looked at before */
	for (int i = 0; i < FANOUT_SEGMENTS; i++)
		cancelled += spi_run_latest(&cancel_unfinished[i], values, NULL);
	spi_end(&scope);
	return cancelled;
}

/*
 * Close the queue to dequeue and refill until this transaction ends.  Whoever
 * enqueues has been waited for, by the queue's lock.
 */
static void
close_queue(const QueueRef *ref, bool dropping, bool only_if_empty)
{
	int64		waiting;
	int64		running;
	bool		gone;
	bool		closed = false;
	TransactionId closer = GetTopTransactionId();
	int64		moved_out = only_if_empty ? pending_leave(ref->queue) : 0;

	dispatcher_lock();
	gone = !queue_ref_is_valid(ref);
	waiting = ref->queue->waiting + ref->queue->pending - moved_out;
	running = ref->queue->running;
	if (!gone && (!only_if_empty || (waiting == 0 && running == 0)))
		closed = queue_close(ref->queue, dropping, closer);
	dispatcher_unlock();

	if (closed)
		return;
	if (gone)
		throw_queue_gone(ref->name);
	if (only_if_empty && (waiting > 0 || running > 0))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("queue \"%s\" has unfinished tasks", ref->name),
				 errdetail(INT64_FORMAT " wait and " INT64_FORMAT " run.", waiting, running),
				 errhint("Use force => true to cancel them.")));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("queue \"%s\" is being purged or dropped by this transaction already", ref->name)));
}

typedef struct EnderLook
{
	const Queue *queue;
	TransactionId me;
	TransactionId ender;		/* another transaction that ends a task of it */
} EnderLook;

static void
look_for_ender(Task *task, void *arg)
{
	EnderLook  *look = arg;
	TransactionId ender = InvalidTransactionId;

	if (&fanout_queues[task->queue] != look->queue)
		return;
	if (task->state == TASK_RUNNING)
		ender = lease_of(task)->ender;
	else if (task->state == TASK_ENDING)
		ender = task->ender;
	if (TransactionIdIsValid(ender) && !TransactionIdEquals(ender, look->me))
		look->ender = ender;
}

/*
 * Wait for whoever was ending a task of the closed queue when it was closed:
 * nobody else begins to.  Else our outcome of the task might be there before
 * his, which would be a duplicate key.
 */
static void
wait_for_enders(const Queue *queue)
{
	EnderLook	look = {.queue = queue, .me = GetTopTransactionId()};

	do
	{
		look.ender = InvalidTransactionId;
		dispatcher_lock();
		task_iterate(look_for_ender, &look);
		dispatcher_unlock();
		if (TransactionIdIsValid(look.ender))
			XactLockTableWait(look.ender, NULL, NULL, XLTW_None);
	} while (TransactionIdIsValid(look.ender));
}

Datum
fanout_drop_queue(PG_FUNCTION_ARGS)
{
	bool		force = !PG_ARGISNULL(1) && PG_GETARG_BOOL(1);
	SpiScope	scope;
	Datum		values[1];
	QueueRef	ref;

	require_writable("fanout.drop_queue()");
	require_arg(fcinfo, 0, "queue");
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	queue_lock(ref.id, AccessExclusiveLock);

	pending_prepare(1);
	close_queue(&ref, true, !force);
	pending_queue_drop(ref.queue);

	if (force)
	{
		wait_for_enders(ref.queue);
		(void) cancel_all(ref.id, "the queue was dropped", NULL, 0);
	}
	values[0] = Int32GetDatum(ref.id);
	spi_begin(&scope);
	(void) spi_run(&delete_queue, values, NULL);
	registry_invalidate();
	spi_end(&scope);
	PG_RETURN_VOID();
}

typedef struct PurgeList
{
	Queue	   *queue;
	int			room;
	int			waiting_count;
	int64	   *waiting;
	int			running_count;
	Datum	   *running;
} PurgeList;

static void
list_for_purge(Task *task, void *arg)
{
	PurgeList  *list = arg;

	bool		changed = pending_is_change(task);	/* by this transaction: it waits */

	if ((changed ? pending_queue(task) : &fanout_queues[task->queue]) != list->queue || fanout_queues[task->queue].db != MyDatabaseId)
		return;
	if (task->state == TASK_READY || task->state == TASK_SCHEDULED ||
		(changed && (task->flags & TASK_FLAG_NEW) == 0))
		list->waiting[list->waiting_count++] = task->node.id;
	else if (list->running_count < list->room)
		list->running[list->running_count++] = Int64GetDatum(task->node.id);
}

/*
 * Withdraw every waiting task of the closed queue that is in memory, and list
 * the others, which are let be: those that run, that other transactions are
 * ending, and that this very transaction has enqueued, as they wait only once
 * it commits.
 */
static void
withdraw_all(PurgeList *list)
{
	TransactionId me;

	list->room = fanout_max_tracked_tasks;
	list->waiting = MemoryContextAllocHuge(CurrentMemoryContext, list->room * sizeof(int64));
	list->running = MemoryContextAllocHuge(CurrentMemoryContext, list->room * sizeof(Datum));
	pending_prepare(list->room + 1);
	me = GetTopTransactionId();

	dispatcher_lock();
	task_iterate(list_for_purge, list);
	for (int i = 0; i < list->waiting_count; i++)
	{
		Task	   *task = task_find(MyDatabaseId, list->waiting[i]);

		if (task->state != TASK_ENDING)
			task_withdraw(task, me);
		pending_withdraw(task);
	}
	dispatcher_unlock();
}

Datum
fanout_purge_queue(PG_FUNCTION_ARGS)
{
	PurgeList	list = {0};
	QueueRef	ref;
	int64		cancelled;

	require_writable("fanout.purge_queue()");
	require_arg(fcinfo, 0, "queue");
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	queue_lock(ref.id, AccessExclusiveLock);
	list.queue = ref.queue;

	pending_prepare(1);
	close_queue(&ref, false, false);
	pending_queue_close(ref.queue);
	withdraw_all(&list);
	cancelled = cancel_all(ref.id, "the queue was purged", list.running, list.running_count);
	pending_queue_purge(ref.queue, cancelled - list.waiting_count);
	PG_RETURN_INT64(cancelled);
}

/* Let the role use the schema; "create" adds the right to have queues of its own. */
static void
give_usage(Oid role, bool create)
{
	SpiScope	scope;
	Datum		values[2];
	uint64		rows;
	char	  **statements;

	LockRelationOid(registry_anchor(), ShareUpdateExclusiveLock);
	spi_begin(&scope);
	values[0] = CStringGetTextDatum(GetUserNameFromId(role, false));
	values[1] = BoolGetDatum(create);
	rows = spi_run(&usage_statements, values, NULL);
	statements = palloc(Max(rows, 1) * sizeof(char *));
	for (uint64 i = 0; i < rows; i++)
		statements[i] = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
	for (uint64 i = 0; i < rows && (rows > 1 || create); i++)
	{
		if (SPI_execute(statements[i], false, 0) != SPI_OK_UTILITY)
			elog(ERROR, "could not execute \"%s\"", statements[i]);
	}
	spi_end(&scope);
}

static void
check_role(FunctionCallInfo fcinfo, int arg)
{
	require_arg(fcinfo, arg, "role");
	(void) GetUserNameFromId(PG_GETARG_OID(arg), false);
}

/* Run the statement for each of the privileges named. */
static void
change_grants(FunctionCallInfo fcinfo, const QueueRef *ref, SpiStatement *statement)
{
	SpiScope	scope;
	Datum		values[3];
	Datum	   *names;
	bool	   *nulls;
	int			count = array_elements(PG_GETARG_ARRAYTYPE_P(2), TEXTOID, "privileges", &names, &nulls, false);

	for (int i = 0; i < count; i++)
	{
		char	   *name = TextDatumGetCString(names[i]);

		if (strcmp(name, "enqueue") != 0 && strcmp(name, "dequeue") != 0 && strcmp(name, "manage") != 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("unknown privilege \"%s\"", name),
					 errhint("Privileges are enqueue, dequeue and manage.")));
	}
	spi_begin(&scope);
	for (int i = 0; i < count; i++)
	{
		values[0] = Int32GetDatum(ref->id);
		values[1] = PG_GETARG_DATUM(1);
		values[2] = names[i];
		(void) spi_run(statement, values, NULL);
	}
	registry_invalidate();
	spi_end(&scope);
}

Datum
fanout_grant_queue(PG_FUNCTION_ARGS)
{
	QueueRef	ref;

	require_writable("fanout.grant_queue()");
	require_arg(fcinfo, 0, "queue");
	check_role(fcinfo, 1);
	require_arg(fcinfo, 2, "privileges");
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	change_grants(fcinfo, &ref, &insert_grant);
	give_usage(PG_GETARG_OID(1), false);
	PG_RETURN_VOID();
}

Datum
fanout_revoke_queue(PG_FUNCTION_ARGS)
{
	QueueRef	ref;

	require_writable("fanout.revoke_queue()");
	require_arg(fcinfo, 0, "queue");
	check_role(fcinfo, 1);
	require_arg(fcinfo, 2, "privileges");
	ref = registry_queue(PG_GETARG_TEXT_PP(0), PRIVILEGE_MANAGE);
	change_grants(fcinfo, &ref, &delete_grant);
	PG_RETURN_VOID();
}

Datum
fanout_grant_usage(PG_FUNCTION_ARGS)
{
	require_writable("fanout.grant_usage()");
	check_role(fcinfo, 0);
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be superuser to grant the use of pg_fanout")));
	give_usage(PG_GETARG_OID(0), true);
	PG_RETURN_VOID();
}
