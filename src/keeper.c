/*
 * keeper.c
 *		The process that looks after one database: rebuild, journal, timers,
 *		refill, joins.
 *
 * It is started by the launcher, says so in the database's slot, fills memory
 * if nothing is in it yet, and then sleeps until the next thing is due or
 * somebody wakes it.  An error ends the process, and the launcher starts
 * another one, which finds memory as this one left it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "cancel.h"
#include "commit_hooks.h"
#include "deadlines.h"
#include "finish.h"
#include "ids.h"
#include "joins.h"
#include "journal.h"
#include "points.h"
#include "rebuild.h"
#include "refill.h"
#include "return.h"
#include "retention.h"
#include "segments.h"
#include "spi.h"
#include "starts.h"
#include "storage.h"
#include "strays.h"
#include "version.h"
#include "wait.h"
#include "window.h"
#include "worker.h"

#define RETRY_REFILL	(500 * INT64CONST(1000))	/* microseconds, when the pool had no room and none comes free */
#define DRAIN_PATIENCE	USECS_PER_SEC	/* microseconds */
#define DRAIN_LOCK_TIMEOUT	"1s"
#define SLEEP_MOST		(60 * USECS_PER_SEC)	/* so late may it notice that the clock was set forward */

static Database *database = NULL;
static volatile sig_atomic_t keeping = false;	/* whoever terminates us cancels what we are at */
static volatile sig_atomic_t draining = false;	/* we are going, and journal what others claim until then */

/* Say that this database has no keeper any more. */
static void
sign_off(int code, Datum arg)
{
	dispatcher_lock();
	if (database->keeper == MyProc)
	{
		database->keeper = NULL;
		database->keeper_pid = 0;
	}
	if (fanout_shared->launcher != NULL)
		set_latch_after_unlock(fanout_shared->launcher);
	dispatcher_unlock();
	ConditionVariableBroadcast(&fanout_shared->changed);
}

/* Take the database's slot; false if there is nothing to keep or somebody keeps it already. */
static bool
sign_on(void)
{
	Oid			anchor;
	bool		mine = false;

	StartTransactionCommand();
	if (!registry_extension_exists() || !library_fits())
	{
		CommitTransactionCommand();
		dispatcher_lock();
		database = database_find(MyDatabaseId);
		if (database != NULL && database->keeper == NULL)
		{
			database_clear(database);
			database->state = DATABASE_FREE;
		}
		dispatcher_unlock();
		return false;
	}
	anchor = registry_anchor();
	CommitTransactionCommand();

	dispatcher_lock();
	database = database_enter(MyDatabaseId);
	if (database != NULL && database->keeper == NULL && database->held_by == 0)
	{
		mine = true;
		database->keeper = MyProc;
		database->keeper_pid = MyProcPid;
		database->keeper_wakes_at = DT_NOBEGIN;
		database->keeper_since = GetCurrentTimestamp();
		database->keeper_starts++;
		if (database->state != DATABASE_READY || database->anchor != anchor)
			database_clear(database);
		database->anchor = anchor;
	}
	dispatcher_unlock();

	if (database == NULL)
		ereport(WARNING,
				(errmsg("too many databases use pg_fanout"),
				 errhint("Raise pg_fanout.max_databases and restart the server.")));
	if (mine)
		before_shmem_exit(sign_off, (Datum) 0);
	return mine;
}

/* Has the extension been dropped, or dropped and created again? */
static bool
extension_has_gone(void)
{
	bool		gone;

	StartTransactionCommand();
	gone = !registry_extension_exists() || registry_anchor() != database->anchor || !library_fits();
	CommitTransactionCommand();
	return gone;
}

/* Has somebody asked for a keeper, although there is one? */
static bool
told_to_check(void)
{
	bool		result;

	dispatcher_lock();
	result = database->keeper_wanted;
	database->keeper_wanted = false;
	dispatcher_unlock();
	return result;
}

