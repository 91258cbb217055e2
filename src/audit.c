/*
 * audit.c
 *		Violations of what must always hold in memory: found, counted, told.
 *
 * Only in a checked build; see audit.h.  Two things are looked at.  A claim
 * that has just been made is compared with every limit that it fell under.
 * And at the end of a hold of the dispatcher lock everything is counted anew
 * from the pools and the sets, and compared with the counters and flags that
 * decisions are made by: each time if the pools are small, and else so often
 * that it costs about as much for each hold.  So the limits that claims are
 * compared with cannot be wrong for long without anybody noticing.
 *
 * All of it runs under the lock and writes to shared memory only: into what
 * is counted, Recount, and what was found, AuditState.  The keeper writes it
 * to the log, since nobody else has a moment outside of the lock at which an
 * error would do no harm.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "arguments.h"
#include "audit.h"
#include "dispatch.h"
#include "lane.h"
#include "lane_limits.h"
#include "registry.h"
#include "wait.h"
#include "window.h"

PG_FUNCTION_INFO_V1(fanout_violations);

#ifdef FANOUT_CHECKED

#define POOL_FOR_EACH_HOLD	1024	/* entries of the pool of tasks that are looked through for one hold of the lock */
#define WAKE_PATIENCE		(10 * USECS_PER_SEC)

static const char *const kind_names[AUDIT_KINDS] = {
	"concurrency", "rate", "count", "order", "waiting", "wake"
};

static void found(AuditKind kind, const char *format,...) pg_attribute_printf(2, 3);

/* Note a violation. */
static void
found(AuditKind kind, const char *format,...)
{
	AuditState *audit = &fanout_shared->audit;
	va_list		args;

	if (audit->violations[kind]++ > 0)
		return;
	va_start(args, format);
	vsnprintf(audit->detail[kind], AUDIT_DETAIL_LEN, format, args);
	va_end(args);
	for (int i = 0; i < fanout_shared->database_high; i++)
		keeper_wake(&fanout_databases[i]);
}

/* Compare one counter with what was counted. */
static void
expect(const char *what, int32 queue_id, int64 partition, int64 counter, int64 counted)
{
	if (counter != counted)
		found(AUDIT_COUNT, "%s of queue %d, lane " INT64_FORMAT ": " INT64_FORMAT ", but counted " INT64_FORMAT,
			  what, queue_id, partition, counter, counted);
}

/* The claim has its permits by now. */
void
audit_claim(const Lease *lease)
{
	const Lane *lane = lane_of(task_of(lease));
	const Queue *queue = queue_of_lane(lane);
	const QueueSettings *settings = &queue->settings;

	fanout_shared->audit.looked[AUDIT_CONCURRENCY]++;
	if (settings->concurrency > 0 && queue->running > settings->concurrency)
		found(AUDIT_CONCURRENCY, "queue %d: " INT64_FORMAT " of %d", queue->id, queue->running, settings->concurrency);
	if (settings->worker_concurrency > 0 && use_of(lease)->running > settings->worker_concurrency)
		found(AUDIT_CONCURRENCY, "queue %d, worker \"%s\": %d of %d", queue->id, worker_of(lease)->key.name,
			  use_of(lease)->running, settings->worker_concurrency);
	if (lane_limit(lane) > 0 && lane->running > lane_limit(lane))
		found(AUDIT_CONCURRENCY, "queue %d, lane " INT64_FORMAT ": %d of %d", queue->id, lane->partition,
			  lane->running, lane_limit(lane));
	if (settings->paused || lane_settings(lane)->paused)
		found(AUDIT_CONCURRENCY, "queue %d, lane " INT64_FORMAT " is paused", queue->id, lane->partition);
}

