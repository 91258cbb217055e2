/*
 * dispatch.c
 *		Who may run next: the transitions of tasks and leases.
 *
 * Each function is one edge of the state machines that README.md shows as
 * tables: it asserts the state that it starts from, moves the task or lease,
 * and keeps the counts.  Nothing else changes a state.  All of it runs under
 * the dispatcher lock, so a limit is compared and taken in one step, and a
 * claim that is not committed yet counts like any other.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "groups.h"
#include "lane.h"
#include "room.h"
#include "starts.h"
#include "wait.h"
#include "window.h"

static inline Queue *
queue_of(const Task *task)
{
	return &fanout_queues[task->queue];
}

static inline int32
queue_index(const Queue *queue)
{
	return queue - fanout_queues;
}

static bool
seed_is_due(const TaskSeed *seed, TimestampTz now)
{
	return !seed->timed || seed->run_at <= now;
}

static Task *
enter_from_seed(Queue *queue, Lane *lane, const TaskSeed *seed)
{
	Task	   *task = task_enter(queue->db, seed->task);

	if (task == NULL)
		return NULL;
	task->lane = lane;
	lane->tasks++;
	task->queue = queue_index(queue);
	task->batch = seed->batch;
	task->rank = seed->rank;
	task->priority = seed->priority;
	task->cost = Max(seed->cost, 1);
	task->max_attempts = seed->max_attempts;
	task->deadline = seed->deadline;
	task->node.key = seed->timed ? seed->run_at : seed->rank;
	task->flags = (seed->timed ? TASK_FLAG_TIMED : 0) | (seed->early_join ? TASK_FLAG_EARLY_JOIN : 0);
	return task;
}

/* A task with this deadline (0: none) waits: the keeper is to look at it then. */
void
database_note_deadline(Database *database, TimestampTz deadline)
{
	if (deadline == 0 || deadline >= database->next_deadline)
		return;
	database->next_deadline = deadline;
	keeper_wake_by(database, deadline);
}

static inline void
note_deadline(const Task *task)
{
	if (task->deadline != 0)
		database_note_deadline(database_of(queue_of(task)), task->deadline);
}

/* Insert a task that waits into the window of its state. */
static void
insert_ready(Task *task)
{
	note_deadline(task);
	task->state = TASK_READY;
	task->node.key = task->rank;
	lane_add(task->lane, task);
}

static void
insert_scheduled(Queue *queue, Task *task, TimestampTz due)
{
	note_deadline(task);
	task->state = TASK_SCHEDULED;
	task->node.key = due;
	lane_schedule(task->lane, task);
	if ((task->flags & (TASK_FLAG_UNTOUCHED | TASK_FLAG_CANCELLED)) == 0)
		lane_await_retry(task);
	keeper_wake_by(database_of(queue), due);
}

/*
 * A task that was to be cancelled while it ran, and has not ended with its
 * attempt, or that was met after its deadline: it is never due, and the keeper
 * gives it its outcome.
 */
static void
insert_cancelled(Queue *queue, Task *task)
{
	Database   *database = database_of(queue);

	queue->timed++;
	lane_await_retry_no_more(task);
	insert_scheduled(queue, task, DT_NOEND);
	database->cancelled_waits = true;
	keeper_wake(database);
}

/* Insert a task that has not ended with its attempt, due then (0: now). */
static void
insert_again(Queue *queue, Task *task, TimestampTz due, TimestampTz now)
{
	queue->waiting++;
	lane_count_backlog(task->lane, 1);
	if (task->flags & TASK_FLAG_CANCELLED)
		insert_cancelled(queue, task);
	else if (due > now)
	{
		queue->timed++;
		insert_scheduled(queue, task, due);
	}
	else
		insert_ready(task);
}

/*
 * (new) -> ENQUEUED.  NULL if the task is to stay on disk: then it is the
 * caller's to call queue_leave_on_disk() at commit.
 */
Task *
task_reserve(Queue *queue, const TaskSeed *seed, TimestampTz now)
{
	bool		due = seed_is_due(seed, now);
	Lane	   *lane = lane_for_task(queue, seed->partition, due);
	Task	   *task = NULL;

	if (lane == NULL)
		return NULL;
	lane->tasks++;				/* while room is made, it is not to go away */
	if (make_room(queue, due ? &lane->ready : &queue->scheduled, due ? seed->rank : seed->run_at, seed->task))
		task = enter_from_seed(queue, lane, seed);
	lane->tasks--;
	if (task == NULL)
	{
		lane_release(lane);
		return NULL;
	}
	task->state = TASK_ENQUEUED;
	task->flags |= TASK_FLAG_UNTOUCHED | TASK_FLAG_FRESH;
	if (lane->sample_task == 0)
		lane->sample_task = seed->task; /* better than none; it may be rolled back */
	task->ender = GetTopTransactionIdIfAny();	/* for who meets it between its commit and the callback */
	queue->reserved++;
	return task;
}

/*
 * ENQUEUED -> READY or SCHEDULED, or left on disk if that is where its place
 * is by now.  The fair group that it names counts from now on: not before its
 * commit.
 */