/* Have the tables been filled by other hands? */
static bool
told_to_reload(void)
{
	bool		result;

	dispatcher_lock();
	result = database->reload;
	database->reload = false;
	dispatcher_unlock();
	return result;
}

/* Begin anew with what the tables say by now. */
static void
reload(void)
{
	while (journal_flush(database))
		;
	dispatcher_lock();
	database_clear(database);
	dispatcher_unlock();
	rebuild(database, true);
	ConditionVariableBroadcast(&fanout_shared->changed);
}

static int32
max_attempts_of(const Task *task)
{
	return task->max_attempts > 0 ? task->max_attempts : fanout_queues[task->queue].settings.max_attempts;
}

/* Does an open transaction write under the lease, or drop its queue?  It is not for us to wait for that. */
static bool
is_decided_elsewhere(const Lease *lease)
{
	const Queue *queue = &fanout_queues[task_of(lease)->queue];

	return lease->pins > 0 || (queue->state == QUEUE_CLOSED && queue->dropping);
}

/*
 * End leases that have run out.  Those of tasks that have no attempt left are
 * returned, as their tasks get an outcome; true if there may be more.
 */
static bool
expire_leases(TimestampTz now, int64 *exhausted, int *exhausted_count)
{
	OrderNode  *node;
	int			looked = 0;

	*exhausted_count = 0;
	dispatcher_lock();
	for (node = order_first(&database->expiry); node != NULL && node->key <= now && looked < FANOUT_WORK_CHUNK;)
	{
		Lease	   *lease = order_container(Lease, node, node);

		node = order_next(node);
		if (is_decided_elsewhere(lease))
			continue;
		looked++;
		if (task_of(lease)->attempts >= max_attempts_of(task_of(lease)) ||
			(task_of(lease)->flags & TASK_FLAG_CANCELLED) != 0)
			exhausted[(*exhausted_count)++] = lease->node.id;
		else
		{
			Queue	   *queue = &fanout_queues[task_of(lease)->queue];

			lease_expire(lease, now);
			queue_wake(queue);
		}
	}
	dispatcher_unlock();
	if (looked > *exhausted_count)
		FANOUT_POINT(EXPIRY_TOLD);
	return looked == FANOUT_WORK_CHUNK;
}

/* The rows of a task whose last attempt has expired. */
static void
write_exhausted(const HeldLease *held)
{
	static const char error[] = "the lease expired, and no attempt was left";
	TimestampTz now = GetCurrentTimestamp();
	LogWriter  *writer = log_writer_open(LOG_OUTCOME, 1);

	write_outcome(writer, held->task, held, OUTCOME_FAILED, now, error_value(error, strlen(error)), false);
	log_writer_close(writer);
	writer = log_writer_open(LOG_ATTEMPT, 1);
	write_attempt(writer, held->lease, held->task, 'x', now, 0, held->worker, (Datum) 0, true);
	log_writer_close(writer);
}