/* The log has the start by now; a start that is larger than the window may take all of it, and be alone in it. */
void
audit_start(const RateView *rate, int32 cost, TimestampTz at)
{
	if (!rate_is_consistent(rate))
		found(AUDIT_COUNT, "a window of a rate limit does not count what its log has");
	fanout_shared->audit.entries_moved |= fanout_shared->free_rate_entry == 0;
	if (fanout_shared->audit.entries_moved)
		return;					/* a window may have what had left it */
	fanout_shared->audit.looked[AUDIT_RATE]++;
	for (int i = 0; i < rate->count; i++)
	{
		int64		units = rate_units_within(rate, rate->limits[i].period, at);

		if (units > Max(rate->limits[i].units, cost))
			found(AUDIT_RATE, INT64_FORMAT " of " INT64_FORMAT " units in " INT64_FORMAT " us", units,
				  rate->limits[i].units, rate->limits[i].period);
	}
}

/* -- counting anew -- */

static void
reset_use(WorkerUse *use, void *arg)
{
	memset(&use->recount, 0, sizeof(Recount));
}

static void
reset_worker(Worker *worker, void *arg)
{
	memset(&worker->recount, 0, sizeof(Recount));
}

static void
reset_recounts(void)
{
	worker_use_iterate(reset_use, NULL);
	worker_iterate(reset_worker, NULL);
	for (int i = 0; i < fanout_shared->database_high; i++)
		memset(&fanout_databases[i].recount, 0, sizeof(Recount));
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		memset(&queue->recount, 0, sizeof(Recount));
		memset(&queue->main.recount, 0, sizeof(Recount));
		if (queue->state == QUEUE_FREE)
			continue;
		short_list_foreach(node, &queue->lanes)
			memset(&link_container(Lane, link, node)->recount, 0, sizeof(Recount));
	}
}

static void
count_task(Task *task, void *arg)
{
	Queue	   *queue = &fanout_queues[task->queue];
	Lane	   *lane = lane_of(task);

	(*(int64 *) arg)++;
	if ((lane == NULL) != (task->state == TASK_ENDED) || (lane != NULL && queue_of_lane(lane) != queue) ||
		(task->lease != 0) != (task->state == TASK_RUNNING) ||
		(task->lease != 0 && task_of(lease_of(task)) != task))
	{
		found(AUDIT_ORDER, "task " INT64_FORMAT " in state %d has the wrong lane or lease", task->node.id, task->state);
		return;
	}
	queue->recount.ready += task->state == TASK_READY;
	queue->recount.scheduled += task->state == TASK_SCHEDULED;
	queue->recount.ending += task->state == TASK_ENDING && (task->flags & TASK_FLAG_NEW) == 0;
	queue->recount.reserved += task->state == TASK_ENQUEUED ||
		(task->state == TASK_ENDING && (task->flags & (TASK_FLAG_NEW | TASK_FLAG_UNPLACED)) == TASK_FLAG_NEW);
	queue->recount.ended += task->state == TASK_ENDED;
	if (lane == NULL)
		return;
	lane->recount.tasks++;
	lane->recount.ready += task->state == TASK_READY;
	lane->recount.leases += task->state == TASK_RUNNING;
	if (task->state == TASK_READY && ready_task_is_spare(task))
	{
		lane->recount.spare++;
		queue->recount.spare++;
	}
	if (task->state == TASK_SCHEDULED &&
		(task->flags & (TASK_FLAG_UNTOUCHED | TASK_FLAG_CANCELLED)) == TASK_FLAG_UNTOUCHED)
	{
		lane->recount.spare += lane->partition != 0;
		lane->recount.delayed++;
		queue->recount.spare++;
	}
}

static void
count_lease(Lease *lease, void *arg)
{
	Database   *database = database_find(lease->db);
	Queue	   *queue;
	Lane	   *lane;

	(*(int64 *) arg)++;
	database->recount.journal += lease->journal != 0;
	if (lease->task == 0)
	{
		worker_of(lease)->recount.ended++;
		return;
	}
	if (task_of(lease)->lease != link_to(lease))
	{
		found(AUDIT_ORDER, "lease " INT64_FORMAT " is not that of its task", lease->node.id);
		return;
	}
	lane = lane_of(task_of(lease));
	queue = queue_of_lane(lane);
	database->recount.committed += lease->committed;
	queue->recount.permits += !lease->passed_on;
	lane->recount.leases -= lease->lane_passed_on;
	use_of(lease)->recount.leases++;
	use_of(lease)->recount.permits += !lease->passed_on;
	worker_of(lease)->recount.leases++;
	if (lease->unjournaled)
	{
		queue->recount.unjournaled += lease->cost;
		if (lease->lane_unjournaled)
			lane->recount.unjournaled += lease->cost;
	}
}