void
task_admit(Task *task, int64 group, TimestampTz now)
{
	Queue	   *queue = queue_of(task);
	bool		timed = (task->flags & TASK_FLAG_TIMED) != 0;
	TimestampTz run_at = task->node.key;

	Assert(task->state == TASK_ENQUEUED);
	note_deadline(task);
	queue->reserved--;
	queue->waiting++;
	queue->enqueued++;
	task->lane->sample_task = task->key.task;
	lane_join_group(task->lane, group, task->key.task);

	if (timed && run_at > now)
	{
		queue->timed++;
		if (!window_is_beyond(&queue->scheduled, run_at, task->key.task))
			insert_scheduled(queue, task, run_at);
		else
		{
			window_leave_on_disk(&queue->scheduled, run_at, task->key.task);
			task_drop(task);
		}
	}
	else if (timed || !window_is_beyond(&task->lane->ready, task->rank, task->key.task))
		insert_ready(task);
	else
	{
		lane_leave_on_disk(task->lane, task->rank, task->key.task);
		task_drop(task);
	}
}

/* ENQUEUED -> (gone) */
void
task_forget(Task *task)
{
	Assert(task->state == TASK_ENQUEUED);
	queue_of(task)->reserved--;
	task_drop(task);
}

/* ENDING stays, but waits no longer for its enqueuer, the same transaction, to commit. */
void
task_admit_withdrawn(Task *task)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_ENDING && (task->flags & TASK_FLAG_NEW) != 0);
	if ((task->flags & TASK_FLAG_UNPLACED) == 0)
		queue->reserved--;
	queue_count_committed(queue, (task->flags & TASK_FLAG_WAS_SCHEDULED) != 0, 1);
	task->flags &= ~(TASK_FLAG_NEW | TASK_FLAG_UNPLACED);
}

/* So many enqueued tasks were committed that task_admit() does not count. */
void
queue_count_committed(Queue *queue, bool timed, int64 count)
{
	queue->waiting += count;
	queue->enqueued += count;
	if (timed)
		queue->timed += count;
}

/* The task is on disk only, in this place or, if it is not the first of such, one that comes after. */
static void
leave_on_disk(Queue *queue, int64 partition, int64 rank, bool timed, TimestampTz run_at, int64 task)
{
	Lane	   *lane;

	if (timed)
	{
		window_leave_on_disk(&queue->scheduled, run_at, task);
		keeper_wake_by(database_of(queue), run_at);
	}
	else if ((lane = lane_find(queue, partition)) != NULL)
		lane_leave_on_disk(lane, rank, task);
	else
		queue_leave_stray(queue, task);
}

/*
 * "count" tasks, the first of which is given and whose ids follow on, were
 * committed and are on disk only.  Timed ones all go by way of the schedule,
 * even when they are due.
 */
void
queue_leave_on_disk(Queue *queue, const TaskSeed *first, int64 count)
{
	queue_count_committed(queue, first->timed, count);
	database_note_deadline(database_of(queue), first->deadline);
	leave_on_disk(queue, first->partition, first->rank, first->timed, first->run_at, first->task);
}

/*
 * (on disk) -> READY or SCHEDULED, for a refill.  NULL if there is no room
 * for it.  The task must not be in memory.  An urgent one may go beyond the
 * queue's share: what is there is not to be evicted and comes later.
 */
Task *
task_load(Queue *queue, const TaskSeed *seed, ItemPointer tid, bool urgent, TimestampTz now)
{
	Lane	   *lane = lane_for_task(queue, seed->partition, seed_is_due(seed, now));
	int64		key = seed->timed ? seed->run_at : seed->rank;
	Task	   *task = NULL;

	if (lane == NULL)
		return NULL;
	lane->tasks++;				/* while room is made, it is not to go away */
	if (queue_room(queue) ||
		window_evict_after(seed->timed ? &queue->scheduled : &lane->ready, key, seed->task) ||
		(urgent && (fanout_shared->free_tasks > 0 || evict_for(queue))))
		task = enter_from_seed(queue, lane, seed);
	lane->tasks--;
	if (task == NULL)
	{
		lane_release(lane);
		return NULL;
	}
	lane->sample_task = seed->task;
	task->tid = *tid;
	task->flags |= TASK_FLAG_UNTOUCHED;
	lane_join_group(lane, seed->group, seed->task);
	if (seed_is_due(seed, now))
	{
		if (seed->timed && queue->timed > 0)
			queue->timed--;
		insert_ready(task);
	}
	else
		insert_scheduled(queue, task, seed->run_at);
	return task;
}

/* A task without a place in memory, at a rebuild. */
static void
rebuild_on_disk(Queue *queue, Lane *lane, const TaskSeed *seed, bool scheduled)
{
	database_note_deadline(database_of(queue), seed->deadline);
	if (scheduled)
	{
		queue->timed++;
		window_leave_on_disk(&queue->scheduled, seed->run_at, seed->task);
	}
	else if (lane != NULL)
		lane_leave_on_disk(lane, seed->rank, seed->task);
	else
		queue_leave_stray(queue, seed->task);
}