/* Fail a task whose last attempt has expired. */
static void
fail_exhausted(int64 lease)
{
	HeldLease	held;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (lease_hold(lease, LEASE_USE_END, &held) && held.cancelled)
		end_cancelled(&held);
	else if (held.lease != 0)
	{
		pending_end(held.entry, lease, held.task, OUTCOME_FAILED);
		FANOUT_POINT(EXHAUSTED_HELD);

		/* should memory be wrong about the task, to insist would be a duplicate key, and the end of this process */
		if (outcome_of(held.task) == 0)
			write_exhausted(&held);
		FANOUT_POINT(EXHAUSTED_WRITTEN);
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
}

static void
run_expiry(TimestampTz now)
{
	static int64 exhausted[FANOUT_WORK_CHUNK];
	int			count;
	bool		more;

	do
	{
		more = expire_leases(now, exhausted, &count);
		for (int i = 0; i < count; i++)
			fail_exhausted(exhausted[i]);
		CHECK_FOR_INTERRUPTS();
	} while (more && count > 0);
}

typedef struct CancelList
{
	TimestampTz now;
	int			count;
	int64		tasks[FANOUT_WORK_CHUNK];
	bool		late[FANOUT_WORK_CHUNK];	/* its deadline has passed */
} CancelList;

static void
list_cancelled(Task *task, void *arg)
{
	CancelList *list = arg;

	if (fanout_queues[task->queue].db == MyDatabaseId && (task->flags & TASK_FLAG_CANCELLED) != 0 &&
		task->state == TASK_SCHEDULED && list->count < FANOUT_WORK_CHUNK)
	{
		list->late[list->count] = task->deadline != 0 && task->deadline <= list->now;
		list->tasks[list->count++] = task->node.id;
	}
}

/*
 * Cancel tasks that were to be cancelled while they ran, and that wait again as
 * their attempt ended otherwise; and those that a claim met after their
 * deadline.
 */
static void
run_cancels(void)
{
	static CancelList list;
	bool		wanted;

	list.count = 0;
	list.now = GetCurrentTimestamp();	/* not before that of any claim that has met one */
	dispatcher_lock();
	wanted = database->cancelled_waits;
	database->cancelled_waits = false;
	if (wanted)
		task_iterate(list_cancelled, &list);
	if (list.count == FANOUT_WORK_CHUNK)
		database->cancelled_waits = true;
	dispatcher_unlock();

	for (int i = 0; i < list.count; i++)
	{
		const char *reason;

		StartTransactionCommand();
		PushActiveSnapshot(GetTransactionSnapshot());
		reason = cancel_reason(list.tasks[i]);
		if (reason == NULL && list.late[i])
			reason = DEADLINE_PASSED;
		if (cancel_task_at_once(list.tasks[i], reason) >= CANCEL_LATER)
			database->cancelled_waits = true;	/* a hint: to be looked at again when there is something else to do */
		PopActiveSnapshot();
		CommitTransactionCommand();
	}
}

/* Let due tasks be ready, and refill windows.  False if a refill found no room. */
static bool
run_queues(TimestampTz now)
{
	bool		headway = true;

	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];
		bool		refill;
		bool		all_promoted = true;

		dispatcher_lock();
		refill = queue->state == QUEUE_OPEN && queue->db == MyDatabaseId;
		if (refill)
		{
			all_promoted = queue_promote_due(queue, now);
			queue_wake(queue);
			refill = queue->wants_refill || queue->refill_held || queue->due_held || queue->strays_held;
		}
		dispatcher_unlock();
		if (!all_promoted)
		{
			i--;				/* others had the lock for a moment: go on with this queue */
			continue;
		}

		if (refill)
			headway &= refill_queue(queue);
		CHECK_FOR_INTERRUPTS();
	}
	return headway;
}

/* The first lease that may expire. */
static TimestampTz
next_expiry(void)
{
	OrderNode  *node = order_first(&database->expiry);

	while (node != NULL && is_decided_elsewhere(order_container(Lease, node, node)))
		node = order_next(node);
	return node != NULL ? node->key : DT_NOEND;
}

