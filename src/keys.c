/*
 * keys.c
 *		Keys of tasks: one task of a queue holds a key at a time.
 *
 * The log itself says who does: of the tasks of the queue that have the key,
 * the one with the highest id, while it has no outcome, or until its row's
 * key_until.  So there is nothing beside the log to be kept in step with it,
 * or to be cleaned up.
 *
 * Two that enqueue with one key do so one after the other, by a lock that lasts
 * until the end of the transaction.  Who waited for it takes a snapshot then,
 * whatever the isolation level, and so sees what the other one has committed;
 * as its id is taken under the lock as well, the highest id is the latest one.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "cancel.h"
#include "change.h"
#include "keys.h"
#include "spi.h"
#include "storage.h"

static SpiStatement select_latest = {
	"SELECT id, enqueued_at, key_until, EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id)"
	" FROM fanout.task t WHERE queue = $1 AND key = $2 ORDER BY id DESC LIMIT 1", 2, {INT4OID, TEXTOID}
};

/* The latest task that was enqueued with a key. */
typedef struct KeyTask
{
	int64		task;			/* 0: there is none */
	TimestampTz enqueued_at;
	TimestampTz until;			/* 0: it holds the key until it has ended, */
	bool		ended;			/* as it has, seen with the rest: it may go at any time then */
} KeyTask;

void
check_key(text *key)
{
	int			length = VARSIZE_ANY_EXHDR(key);

	if (length == 0 || length > TASK_KEY_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid key"),
				 errdetail("A key must have from 1 to %d bytes.", TASK_KEY_MAX),
				 errhint("Use a hash of what is longer, such as md5() of it.")));
}

/* Keys with the same hash only wait for each other. */
static void
lock_key(int32 queue_id, text *key)
{
	uint64		hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key), queue_id);

	LockDatabaseObject(get_relname_relid("task", get_namespace_oid("fanout", false)),
					   (Oid) hash, (uint16) (hash >> 32), ExclusiveLock);
}

static KeyTask
find_latest(int32 queue_id, text *key)
{
	KeyTask		latest = {0};
	SpiScope	scope;
	Datum		values[2] = {Int32GetDatum(queue_id), PointerGetDatum(key)};

	spi_begin(&scope);
	if (spi_read_latest(&select_latest, values, NULL) == 1)
	{
		bool		isnull;
		Datum		until = spi_value(0, 3, &isnull);

		latest.task = spi_int64(0, 1);
		latest.until = isnull ? 0 : DatumGetTimestampTz(until);
		latest.enqueued_at = DatumGetTimestampTz(spi_value(0, 2, &isnull));
		latest.ended = DatumGetBool(spi_value(0, 4, &isnull));
	}
	spi_end(&scope);
	return latest;
}

static bool
holds_key(const KeyTask *latest, TimestampTz now)
{
	if (latest->task == 0)
		return false;
	return latest->until != 0 ? latest->until > now : !latest->ended;
}

static void
throw_key_held(const Request *request, const KeyTask *holder)
{
	ereport(ERROR,
			(errcode(ERRCODE_KEY_HELD),
			 errmsg("key \"%s\" is held in queue \"%s\"", text_to_cstring(request->key), request->ref.name),
			 holder->until != 0 ?
			 errdetail("Task " INT64_FORMAT " holds it until %s.", holder->task, timestamptz_to_str(holder->until)) :
			 errdetail("Task " INT64_FORMAT " holds it until it has ended.", holder->task)));
}

/* Have the holder ended by the task that is about to be enqueued, if it waits. */
static int64
supersede(Request *request, int64 holder)
{
	if (cancel_begin(&request->ref, holder, &request->freed_partition) != CANCEL_DONE)
		return 0;
	request->freed = 1;
	return holder;
}

/*
 * When the task of a series of calls is to run: once no call has come for the
 * period, but not later than max_wait after the first one of the series.
 */
static void
set_debounced_time(Request *request, TimestampTz first, TimestampTz now)
{
	TimestampTz run_at = now + request->period;

	if (request->max_wait > 0)
		run_at = Min(run_at, first + request->max_wait);
	request->seed.run_at = run_at;
	request->seed.timed = run_at > now;
}

/* Make of the holder what the call asks for, if it waits and has not started, so that nothing of it is lost. */
static bool
replace(const Request *request, int64 holder)
{
	const TaskSeed *seed = &request->seed;
	TaskChange	change = {.unstarted = true};
	bool		too_large;

	/* it has been released, or given another life, after that */
	if (checkpoints_of(holder, &too_large) != NULL || too_large)
		return false;
	change.name = DatumGetTextPP(request->name);
	change.set_args = true;
	change.args = request->args[0];
	change.args_isnull = request->arg_nulls[0];
	change.set_priority = true;
	change.priority = seed->priority;
	change.set_time = true;
	change.run_at = seed->timed ? seed->run_at : 0;
	change.set_partition = true;
	change.partition_key = request->partition_key != (Datum) 0 ? DatumGetTextPP(request->partition_key) : NULL;
	change.set_rest = true;
	change.cost = seed->cost;
	change.max_attempts = seed->max_attempts;
	change.deadline = seed->deadline;
	change.fair_group = request->fair_group != (Datum) 0 ? DatumGetTextPP(request->fair_group) : NULL;
	change.group = seed->group;
	return change_task(holder, &change) == CHANGE_DONE;
}

/* Try to replace the holder, and begin a new series of debounced calls if that cannot be. */
static bool
settle_replace(Request *request, const KeyTask *holder, TimestampTz now)
{
	bool		replaced = false;

	if (holder != NULL)
	{
		if (request->period > 0)
			set_debounced_time(request, holder->enqueued_at, now);
		replaced = replace(request, holder->task);
	}
	if (replaced)
		request->seed.task = holder->task;
	else if (request->period > 0)
	{
		request->now = now;
		set_debounced_time(request, now, now);
	}
	return replaced;
}

bool
key_settle(Request *request, int64 *superseded)
{
	TimestampTz now;
	KeyTask		latest;
	bool		held;

	lock_key(request->ref.id, request->key);
	latest = find_latest(request->ref.id, request->key);
	now = GetCurrentTimestamp();	/* not before the lock: others may have had it for long */
	if (request->key_ttl > 0)
		request->key_until = now + request->key_ttl;
	held = holds_key(&latest, now);
	if (request->on_conflict == KEY_REPLACE)
		return settle_replace(request, held ? &latest : NULL, now);
	if (!held)
		return false;

	switch (request->on_conflict)
	{
		case KEY_RETURN:
			request->seed.task = latest.task;
			return true;
		case KEY_REJECT:
			throw_key_held(request, &latest);
			break;
		case KEY_REPLACE:		/* see above */
			break;
		case KEY_SUPERSEDE:
			*superseded = supersede(request, latest.task);
			break;
	}
	return false;
}