/*
 * (on disk) -> READY or SCHEDULED, for a rebuild, which also counts.  A task
 * that has been attempted, or whose time was changed, has to be in memory;
 * NULL if the pool is used up: it has not been counted then, and is to be
 * entered as its row has it.  NULL as well for any other one that has no place.
 */
Task *
task_rebuild(Queue *queue, const TaskSeed *seed, ItemPointer tid, int attempts, bool own_due, TimestampTz now)
{
	bool		due = seed_is_due(seed, now);
	bool		scheduled = !due || (!own_due && seed->timed);
	Lane	   *lane = lane_for_task(queue, seed->partition, due);
	Task	   *task = NULL;

	if (lane == NULL && own_due && evict_any_lane())
		lane = lane_for(queue, seed->partition);
	if (lane != NULL)
	{
		lane->tasks++;			/* while room is made, it is not to go away */
		if (own_due ? (fanout_shared->free_tasks > 0 || evict_for(queue) || evict_any()) :
			make_room(queue, scheduled ? &queue->scheduled : &lane->ready,
					  scheduled ? seed->run_at : seed->rank, seed->task))
			task = enter_from_seed(queue, lane, seed);
		lane->tasks--;
	}
	queue->waiting += task != NULL || !own_due;
	if (task == NULL)
	{
		if (!own_due && lane != NULL)
			lane_count_backlog(lane, 1);
		if (!own_due)
			rebuild_on_disk(queue, lane, seed, scheduled);
		if (lane != NULL)
			lane_release(lane);
		return NULL;
	}
	lane_count_backlog(lane, 1);
	lane->sample_task = seed->task;
	task->tid = *tid;
	task->attempts = attempts;
	task->flags |= own_due ? 0 : TASK_FLAG_UNTOUCHED;
	lane_join_group(lane, seed->group, seed->task);
	if (due)
		insert_ready(task);
	else
	{
		queue->timed++;
		insert_scheduled(queue, task, seed->run_at);
	}
	return task;
}

/*
 * SCHEDULED -> READY for what is due; false if there is more than one call
 * should do.  What is in memory need not wait for what is on disk: the order
 * of the schedule is none of the tasks' turns.
 */
bool
queue_promote_due(Queue *queue, TimestampTz now)
{
	if (!queue_release_throttled(queue, now))
		return false;
	for (int i = 0; i < FANOUT_WORK_CHUNK; i++)
	{
		OrderNode  *first = queue->scheduled.set.first;
		Task	   *task;

		if (queue->scheduled.bounded && queue->scheduled.bound_key <= now)
			queue->wants_refill = true;
		if (first == NULL || first->key > now)
			return true;

		task = order_container(Task, node, first);
		Assert(task->state == TASK_SCHEDULED);
		lane_unschedule(task->lane, task);
		if (queue->timed > 0)
			queue->timed--;
		lane_await_retry_no_more(task);
		insert_ready(task);
	}
	return false;
}

/* Does a limit leave the worker (NULL: any) a permit, if so many more were given back? */
static bool
permits_left(const Queue *queue, const WorkerUse *use, int more)
{
	const QueueSettings *settings = &queue->settings;

	return (settings->concurrency == 0 || queue->running - more < settings->concurrency) &&
		(settings->worker_concurrency == 0 || use == NULL ||
		 use->running - more < settings->worker_concurrency);
}

/*
 * Take a permit for the claimant; false if there is none.  In a transaction
 * that ends a task and claims another one, the permit of the first goes to the
 * second: at no time are there more than the limit, and if the transaction
 * aborts, the claim is undone before the end is, so the permit goes back.
 */
static bool
find_permit(Queue *queue, WorkerUse *use, const Claimant *claimant, int *passed, int64 *permit_of)
{
	Lease	   *lease;

	*permit_of = 0;
	if (permits_left(queue, use, 0))
		return true;
	if (*passed == claimant->ending_count || !permits_left(queue, use, 1))
		return false;

	lease = claimant->ending[(*passed)++];
	lease->passed_on = true;
	*permit_of = lease->key.lease;
	queue->running--;
	lease->use->running--;
	return true;
}

/* The transaction that was to end the lease has aborted. */
void
lease_take_back_permit(Lease *lease)
{
	if (!lease->passed_on)
		return;
	lease->passed_on = false;
	queue_of(lease->task)->running++;
	lease->use->running++;
}

/* Might the worker get a task of the queue, as far as limits go? */
bool
queue_admits(Queue *queue, const char *worker)
{
	WorkerUse  *use = NULL;
	bool		pool_is_short = fanout_shared->free_workers == 0 || fanout_shared->free_uses == 0;

	if (fanout_shared->free_leases == 0)
		return false;
	if (queue->settings.worker_concurrency > 0 || pool_is_short)
	{
		Worker	   *entry = worker_find(queue->db, worker);

		if (entry == NULL && fanout_shared->free_workers == 0)
			return false;
		if (entry != NULL)
			use = worker_use_find(entry, queue_index(queue));
		if (use == NULL && fanout_shared->free_uses == 0)
			return false;
	}
	return permits_left(queue, use, 0);
}

/* Give the worker's pool entries back when it holds nothing more. */
static void
worker_release(Worker *worker, WorkerUse *use)
{
	if (use != NULL && use->leases == 0)
		worker_use_free(use);
	if (worker->lease_count == 0)
		worker_free(worker);
}