static void
compare_use(WorkerUse *use, void *arg)
{
	int32		queue_id = fanout_queues[use->key.queue].id;

	(*(int64 *) arg)++;
	expect("leases of a worker", queue_id, 0, use->leases, use->recount.leases);
	expect("permits of a worker", queue_id, 0, use->running, use->recount.permits);
}

static void
compare_worker(Worker *worker, void *arg)
{
	(*(int64 *) arg)++;
	expect("leases of a worker in all", 0, 0, worker->lease_count, worker->recount.leases);
	expect("ended leases of a worker", 0, 0, worker->ended_count, worker->recount.ended);
}

/* Is the set in order, and linked from both sides?  Its size. */
static int64
count_set(const OrderedSet *set, const char *what, int32 queue_id)
{
	OrderNode  *last = NULL;
	int64		count = 0;

	for (OrderNode *node = order_first(set); node != NULL && count <= set->count; node = order_next(node))
	{
		OrderNode  *left = link_target(node->left);
		OrderNode  *right = link_target(node->right);

		if ((last != NULL && order_less(node->key, node->id, last->key, last->id)) ||
			(left != NULL && left->parent != link_to(node)) || (right != NULL && right->parent != link_to(node)))
			found(AUDIT_ORDER, "%s of queue %d: out of order at " INT64_FORMAT, what, queue_id, node->id);
		last = node;
		count++;
	}
	if (last != order_last(set) || count != set->count)
		found(AUDIT_ORDER, "%s of queue %d: its end or its count is wrong", what, queue_id);
	return count;
}

/* How many tasks the lane should let start, as far as time has no say in it; -1: it has. */
static int64
startable_of(Lane *lane)
{
	int32		limit = lane_limit(lane);
	int64		count = lane->ready.set.count;

	if (lane_has_rate(lane) || lane_settings(lane)->held_until != 0 || lane->turn.aside)
		return -1;
	if (lane_first(lane) == NULL || lane_settings(lane)->paused || lane_awaited_retry(lane) != NULL)
		return 0;
	return limit > 0 ? Max(Min(count, limit - lane->running), 0) : count;
}

/* How many are delayed in the lane's list of scheduled tasks; before them are those that are to be tried again. */
static int64
count_delayed(const Lane *lane)
{
	int64		count = 0;

	short_list_foreach(node, &lane->scheduled)
	{
		const Task *task = link_container(Task, link, node);
		bool		delayed = (task->flags & TASK_FLAG_DELAYED) != 0;

		if (task->lane != link_to(lane) || (delayed && task->state != TASK_SCHEDULED) ||
			delayed == ((task->flags & TASK_FLAG_RETRIED) != 0) || (count > 0 && !delayed))
			found(AUDIT_ORDER, "task " INT64_FORMAT " is in the wrong list or place of scheduled ones", task->node.id);
		count += delayed;
	}
	return count;
}