/* When the keeper has to look next, if nobody wakes it before; noted in the slot. */
static TimestampTz
plan_next_look(int64 last_flush, bool headway, TimestampTz next_join)
{
	TimestampTz next;
	int64		next_return;

	dispatcher_lock();
	next = Min(next_expiry(), deadlines_next_look(database));
	if (database->journal_count > 0)
		next = Min(next, wait_clock_time(last_flush + fanout_journal_interval * INT64CONST(500)));
	if (database->dirty_join_count > 0 || database->dirty_join_overflow)
		next = Min(next, next_join);
	next_return = end_overdue_returns(database, wait_clock());
	if (next_return != 0)
		next = Min(next, wait_clock_time(next_return));
	if (ids_want_ceiling(database) || database->next_segment_wanted || database->segment_reopen_wanted ||
		database->reload || database->keeper_wanted || database->held_by != 0)
		next = 0;
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state != QUEUE_OPEN || queue->db != MyDatabaseId)
			continue;
		if (queue->scheduled.set.count > 0)
			next = Min(next, order_first(&queue->scheduled.set)->key);
		if (queue->throttled.count > 0)
			next = Min(next, order_first(&queue->throttled)->key);
		if (queue->waiter_count > 0 && queue->startable > 0)
		{
			TimestampTz at = queue_admits_start(queue, GetCurrentTimestamp());

			if (at != 0)
				next = Min(next, at);
		}
		if (window_is_bounded(&queue->scheduled))
			next = Min(next, headway && !queue->due_held ? queue->scheduled.bound_key :
					   Max(queue->scheduled.bound_key, GetCurrentTimestamp() + RETRY_REFILL));
		if (queue->strays_held)
			next = Min(next, GetCurrentTimestamp() + STRAYS_PATIENCE);
		if (queue->refill_held)
			next = Min(next, GetCurrentTimestamp() + RETRY_REFILL);
		if (queue->wants_refill)
			next = headway ? 0 : Min(next, GetCurrentTimestamp() + RETRY_REFILL);
	}
	if (!headway)
		next = Max(next, GetCurrentTimestamp() + 1000);
	database->keeper_wakes_at = next;
	dispatcher_unlock();
	return next;
}

/* Sleep until then, or until somebody wakes us. */
static void
sleep_until(TimestampTz next)
{
	long		timeout = -1;
	int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH;

	if (next != DT_NOEND)
	{
		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), next);
		timeout = Min(timeout, SLEEP_MOST / 1000);
		events |= WL_TIMEOUT;
	}
	(void) WaitLatch(MyLatch, events, timeout, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
}

/*
 * We are to go.  What we are at is cancelled: it may wait, or be about to, for
 * a lock that an operator or a prepared transaction has on one of our tables,
 * or for a synchronous standby that is not there.  Not so what is done at the
 * end, which takes not long anyway: the postmaster sends each signal twice, to
 * the process and to its group.
 */
static void
terminate(SIGNAL_ARGS)
{
	int			save_errno = errno;

	ShutdownRequestPending = true;
	if (keeping || (!draining && MyProc != NULL && MyProc->waitLock != NULL))
		InterruptPending = QueryCancelPending = true;
	SetLatch(MyLatch);
	errno = save_errno;
}

/* Does somebody want the database to itself (DROP DATABASE, ...)? */
static bool
must_leave(void)
{
	bool		result;

	dispatcher_lock();
	result = database->held_by != 0;
	dispatcher_unlock();
	return result;
}

/*
 * The server shuts down: what others still claim is journaled, until they
 * have gone.  If it is only us who are to go, that takes a second at most.  It
 * ends with an error if the journal is locked.  A standby gets it like all
 * that was written, but we do not wait until it has.
 */
static void
drain_journal(void)
{
	int64		deadline = wait_clock() + DRAIN_PATIENCE;

	draining = true;
	(void) set_config_option("lock_timeout", DRAIN_LOCK_TIMEOUT, PGC_USERSET, PGC_S_OVERRIDE, GUC_ACTION_SET, true, 0, false);
	(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_OVERRIDE, GUC_ACTION_SET, true, 0, false);
	do
	{
		while (journal_flush(database))
			;
		if (must_leave() || CountDBConnections(MyDatabaseId) == 0)
			break;
		(void) WaitLatch(MyLatch, WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, 10, PG_WAIT_EXTENSION);
	} while (wait_clock() < deadline);
	while (journal_flush(database))
		;
}

/* The clock was set back. */
static void
follow_clock(TimestampTz now)
{
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		dispatcher_lock();
		if (queue->state != QUEUE_FREE && queue->db == MyDatabaseId)
			queue_follow_clock(queue, now);
		dispatcher_unlock();
	}
}