/* Attach a new lease to the task and take its permits. */
static Lease *
lease_begin(Task *task, int64 number, Worker *worker, WorkerUse *use, TimestampTz claimed_at, TimestampTz until)
{
	Queue	   *queue = queue_of(task);
	Lease	   *lease = lease_enter(queue->db, number);

	if (lease == NULL)
		return NULL;
	lease->task = task;
	lease->task_id = task->key.task;
	lease->worker = worker;
	lease->use = use;
	memcpy(lease->worker_name, worker->key.name, FANOUT_NAME_LEN);
	lease->claimed_at = claimed_at;
	lease->until = until;
	dlist_push_tail(&worker->leases, &lease->worker_link);
	worker->lease_count++;
	use->leases++;
	use->running++;
	queue->running++;

	task->state = TASK_RUNNING;
	task->ender = InvalidTransactionId;
	task->lease = lease;
	task->attempts++;
	lease->attempt = task->attempts;
	return lease;
}

/* Take the lease off its task and give its permits back; it stays only if the journal needs it. */
static void
lease_end(Lease *lease)
{
	Task	   *task = lease->task;
	Queue	   *queue = queue_of(task);
	Worker	   *worker = lease->worker;
	WorkerUse  *use = lease->use;

	lease_start_journaled(lease);
	if (lease->committed)
		order_remove(&database_of(queue)->expiry, &lease->node);
	dlist_delete(&lease->worker_link);
	worker->lease_count--;
	use->leases--;
	if (!lease->passed_on)
	{
		use->running--;
		queue->running--;
	}
	lane_give_permit(task->lane);
	worker_release(worker, use);

	task->lease = NULL;
	lease->task = NULL;
	lease->worker = NULL;
	lease->use = NULL;

	/* a claim or an extension that has ended need not be journaled: its end is on disk */
	if ((lease->journal & LEASE_JOURNAL_EXPIRE) == 0)
	{
		if (lease->journal != 0)
		{
			Database   *database = database_of(queue);

			dlist_delete(&lease->journal_link);
			database->journal_count--;
		}
		lease_free(lease);
	}
}

/*
 * READY -> RUNNING, with a lease that is not committed yet; false if there is
 * no permit or no room for a lease.
 */
static bool
claim_one(Queue *queue, Task *task, Database *database, Worker *worker, WorkerUse *use, const Claimant *claimant,
		  TimestampTz now, int *passed, Claim *claim)
{
	TimestampTz until = now + (claimant->lease > 0 ? claimant->lease : queue->settings.lease);
	int64		permit_of;
	Lease	   *lease;

	Assert(task->state == TASK_READY);
	if (fanout_shared->free_leases == 0 || !find_permit(queue, use, claimant, passed, &permit_of))
		return false;
	lease = lease_begin(task, database->next_lease, worker, use, now, until);
	if (lease == NULL)
		return false;
	database->next_lease++;
	lease_note_start(lease);
	lease->holder = MyProc;
	lease->holder_pid = MyProcPid;
	lease->bound = claimant->bound;
	lease->permit_of = permit_of;

	lane_serve(task->lane, task);
	queue->waiting--;
	lane_count_backlog(task->lane, -1);
	queue->dequeued++;
	audit_claim(lease);

	claim->entry = lease;
	claim->lease = lease->key.lease;
	claim->task = task->key.task;
	claim->batch = task->batch;
	claim->queue_id = queue->id;
	claim->priority = task->priority;
	claim->attempt = task->attempts;
	claim->max_attempts = task->max_attempts > 0 ? task->max_attempts : queue->settings.max_attempts;
	claim->tid = task->tid;
	claim->fresh = (task->flags & TASK_FLAG_FRESH) != 0;
	claim->synchronous = queue->settings.synchronous_claims || lease->synchronous;
	claim->claimed_at = lease->claimed_at;
	claim->until = lease->until;
	return true;
}

/*
 * The lane whose turn it is.  A first task that should have started by now is
 * put where no claim finds it.  Of many such some are left: the keeper, which
 * is woken, has who waits look again.
 */
static Lane *
next_lane_in_time(Queue *queue, TimestampTz now, int *late)
{
	Lane	   *lane;

	while ((lane = queue_next_lane(queue)) != NULL)
	{
		Task	   *first = lane_first(lane);

		if (first->deadline == 0 || first->deadline > now)
			return lane;
		if (++*late > FANOUT_WORK_CHUNK)
			return NULL;
		lane_take(lane, first);
		first->flags |= TASK_FLAG_CANCELLED;
		insert_cancelled(queue, first);
	}
	return NULL;
}

/*
 * Claim up to "max" tasks for the claimant, in order; their number.  The
 * caller must see to it that each is committed or undone.
 */
