/*
 * dispatch_leases.c
 *		Claims and the permits that they take, and the life of a lease.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/timestamp.h"

#include "dispatch_internal.h"
#include "lane.h"
#include "lane_limits.h"
#include "starts.h"
#include "wait.h"

/* Does a limit leave the worker (NULL: any) a permit, if so many more were given back? */
static bool
permits_left(const Queue *queue, const WorkerUse *use, int more)
{
	const QueueSettings *settings = &queue->settings;

	return (settings->concurrency == 0 || queue->running - more < settings->concurrency) &&
		(settings->worker_concurrency == 0 || use == NULL ||
		 use->running - more < settings->worker_concurrency);
}

/* How many of the leases that a transaction ends lend it the permits of their lanes: each claim looks at them. */
#define LENDERS_MOST	64

/*
 * A lane at its limit is in no set, and nobody would find it.  So for as long
 * as the claimant looks, with the lock held, the leases that its transaction
 * ends are without their lane's permit.  Only those that end their tasks: a
 * task that has another attempt goes back to its place, which its lane's next
 * one is not to take meanwhile.
 */
static void
lend_lane_permits(const Claimant *claimant)
{
	int			count = Min(claimant->ended_count, LENDERS_MOST);

	for (int i = 0; i < count; i++)
	{
		Lane	   *lane = lane_of(task_of(claimant->ending[i]));

		claimant->ending[i]->lane_lent = lane_limit(lane) > 0 && lane->running >= lane_limit(lane);
	}
	for (int i = 0; i < count; i++)
	{
		if (claimant->ending[i]->lane_lent)
			lane_give_permit(lane_of(task_of(claimant->ending[i])));
	}
}

static void
take_back_lane_permits(const Claimant *claimant)
{
	for (int i = 0; i < Min(claimant->ended_count, LENDERS_MOST); i++)
	{
		Lease	   *lease = claimant->ending[i];

		if (lease->lane_lent && !lease->lane_passed_on)
			lane_take_permit(lane_of(task_of(lease)));
		lease->lane_lent = false;
	}
}

/* One of the leases that lend the lane's permit, or NULL. */
static Lease *
find_lender(const Claimant *claimant, const Lane *lane)
{
	for (int i = 0; i < Min(claimant->ended_count, LENDERS_MOST); i++)
	{
		Lease	   *lease = claimant->ending[i];

		if (lease->lane_lent && !lease->passed_on && lane_of(task_of(lease)) == lane)
			return lease;
	}
	return NULL;
}

/* One of the leases that have not passed their permits on, or NULL; "next" is where to look first. */
static Lease *
find_ending(const Claimant *claimant, int *next)
{
	while (*next < claimant->ending_count && claimant->ending[*next]->passed_on)
		(*next)++;
	return *next < claimant->ending_count ? claimant->ending[*next] : NULL;
}

/*
 * Take a permit for the claimant; false if there is none.  In a transaction
 * that ends a task and claims another one, the permits of the first go to the
 * second, where it could not start without: that of the queue and the worker,
 * and that of the lane if both are of it.  At no time are there more than the
 * limit, and if the transaction aborts, the claim is undone before the end is,
 * so the permits go back.
 */
static bool
find_permit(Queue *queue, Lane *lane, WorkerUse *use, const Claimant *claimant, int *next, int64 *permit_of)
{
	Lease	   *lease = lane_limit(lane) > 0 ? find_lender(claimant, lane) : NULL;
	bool		lent = lease != NULL;

	*permit_of = 0;
	if (!lent)
	{
		if (permits_left(queue, use, 0))
			return true;
		lease = find_ending(claimant, next);
	}
	if (lease == NULL || !permits_left(queue, use, 1))
		return false;

	lease->passed_on = true;
	lease->lane_passed_on = lent;
	if (lease->lane_lent && !lent)
	{
		/* a claim of its own lane would have to pass the others on as well */
		lease->lane_lent = false;
		lane_take_permit(lane_of(task_of(lease)));
	}
	*permit_of = lease->node.id;
	queue->running--;
	use_of(lease)->running--;
	return true;
}