static void
compare_lane(Queue *queue, Lane *lane)
{
	int64		partition = lane->partition;
	int64		startable = startable_of(lane);
	int64		delayed = partition != 0 ? count_delayed(lane) : queue->main_delayed;
	LaneLimits *limits = lane_limits(lane);

	queue->recount.limited += limits != NULL;
	queue->recount.lanes += partition != 0;
	expect("tasks", queue->id, partition, lane->tasks, lane->recount.tasks);
	expect("permits", queue->id, partition, lane->running, lane->recount.leases);
	expect("unjournaled units", queue->id, partition, limits != NULL ? limits->unjournaled : 0,
		   lane->recount.unjournaled);
	expect("ready tasks", queue->id, partition, count_set(&lane->ready.set, "a lane", queue->id), lane->recount.ready);
	expect("tasks that may be left on disk", queue->id, partition, lane->spare, lane->recount.spare);
	expect("delayed tasks", queue->id, partition, delayed, lane->recount.delayed);
	queue->recount.delayed += partition != 0 ? delayed : 0;
	if (startable >= 0)
		expect("startable tasks", queue->id, partition, lane->startable, startable);
	if (partition != 0 && lane->tasks == 0 && lane->backlog == 0 && limits == NULL && !lane->turn.aside &&
		!window_is_bounded(&lane->ready) && !window_is_refilling(database_of(queue), &lane->ready))
		found(AUDIT_ORDER, "lane " INT64_FORMAT " of queue %d has no reason to be", partition, queue->id);
	if (lane->with_strays && window_is_bounded(&lane->ready))
		found(AUDIT_ORDER, "lane " INT64_FORMAT " of queue %d has strays and a bound", partition, queue->id);
}

/* How many lanes wait for their turn, with those of groups that do; each must have something to start. */
static int64
count_turns(Queue *queue)
{
	int64		lanes = 0;

	(void) count_set(&queue->turns.set, "turns", queue->id);
	for (OrderNode *node = order_first(&queue->turns.set); node != NULL; node = order_next(node))
	{
		Turn	   *turn = order_container(Turn, node, node);
		FairGroup  *group = order_container(FairGroup, turn, turn);

		if (!turn->waits)
			found(AUDIT_ORDER, "queue %d: who does not wait for a turn stands in the set", queue->id);
		if (!turn->shared)
			lanes++;
		else if (group->lanes.set.count == 0)
			found(AUDIT_ORDER, "queue %d: a group waits for its turn and no lane of it does", queue->id);
		else
			lanes += count_set(&group->lanes.set, "turns of a group", queue->id);
	}
	return lanes;
}

/* The sets of lanes: each lane is in the one that it should be in. */
static void
compare_turns(Queue *queue)
{
	int64		turns = queue->main.startable > 0;
	int64		throttled = 0;
	int64		startable = queue->main.startable;

	short_list_foreach(node, &queue->lanes)
	{
		Lane	   *lane = link_container(Lane, link, node);

		turns += lane->startable > 0;
		throttled += lane->turn.aside;
		startable += lane->startable;
		if (lane->turn.waits != (lane->startable > 0) || (lane->startable > 0 && lane_first(lane) == NULL) ||
			(lane->turn.waits && (lane->turn.aside || (lane->group != 0 && !group_of(lane)->turn.waits))))
			found(AUDIT_ORDER, "lane " INT64_FORMAT " of queue %d waits for its turn wrongly, or does not",
				  lane->partition, queue->id);
	}
	expect("startable tasks", queue->id, -1, queue->startable, startable);
	expect("lanes that wait for their turn", queue->id, -1, count_turns(queue), turns);
	expect("throttled lanes", queue->id, -1, count_set(&queue->throttled, "throttled", queue->id), throttled);
}

static void
look_at_window(Queue *queue, const Window *window, bool *on_disk, int64 *refilling)
{
	*on_disk |= window_is_bounded(window);
	*refilling += window_is_refilling(database_of(queue), window);
}

/* What waits is in memory, unless a window says that there may be some on disk. */
static void
compare_waiting(Queue *queue)
{
	int64		ready = queue->recount.ready + queue->recount.scheduled;
	int64		in_memory = ready + queue->recount.ending;
	bool		on_disk = false;
	int64		refilling = 0;

	look_at_window(queue, &queue->main.ready, &on_disk, &refilling);
	look_at_window(queue, &queue->scheduled, &on_disk, &refilling);
	look_at_window(queue, &queue->strays, &on_disk, &refilling);
	short_list_foreach(node, &queue->lanes)
		look_at_window(queue, &link_container(Lane, link, node)->ready, &on_disk, &refilling);
	expect("windows that refill", queue->id, -1, queue->refilling, refilling);
	fanout_shared->audit.looked[AUDIT_WAITING]++;

	/*
	 * Others may have loaded what its enqueuer has committed and has not come to count; and what was withdrawn from
	 * disk may have gone from there.
	 */
	if (queue->waiting + queue->pending < ready || (!on_disk && queue->waiting > in_memory))
		found(AUDIT_WAITING, "queue %d: " INT64_FORMAT " wait, " INT64_FORMAT " in memory%s", queue->id,
			  queue->waiting, in_memory, on_disk ? ", and some on disk" : "");
}