static void
keep(void)
{
	int64		last_flush = 0; /* by wait_clock() */
	TimestampTz latest = 0;
	MemoryContext context = AllocSetContextCreate(TopMemoryContext, "pg_fanout keeper", ALLOCSET_DEFAULT_SIZES);

	while (!ShutdownRequestPending && !must_leave())
	{
		TimestampTz now = GetCurrentTimestamp();
		TimestampTz next_join;
		TimestampTz next_retention;
		TimestampTz next;
		bool		headway;

		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			ProcessConfigFile(PGC_SIGHUP);
		}
		if (told_to_check() && extension_has_gone())
			return;

		if (told_to_reload())
		{
			reload();
			continue;
		}

		MemoryContextSwitchTo(context);
		if (database->segment_reopen_wanted)
			segments_reopen(database);
		if (ids_want_ceiling(database))
			ids_raise_ceilings(database);
		if (database->next_segment_wanted)
		{
			/* it takes all ids up to the ceiling, and no two may begin at the same one */
			(void) segments_move_on(database);
			ids_raise_ceilings(database);
		}
		MemoryContextSwitchTo(context);
		if (now < latest - CLOCK_SLACK)
			follow_clock(now);
		latest = now;
		if (wait_clock() >= last_flush + fanout_journal_interval * INT64CONST(500))
		{
			(void) journal_flush(database);
			last_flush = wait_clock();
		}
		run_expiry(now);
		run_cancels();
		MemoryContextSwitchTo(context);
		deadlines_run(database, now);
		headway = run_queues(now);
		/* a transaction leaves us in the context that is never reset */
		MemoryContextSwitchTo(context);
		next_join = joins_run(database);
		MemoryContextSwitchTo(context);
		now = GetCurrentTimestamp();
		next_retention = retention_begins(database, now);
		if (next_retention <= now)
			next_retention = retention_run(database, now);
		retention_ends();
		audit_report();
		MemoryContextSwitchTo(context);
		MemoryContextReset(context);
		keeper_works(database);

		/* a latch that was set meanwhile may have been reset by a wait for a lock: what it told is looked at again */
		next = Min(plan_next_look(last_flush, headway, next_join), next_retention);
		if (!ShutdownRequestPending)
			sleep_until(next);
	}
}

/* Go on with memory as the last keeper left it: what it was about to do is to be done. */
static void
take_over(void)
{
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	segments_load(database);
	PopActiveSnapshot();
	CommitTransactionCommand();

	refill_reset(database);
	follow_clock(GetCurrentTimestamp());	/* it may have been set back while there was no keeper */
	dispatcher_lock();
	database->dirty_join_overflow = true;
	database->cancelled_waits = true;
	deadlines_take_over(database);
	dispatcher_unlock();
}

/* Have memory filled, and keep it until we are to go. */
static void
keep_until_terminated(void)
{
	keeping = true;
	PG_TRY();
	{
		if (!ShutdownRequestPending)
		{
			if (database->state != DATABASE_READY)
				rebuild(database, false);
			else
				take_over();
			ConditionVariableBroadcast(&fanout_shared->changed);
			keep();
		}
	}
	PG_CATCH();
	{
		if (!ShutdownRequestPending || geterrcode() != ERRCODE_QUERY_CANCELED)
			PG_RE_THROW();
		FlushErrorState();
		AbortCurrentTransaction();
	}
	PG_END_TRY();
	keeping = false;
	QueryCancelPending = false;
}

static void
run(void)
{
	if (!sign_on())
		return;
	keep_until_terminated();
	if (database->state == DATABASE_READY && (ShutdownRequestPending || must_leave()))
		drain_journal();
}

void
fanout_keeper_main(Datum arg)
{
	Oid			db = DatumGetObjectId(arg);

	pqsignal(SIGTERM, terminate);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnectionByOid(db, InvalidOid, 0);
	pgstat_report_activity(STATE_IDLE, NULL);
	keeper_settings();
	keeper_guard(run);
	proc_exit(0);
}