/* The transaction that was to end the lease has aborted. */
void
lease_take_back_permit(Lease *lease)
{
	if (!lease->passed_on)
		return;
	if (lease->lane_passed_on)
		lane_take_permit(lane_of(task_of(lease)));
	lease->passed_on = lease->lane_passed_on = false;
	queue_of(task_of(lease))->running++;
	use_of(lease)->running++;
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
	if (worker->lease_count == 0 && worker->ended_count == 0)
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
	lease->task = link_to(task);
	lease->task_id = task->node.id;
	lease->worker = link_to(worker);
	lease->use = link_to(use);
	lease->claimed_at = claimed_at;
	lease->node.key = until;
	short_list_push_tail(&worker->leases, &lease->worker_link);
	worker->lease_count++;
	use->leases++;
	use->running++;
	queue->running++;

	task->state = TASK_RUNNING;
	task->ender = InvalidTransactionId;
	task->lease = link_to(lease);
	task->attempts++;
	lease->attempt = task->attempts;
	return lease;
}

/* The journal has nothing more to write of it. */
static void
leave_journal(Lease *lease)
{
	Database   *database = database_find(lease->db);

	short_list_delete(&database->journal, &lease->journal_link);
	database->journal_count--;
	lease->journal = 0;
}

/* Take the lease off its task and give its permits back; it stays only if the journal needs it. */
void
lease_end(Lease *lease)
{
	Task	   *task = task_of(lease);
	Queue	   *queue = queue_of(task);
	Worker	   *worker = worker_of(lease);
	WorkerUse  *use = use_of(lease);

	lease_start_journaled(lease);
	if (lease->committed)
		order_remove(&database_of(queue)->expiry, &lease->node);
	short_list_delete(&worker->leases, &lease->worker_link);
	worker->lease_count--;
	use->leases--;
	if (!lease->passed_on)
	{
		use->running--;
		queue->running--;
	}
	if (!lease->lane_passed_on)
		lane_give_permit(lane_of(task));

	task->lease = 0;
	lease->task = 0;
	lease->use = 0;

	/* a claim or an extension that has ended need not be journaled: its end is on disk */
	if ((lease->journal & LEASE_JOURNAL_EXPIRE) != 0)
		worker->ended_count++;
	else
	{
		if (lease->journal != 0)
			leave_journal(lease);
		lease_free(lease);
	}
	worker_release(worker, use);
}

/*
 * READY -> RUNNING, with a lease that is not committed yet; false if there is
 * no permit or no room for a lease.
 */
static bool
claim_one(Queue *queue, Task *task, Database *database, Worker *worker, WorkerUse *use, const Claimant *claimant,
		  TimestampTz now, int *next, Claim *claim)
{
	TimestampTz until = now + (claimant->lease > 0 ? claimant->lease : queue->settings.lease);
	int64		permit_of;
	Lease	   *lease;

	Assert(task->state == TASK_READY);
	if (fanout_shared->free_leases == 0 || !find_permit(queue, lane_of(task), use, claimant, next, &permit_of))
		return false;
	lease = lease_begin(task, database->next_lease, worker, use, now, until);
	if (lease == NULL)
		return false;
	database->next_lease++;
	lease_note_start(lease);
	lease->holder = backend_number();
	lease->bound = claimant->bound;
	lease->permit_of = permit_of;

	lane_serve(lane_of(task), task);
	queue->waiting--;
	lane_count_backlog(lane_of(task), -1);
	queue->dequeued++;
	audit_claim(lease);

	claim->entry = lease;
	claim->lease = lease->node.id;
	claim->task = task->node.id;
	claim->batch = task->batch;
	claim->queue_id = queue->id;
	claim->priority = task->priority;
	claim->attempt = task->attempts;
	claim->max_attempts = task->max_attempts > 0 ? task->max_attempts : queue->settings.max_attempts;
	claim->tid = task->tid;
	claim->fresh = (task->flags & TASK_FLAG_FRESH) != 0;
	claim->synchronous = queue->settings.synchronous_claims || lease->synchronous;
	claim->claimed_at = lease->claimed_at;
	claim->until = lease->node.key;
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
	lend_lane_permits(claimant);
	lane = next_lane_in_time(queue, now, &late);
	if (lane != NULL)
	{
		Worker	   *worker = worker_enter(queue->db, claimant->worker);
		WorkerUse  *use = worker != NULL ? worker_use_enter(worker, queue_index(queue)) : NULL;
		int			next = 0;

		while (use != NULL && lane != NULL && count < max && database->next_lease < database->lease_ceiling &&
			   queue_admits_start(queue, now) == 0 &&
			   claim_one(queue, lane_first(lane), database, worker, use, claimant, now, &next, &claims[count]))
		{
			lane = next_lane_in_time(queue, now, &late);
			count++;
		}
		if (worker != NULL)
			worker_release(worker, use);
	}
	take_back_lane_permits(claimant);
	if (queue->wants_refill)
		keeper_wake(database);
	return count;
}