/*
 * queue_wake() keeps as many awake as may start.  Time has no say where there
 * are no rates.  Who could not be woken as a pool was used up is not woken
 * when it has room again, and looks by himself after some seconds.
 */
static void
check_waiters(Queue *queue)
{
	static TimestampTz pool_was_short = 0;
	Database   *database = database_of(queue);
	int64		startable = queue->startable;
	dlist_iter	iter;

	if (fanout_shared->free_leases == 0 || fanout_shared->free_workers == 0 || fanout_shared->free_uses == 0)
		pool_was_short = GetCurrentTimestamp();
	if (queue->waiter_count == 0 || queue->state != QUEUE_OPEN || queue->settings.paused ||
		database->state != DATABASE_READY || database->next_lease >= database->lease_ceiling ||
		queue->settings.rate_count > 0 || queue->settings.held_until != 0)
		return;
	if (queue->settings.concurrency > 0)
		startable = Min(startable, queue->settings.concurrency - queue->running - queue->returns);
	if (queue->woken >= startable ||
		(pool_was_short != 0 && GetCurrentTimestamp() < pool_was_short + WAKE_PATIENCE))
		return;
	fanout_shared->audit.looked[AUDIT_WAKE]++;
	dlist_foreach(iter, &queue->waiters)
	{
		Waiter	   *waiter = dlist_container(WaitLink, node, iter.cur)->waiter;

		if (queue_admits(queue, waiter->worker))
			found(AUDIT_WAKE, "queue %d: " INT64_FORMAT " may start, %d are woken, and worker \"%s\" sleeps",
				  queue->id, startable, queue->woken, waiter->worker);
	}
}

static void
compare_queue(Queue *queue)
{
	const Recount *recount = &queue->recount;

	compare_lane(queue, &queue->main);
	short_list_foreach(node, &queue->lanes)
		compare_lane(queue, link_container(Lane, link, node));
	expect("lanes", queue->id, -1, queue->lane_count, recount->lanes);
	expect("permits", queue->id, -1, queue->running, recount->permits);
	expect("ready tasks", queue->id, -1, queue->ready_count, recount->ready);
	expect("reserved entries", queue->id, -1, queue->reserved, recount->reserved);
	expect("unjournaled units", queue->id, -1, queue->unjournaled, recount->unjournaled);
	expect("delayed tasks", queue->id, -1, queue->delayed, recount->delayed);
	expect("tasks that may be left on disk", queue->id, -1, queue->spare, recount->spare);
	expect("scheduled tasks", queue->id, -1, count_set(&queue->scheduled.set, "the schedule", queue->id),
		   recount->scheduled);
	/* a task that was changed leaves one for whichever queue refills */
	if (recount->ended > 0 && queue->refilling == 0 && (database_of(queue)->refill_serial & 1) == 0)
		found(AUDIT_ORDER, "queue %d has tombstones and nothing refills", queue->id);
	compare_turns(queue);
	compare_waiting(queue);
	check_waiters(queue);
}