int
queue_claim(Queue *queue, const Claimant *claimant, int max, TimestampTz now, Claim *claims)
{
	Database   *database = database_of(queue);
	Lane	   *lane;
	int			count = 0;
	int			late = 0;

	if (queue->state != QUEUE_OPEN || queue->settings.paused || database->state != DATABASE_READY)
		return 0;

	/* a burst that is due is the keeper's to go on with */
	if (!queue_promote_due(queue, now))
		keeper_wake(database);
	lane = next_lane_in_time(queue, now, &late);
	if (lane != NULL)
	{
		Worker	   *worker = worker_enter(queue->db, claimant->worker);
		WorkerUse  *use = worker != NULL ? worker_use_enter(worker, queue_index(queue)) : NULL;
		int			passed = 0;

		while (use != NULL && lane != NULL && count < max && database->next_lease < database->lease_ceiling &&
			   queue_admits_start(queue, now) == 0 &&
			   claim_one(queue, lane_first(lane), database, worker, use, claimant, now, &passed, &claims[count]))
		{
			lane = next_lane_in_time(queue, now, &late);
			count++;
		}
		if (worker != NULL)
			worker_release(worker, use);
	}
	if (queue->wants_refill)
		keeper_wake(database);
	return count;
}

/* The claim's transaction has committed: the lease is its worker's now. */
void
lease_commit(Lease *lease, bool journaled)
{
	Database   *database = database_of(queue_of(lease->task));

	Assert(!lease->committed && lease->task->state == TASK_RUNNING);
	lease->committed = true;
	if (!lease->bound)
	{
		lease->holder = NULL;
		lease->holder_pid = 0;
	}
	lease->task->flags &= ~(TASK_FLAG_UNTOUCHED | TASK_FLAG_FRESH);
	lease->task->deadline = 0;	/* it has started */
	lease->node.key = lease->until;
	order_insert(&database->expiry, &lease->node);
	if (journaled)
		lease_start_journaled(lease);
	else
		lease_journal(lease, LEASE_JOURNAL_CLAIM);
	keeper_wake_by(database, lease->until);
}

/* The claim's transaction has aborted: RUNNING -> READY, in its old place. */
void
lease_undo(Lease *lease)
{
	Task	   *task = lease->task;
	Queue	   *queue = queue_of(task);
	Lease	   *giver = NULL;

	Assert(!lease->committed && task->state == TASK_RUNNING);
	if (lease->permit_of != 0)
		giver = lease_find(queue->db, lease->permit_of);
	lease_undo_start(lease);
	lease_end(lease);

	/* it may be but a savepoint that was rolled back: the lease that is still being ended holds its permit again */
	if (giver != NULL && giver->task != NULL)
		lease_take_back_permit(giver);
	lane_unserve(task->lane);
	task->attempts--;
	queue->dequeued--;
	insert_again(queue, task, 0, 0);
}

/* Rebuild: the task is RUNNING with a lease that the journal knows.  NULL if a pool is used up. */
Lease *
lease_restore(Task *task, int64 number, const char *worker_name, TimestampTz claimed_at, TimestampTz until)
{
	Queue	   *queue = queue_of(task);
	Worker	   *worker = worker_enter(queue->db, worker_name);
	WorkerUse  *use = worker != NULL ? worker_use_enter(worker, queue_index(queue)) : NULL;
	Lease	   *lease = NULL;

	Assert(task->state == TASK_READY);
	if (use != NULL)
		lease = lease_begin(task, number, worker, use, claimed_at, until);
	if (lease == NULL)
	{
		if (worker != NULL)
			worker_release(worker, use);
		return NULL;
	}
	lane_take(task->lane, task);
	lane_take_permit(task->lane);
	queue->waiting--;
	lane_count_backlog(task->lane, -1);
	lease_commit(lease, true);
	return lease;
}

/* Note what the journal is to write of the lease, and let the keeper know. */
void
lease_journal(Lease *lease, uint8 what)
{
	Database   *database = database_find(lease->key.db);

	if (lease->journal == 0)
	{
		dlist_push_tail(&database->journal, &lease->journal_link);
		database->journal_count++;
	}
	lease->journal |= what;

	/* half of the interval to collect, the other half to be written */
	keeper_wake_by(database, GetCurrentTimestamp() + fanout_journal_interval * INT64CONST(500));
}

/* The journal has written what it was asked to. */
void
lease_journaled(Lease *lease)
{
	Database   *database = database_find(lease->key.db);

	Assert(lease->journal != 0);
	dlist_delete(&lease->journal_link);
	database->journal_count--;
	lease->journal = 0;
	if (lease->task == NULL)
		lease_free(lease);
}

/* The lease ends at "until" from now on. */
void
lease_extend(Lease *lease, TimestampTz until)
{
	Database   *database = database_find(lease->key.db);

	lease->until = until;
	if (!lease->committed)
		return;
	order_remove(&database->expiry, &lease->node);
	lease->node.key = until;
	order_insert(&database->expiry, &lease->node);
	lease_journal(lease, LEASE_JOURNAL_EXTEND);
	keeper_wake_by(database, until);
}

/* A transaction writes under the lease, which does not expire until that has ended. */
void
lease_pin(Lease *lease)
{
	lease->pins++;
}

void
lease_unpin(Lease *lease)
{
	Assert(lease->pins > 0);
	lease->pins--;

	/* the keeper passed it by if it was due */
	if (lease->pins == 0 && lease->committed)
		keeper_wake_by(database_find(lease->key.db), lease->until);
}