/* The claim's transaction has committed: the lease is its worker's now. */
void
lease_commit(Lease *lease, bool journaled)
{
	Database   *database = database_of(queue_of(task_of(lease)));

	Assert(!lease->committed && task_of(lease)->state == TASK_RUNNING);
	lease->committed = true;
	if (!lease->bound)
		lease->holder = 0;
	task_of(lease)->flags &= ~(TASK_FLAG_UNTOUCHED | TASK_FLAG_FRESH);
	task_of(lease)->deadline = 0;	/* it has started */
	order_insert(&database->expiry, &lease->node);
	if (journaled)
		lease_start_journaled(lease);
	else
		lease_journal(lease, LEASE_JOURNAL_CLAIM);
	keeper_wake_by(database, lease->node.key);
}

/* The claim's transaction has aborted: RUNNING -> READY, in its old place. */
void
lease_undo(Lease *lease)
{
	Task	   *task = task_of(lease);
	Queue	   *queue = queue_of(task);
	Lease	   *giver = NULL;

	Assert(!lease->committed && task->state == TASK_RUNNING);
	if (lease->permit_of != 0)
		giver = lease_find(queue->db, lease->permit_of);
	lease_undo_start(lease);
	lease_end(lease);

	/* it may be but a savepoint that was rolled back: the lease that is still being ended holds its permit again */
	if (giver != NULL && giver->task != 0)
		lease_take_back_permit(giver);
	lane_unserve(lane_of(task));
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
	lane_take(lane_of(task), task);
	lane_take_permit(lane_of(task));
	queue->waiting--;
	lane_count_backlog(lane_of(task), -1);
	lease_commit(lease, true);
	return lease;
}

/* Note what the journal is to write of the lease, and let the keeper know. */
void
lease_journal(Lease *lease, uint8 what)
{
	Database   *database = database_find(lease->db);

	if (lease->journal == 0)
	{
		short_list_push_tail(&database->journal, &lease->journal_link);
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
	Assert(lease->journal != 0);
	leave_journal(lease);
	if (lease->task == 0)
	{
		Worker	   *worker = worker_of(lease);

		worker->ended_count--;
		worker_release(worker, NULL);
		lease_free(lease);
	}
}

/* The lease ends at "until" from now on. */
void
lease_extend(Lease *lease, TimestampTz until)
{
	Database   *database = database_find(lease->db);

	if (!lease->committed)
	{
		lease->node.key = until;
		return;
	}
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
		keeper_wake_by(database_find(lease->db), lease->node.key);
}

/* The lease has run out, or its session has gone: RUNNING -> READY, in its old place. */
void
lease_expire(Lease *lease, TimestampTz now)
{
	Task	   *task = task_of(lease);

	Assert(lease->committed && lease->pins == 0);
	database_of(queue_of(task))->expired++;
	lease_journal(lease, LEASE_JOURNAL_EXPIRE);
	task_requeue(task, 0, true, now);
	lease->node.key = now;		/* for the journal: it stands in no set any more */
}