/* The pools, whose free entries are counted. */
static void
compare_pools(int64 tasks, int64 leases)
{
	int64		lanes = 0;
	int64		workers = 0;
	int64		uses = 0;

	worker_use_iterate(compare_use, &uses);
	worker_iterate(compare_worker, &workers);
	for (int i = 0; i < fanout_shared->queue_high; i++)
		lanes += fanout_queues[i].state != QUEUE_FREE ? fanout_queues[i].lane_count : 0;
	expect("free tasks", 0, 0, fanout_shared->free_tasks, fanout_max_tracked_tasks - tasks);
	expect("free leases", 0, 0, fanout_shared->free_leases, fanout_max_tracked_tasks - leases);
	expect("free lanes", 0, 0, fanout_shared->free_lanes, fanout_max_lanes - lanes);
	expect("free workers", 0, 0, fanout_shared->free_workers, fanout_max_workers - workers);
	expect("free uses", 0, 0, fanout_shared->free_uses, (int64) fanout_max_workers * 2 - uses);
}

void
audit_memory(void)
{
	AuditState *audit = &fanout_shared->audit;
	int64		tasks = 0;
	int64		leases = 0;
	int64		limited = 0;
	int64		reserved = 0;
	int64		spare = 0;

	if (audit->skipped++ < fanout_max_tracked_tasks / POOL_FOR_EACH_HOLD)
		return;
	audit->skipped = 0;
	audit->looked[AUDIT_COUNT]++;
	audit->looked[AUDIT_ORDER]++;
	reset_recounts();
	task_iterate(count_task, &tasks);
	lease_iterate(count_lease, &leases);
	compare_pools(tasks, leases);
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		if (fanout_queues[i].state == QUEUE_FREE)
			continue;
		compare_queue(&fanout_queues[i]);
		limited += fanout_queues[i].recount.limited;
		reserved += fanout_queues[i].recount.reserved;
		spare += fanout_queues[i].recount.spare;
	}
	expect("free places for limits", 0, 0, fanout_shared->free_limited_lanes, fanout_max_limited_lanes - limited);
	expect("reserved entries of all queues", 0, 0, fanout_shared->reserved, reserved);
	expect("tasks of all queues that may be left on disk", 0, 0, fanout_shared->spare, spare);
	for (int i = 0; i < fanout_shared->database_high; i++)
	{
		Database   *database = &fanout_databases[i];

		if (database->state == DATABASE_FREE)
			continue;
		expect("committed leases", 0, 0, count_set(&database->expiry, "leases", 0), database->recount.committed);
		expect("leases to be journaled", 0, 0, database->journal_count, database->recount.journal);
	}
}

/* -- telling -- */

static AuditState
copy_state(void)
{
	AuditState	copy;

	dispatcher_lock();
	copy = fanout_shared->audit;
	memcpy(fanout_shared->audit.reported, copy.violations, sizeof(copy.violations));
	dispatcher_unlock();
	return copy;
}

void
audit_report(void)
{
	AuditState	audit = copy_state();

	for (int kind = 0; kind < AUDIT_KINDS; kind++)
	{
		if (audit.violations[kind] > audit.reported[kind])
			ereport(LOG,
					(errmsg("pg_fanout violation of %s: " INT64_FORMAT " times so far, the first: %s",
							kind_names[kind], audit.violations[kind], audit.detail[kind])));
	}
}

/* A row for each kind. */
Datum
fanout_violations(PG_FUNCTION_ARGS)
{
	ResultSet	set;
	AuditState	audit;

	require_readable();
	set = result_set_begin(fcinfo);
	dispatcher_lock();
	audit = fanout_shared->audit;
	dispatcher_unlock();
	for (int kind = 0; kind < AUDIT_KINDS; kind++)
	{
		Datum		values[4];
		bool		nulls[4] = {false, false, false, audit.violations[kind] == 0};

		values[0] = CStringGetTextDatum(kind_names[kind]);
		values[1] = Int64GetDatum(audit.looked[kind]);
		values[2] = Int64GetDatum(audit.violations[kind]);
		values[3] = CStringGetTextDatum(audit.detail[kind]);
		result_set_add(&set, values, nulls);
	}
	return (Datum) 0;
}

#else

Datum
fanout_violations(PG_FUNCTION_ARGS)
{
	require_readable();
	(void) result_set_begin(fcinfo);
	return (Datum) 0;
}

#endif