/* The lease has run out, or its session has gone: RUNNING -> READY, in its old place. */
void
lease_expire(Lease *lease, TimestampTz now)
{
	Task	   *task = lease->task;

	Assert(lease->committed && lease->pins == 0);
	database_of(queue_of(task))->expired++;
	lease->until = now;
	lease_journal(lease, LEASE_JOURNAL_EXPIRE);
	task_requeue(task, 0, true, now);
}

/* The task's worker is to be told to stop; if it waits by now, it is not to start again. */
void
task_request_cancel(Task *task)
{
	Queue	   *queue = queue_of(task);
	bool		waits = task->state == TASK_READY || task->state == TASK_SCHEDULED;

	if (task->state == TASK_READY)
		lane_take(task->lane, task);
	else if (task->state == TASK_SCHEDULED)
	{
		lane_unschedule(task->lane, task);
		queue->timed -= queue->timed > 0;
	}
	task->flags |= TASK_FLAG_CANCELLED;
	if (waits)					/* else it ends, or will be seen when its attempt ends */
		insert_cancelled(queue, task);
}

/* RUNNING -> READY, or SCHEDULED if it is due later than now. */
void
task_requeue(Task *task, TimestampTz due, bool counts, TimestampTz now)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_RUNNING);
	lease_end(task->lease);
	if (!counts)
		task->attempts--;
	insert_again(queue, task, due, now);
}

/*
 * READY, SCHEDULED, or ENQUEUED by the same transaction -> ENDING: nobody may
 * claim it while a transaction ends or changes it.
 */
void
task_withdraw(Task *task, TransactionId ender)
{
	Assert(task->state == TASK_READY || task->state == TASK_SCHEDULED || task->state == TASK_ENQUEUED);
	task->flags &= ~TASK_FLAG_WAS_SCHEDULED;
	if (task->state == TASK_SCHEDULED)
	{
		lane_unschedule(task->lane, task);
		task->flags |= TASK_FLAG_WAS_SCHEDULED;
	}
	else if (task->state == TASK_READY)
		lane_take(task->lane, task);
	else
		task->flags |= TASK_FLAG_NEW | ((task->flags & TASK_FLAG_TIMED) != 0 ? TASK_FLAG_WAS_SCHEDULED : 0);
	task->state = TASK_ENDING;
	task->ender = ender;
	task->note = -1;
}

/*
 * (on disk) -> ENDING.  NULL if the pool is used up.  The task must not be in
 * memory; "pending" if the same transaction has enqueued it.
 */
Task *
task_withdraw_from_disk(Queue *queue, const TaskSeed *seed, TransactionId ender, bool pending)
{
	Lane	   *lane = lane_for(queue, seed->partition);
	Task	   *task = NULL;

	if (lane == NULL && evict_any_lane())
		lane = lane_for(queue, seed->partition);
	if (lane == NULL)
		return NULL;
	lane->tasks++;				/* while room is made, it is not to go away */
	if (fanout_shared->free_tasks > 0 || evict_for(queue) || evict_any())
		task = enter_from_seed(queue, lane, seed);
	lane->tasks--;
	if (task == NULL)
	{
		lane_release(lane);
		return NULL;
	}
	if (!pending || lane->sample_task == 0)
		lane->sample_task = seed->task;
	task->flags |= TASK_FLAG_UNTOUCHED; /* only such are on disk */
	if (seed->timed)
		task->flags |= TASK_FLAG_WAS_SCHEDULED;
	if (pending)
		task->flags |= TASK_FLAG_NEW | TASK_FLAG_UNPLACED;
	task->state = TASK_ENDING;
	task->ender = ender;
	task->note = -1;
	return task;
}

/* ENDING -> (gone): it had ended before it was withdrawn from disk. */
void
task_forget_withdrawn(Task *task)
{
	Assert(task->state == TASK_ENDING);
	task_drop(task);
}

/*
 * ENDING -> (on disk): its row was changed between being read and its
 * withdrawal from disk, and this is where the task is.  A refill may have
 * passed it by, as it was in memory.
 */
void
task_put_back_on_disk(Task *task, Queue *queue, const TaskTerms *terms)
{
	Assert(task->state == TASK_ENDING);
	database_note_deadline(database_of(queue), terms->deadline);
	leave_on_disk(queue, terms->partition, terms->rank, terms->timed, terms->due, task->key.task);
	task_drop(task);
}

/* ENDING -> ENQUEUED, or (on disk) if it had no place: its enqueuer, the same transaction, goes on. */
static void
restore_enqueued(Task *task)
{
	if ((task->flags & TASK_FLAG_UNPLACED) != 0)
	{
		task_drop(task);		/* at commit, queue_leave_on_disk() will be told */
		return;
	}
	task->flags &= ~(TASK_FLAG_NEW | TASK_FLAG_WAS_SCHEDULED);
	task->state = TASK_ENQUEUED;
}

/* ENDING -> what it was before: the transaction that was to end or change it, or a savepoint of that, has aborted. */
void
task_restore(Task *task)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_ENDING);
	if (task->flags & TASK_FLAG_NEW)
		restore_enqueued(task);
	else if (task->flags & TASK_FLAG_CANCELLED)
	{
		/* somebody else has cancelled it meanwhile */
		if (task->flags & TASK_FLAG_WAS_SCHEDULED)
			queue->timed -= queue->timed > 0;
		insert_cancelled(queue, task);
	}
	else if (task->flags & TASK_FLAG_WAS_SCHEDULED)
		insert_scheduled(queue, task, task->node.key);
	else
		insert_ready(task);
}

/* What a withdrawn task was before. */
TaskTerms
task_terms(const Task *task)
{
	TaskTerms	terms;

	Assert(task->state == TASK_ENDING);
	terms.partition = task->lane->key.partition;
	terms.group = 0;
	terms.rank = task->rank;
	terms.priority = task->priority;
	terms.timed = (task->flags & TASK_FLAG_TIMED) != 0;
	terms.due = (task->flags & TASK_FLAG_WAS_SCHEDULED) != 0 ? task->node.key : 0;
	terms.deadline = task->deadline;
	terms.cost = task->cost;
	terms.max_attempts = task->max_attempts;
	terms.tid = task->tid;
	return terms;
}

/* The task, which stands in no set, belongs to the lane from now on. */
static void
enter_lane(Task *task, Lane *lane)
{
	Lane	   *old = task->lane;

	if (old == lane)
		return;
	task->lane = lane;
	task->queue = lane->key.queue;
	lane->tasks++;
	lane->sample_task = task->key.task;
	if (old->sample_task == task->key.task)
		old->sample_task = old->ready.set.first != NULL ? old->ready.set.first->id : 0;
	old->tasks--;
	lane_release(old);
}

/*
 * Is there a place in memory for a changed task that has an entry?  It must
 * have one if its row alone does not say what it is, and while a refill reads
 * that may see the row as it was.
 */
static bool
stays_in_memory(Task *task, Queue *queue, bool scheduled)
{
	Window	   *window = scheduled ? &queue->scheduled : &task->lane->ready;
	int64		key = scheduled ? task->node.key : task->rank;

	if ((task->flags & TASK_FLAG_UNTOUCHED) == 0 || task->kept_for != 0 ||
		(!scheduled && (task->flags & TASK_FLAG_TIMED) != 0))
		return true;
	return !window_is_beyond(window, key, task->key.task) &&
		(queue_is_within_share(queue) || window_evict_after(window, key, task->key.task));
}

/*
 * ENDING -> READY, SCHEDULED or (on disk): the transaction that has changed
 * the task has committed.  A refill that began before may have a snapshot in
 * which it has not: the task is in memory then until that refill has ended,
 * whichever queue or order it reads, so that it does not load what it sees.
 */
void
task_change(Task *task, Queue *target, const TaskTerms *terms, TimestampTz now)
{
	Queue	   *queue = queue_of(task);
	Database   *database = database_of(queue);
	bool		scheduled = terms->due > now;
	Lane	   *lane = lane_for(target, terms->partition);

	Assert(task->state == TASK_ENDING);
	database->changes++;
	if (lane == NULL && evict_any_lane())
		lane = lane_for(target, terms->partition);	/* memory was built anew, and it is not kept any more */
	if (lane == NULL)
	{
		lane_count_backlog(task->lane, -1);
		task_change_on_disk(task->key.task, queue, target, terms);
		task_drop(task);
		return;
	}
	queue->waiting--;
	lane_count_backlog(task->lane, -1);
	if ((task->flags & TASK_FLAG_WAS_SCHEDULED) != 0 && queue->timed > 0)
		queue->timed--;
	lane_await_retry_no_more(task);
	enter_lane(task, lane);
	lane_join_group(lane, terms->group, task->key.task);
	lane_count_backlog(lane, 1);
	task->flags &= ~(TASK_FLAG_NEW | TASK_FLAG_UNPLACED | TASK_FLAG_TIMED);
	task->flags |= terms->timed ? TASK_FLAG_TIMED : 0;
	task->rank = terms->rank;
	task->priority = terms->priority;
	task->deadline = terms->deadline;
	task->cost = terms->cost;
	task->max_attempts = terms->max_attempts;
	task->node.key = scheduled ? terms->due : terms->rank;
	task->tid = terms->tid;
	task->kept_for = (database->refill_serial & 1) != 0 ? database->refill_serial : 0;

	target->waiting++;
	if (task->flags & TASK_FLAG_CANCELLED)
		insert_cancelled(target, task);
	else if (stays_in_memory(task, target, scheduled))
	{
		if (scheduled)
		{
			target->timed++;
			insert_scheduled(target, task, terms->due);
		}
		else
			insert_ready(task);
	}
	else
	{
		target->timed += scheduled;
		note_deadline(task);
		leave_on_disk(target, terms->partition, terms->rank, scheduled, terms->due, task->key.task);
		task_drop(task);
	}
}

/* ENDING -> (gone): the queue that it was to move to was dropped by the same transaction. */
void
task_forget_changed(Task *task)
{
	Queue	   *queue = queue_of(task);

	Assert(task->state == TASK_ENDING);
	queue->waiting--;
	lane_count_backlog(task->lane, -1);
	if ((task->flags & TASK_FLAG_WAS_SCHEDULED) != 0 && queue->timed > 0)
		queue->timed--;
	task_drop(task);
}

/* The same for a task that is not in memory, as that was built anew meanwhile, with the row as it was. */
void
task_change_on_disk(int64 task, Queue *from, Queue *target, const TaskTerms *terms)
{
	database_of(target)->changes++;
	if (from != NULL)
	{
		from->waiting--;
		target->waiting++;
	}
	database_note_deadline(database_of(target), terms->deadline);
	leave_on_disk(target, terms->partition, terms->rank, terms->timed, terms->due, task);
}

/* The task has its outcome although nobody withdrew it: memory was built anew in between. */
void
task_end_unforeseen(Task *task, Outcome outcome)
{
	task_withdraw(task, InvalidTransactionId);
	task_end(task, outcome);
}

/* Have the keeper look whether the batch has ended by its join. */
static void
note_dirty_join(Database *database, int64 batch)
{
	for (int i = 0; i < database->dirty_join_count; i++)
	{
		if (database->dirty_joins[i] == batch)
			return;
	}
	if (database->dirty_join_count < FANOUT_DIRTY_JOINS)
		database->dirty_joins[database->dirty_join_count++] = batch;
	else
		database->dirty_join_overflow = true;
	keeper_wake(database);
}

/*
 * RUNNING or ENDING -> (gone): the task has its outcome.  While a refill
 * reads that may come upon it, an ENDED tombstone stays: the refill's snapshot
 * may not show the outcome yet.
 */
void
task_end(Task *task, Outcome outcome)
{
	Queue	   *queue = queue_of(task);
	Database   *database = database_of(queue);

	Assert(task->state == TASK_RUNNING || task->state == TASK_ENDING);
	if (task->state == TASK_RUNNING)
		lease_end(task->lease);
	else
	{
		lane_await_retry_no_more(task);
		queue->waiting--;
		lane_count_backlog(task->lane, -1);
		if ((task->flags & TASK_FLAG_WAS_SCHEDULED) && queue->timed > 0)
			queue->timed--;
	}

	if (outcome == OUTCOME_SUCCEEDED)
		queue->succeeded++;
	else if (outcome == OUTCOME_FAILED)
		queue->failed++;
	else
		queue->cancelled++;

	results_note_end(database, task);
	if (task->flags & TASK_FLAG_EARLY_JOIN)
		note_dirty_join(database, task->batch);

	if (queue->refilling > 0 || task_is_kept(task, database))
	{
		Lane	   *lane = task->lane;

		task->state = TASK_ENDED;
		task->lane = NULL;
		dlist_push_tail(&database->ended, &task->link);
		lane->tasks--;
		lane_release(lane);
	}
	else
		task_drop(task);
}

/* ENDED -> (gone), for all of the database: no refill is reading. */
void
database_forget_ended(Database *database)
{
	while (!dlist_is_empty(&database->ended))
		task_free(dlist_container(Task, link, dlist_pop_head_node(&database->ended)));
}

/* OPEN -> CLOSED: a transaction drops or purges the queue.  False if another one does already. */
bool
queue_close(Queue *queue, bool dropping, TransactionId closer)
{
	if (queue->state == QUEUE_CLOSED)
		return false;
	queue->was_new = queue->state == QUEUE_NEW;
	queue->state = QUEUE_CLOSED;
	queue->dropping = dropping;
	queue->closer = closer;
	queue->epoch++;
	return true;
}

/* So many of its waiting tasks that are on disk have been cancelled: all there are. */
void
queue_purged_on_disk(Queue *queue, int64 count)
{
	int64		timed = Max(queue->timed - (int64) queue->scheduled.set.count, 0);

	queue->waiting -= count;
	queue->cancelled += count;
	queue->timed -= Min(timed, count);
	if (count > 0)
		queue_recount_backlogs(queue);
}

/* CLOSED -> what it was before. */
void
queue_reopen(Queue *queue)
{
	if (queue->state != QUEUE_CLOSED)
		return;
	queue->state = queue->was_new ? QUEUE_NEW : QUEUE_OPEN;
	queue->wants_refill = true;
	keeper_wake(database_of(queue));
	queue_wake(queue);
}

/* Free a task of the queue that is being removed, and its lease with it. */
static void
forget_if_of_queue(Task *task, void *arg)
{
	Queue	   *queue = arg;

	if (task->queue != queue_index(queue))
		return;
	if (task->state == TASK_RUNNING)
		lease_end(task->lease);
	else if (task->state == TASK_ENDED)
		dlist_delete(&task->link);
	task_free(task);			/* the lanes go as a whole */
}

/*
 * The queue has been dropped, or its creation rolled back: nothing of it
 * stays in memory.  Who waits for it is woken and will find it gone.
 */
void
queue_remove(Queue *queue)
{
	task_iterate(forget_if_of_queue, queue);

	/* a refill of another queue may see tasks that have moved here from there */
	database_of(queue)->refill_void = true;
	queue_clear_lanes(queue);
	lanes_freed();
	stop_all_waiting_for(queue);
	results_wake_all(database_of(queue));
	queue->state = QUEUE_FREE;
}
