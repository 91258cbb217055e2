/*
 * pending.c
 *		Notes of what is to take effect in memory when the transaction ends.
 *
 * Every function that changes something leaves one here; commit_hooks.c
 * carries them out.  What a transaction has noted decides as well what it may
 * do further: it can change what it has enqueued, and pass on the permits that
 * it gives back.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "lane.h"
#include "lane_limits.h"
#include "pending.h"
#include "room.h"

Pending    *pending = NULL;
int			pending_used = 0;
static int	pending_room = 0;
static int	pending_alters = 0; /* notes of settings of queues */

/* The ids of enqueued tasks that there are notes of are among these. */
static int64 enqueued_first = PG_INT64_MAX;
static int64 enqueued_last = 0;

#define PENDING_KEEP	1024	/* room that is kept from one transaction to the next */

void
pending_prepare(int count)
{
	int64		wanted = (int64) pending_used + count;

	if (wanted <= pending_room)
		return;

	wanted = Max(wanted, (int64) pending_room * 2);
	wanted = Max(wanted, 16);
	if (pending == NULL)
		pending = MemoryContextAllocHuge(TopMemoryContext, wanted * sizeof(Pending));
	else
		pending = repalloc_huge(pending, wanted * sizeof(Pending));
	pending_room = wanted;
}

static Pending *
note(PendingKind kind, Queue *queue)
{
	Pending    *op = &pending[pending_used];

	Assert(pending_used < pending_room);
	op->kind = kind;
	op->level = GetCurrentTransactionNestLevel();
	op->queue = queue != NULL ? queue - fanout_queues : -1;
	op->queue_id = queue != NULL ? queue->id : 0;
	op->generation = queue != NULL ? queue->generation : 0;
	pending_used++;
	return op;
}

void
pending_enqueue(Queue *queue, const TaskSeed *first, int64 count, int64 reserved, TaskPlace *places,
				const int64 *partitions)
{
	Pending    *op = note(PENDING_ENQUEUE, queue);

	op->u.enqueue.first = *first;
	op->u.enqueue.count = count;
	op->u.enqueue.reserved = reserved;
	op->u.enqueue.counted = 0;
	op->u.enqueue.places = places;
	op->u.enqueue.partitions = partitions;
	enqueued_first = Min(enqueued_first, first->task);
	enqueued_last = Max(enqueued_last, first->task + count - 1);
}

static void
note_lease(PendingKind kind, Lease *entry, int64 lease, Outcome outcome, TimestampTz due, bool flag)
{
	Pending    *op = note(kind, NULL);

	op->u.lease.entry = entry;
	op->u.lease.number = lease;
	op->u.lease.outcome = outcome;
	op->u.lease.due = due;
	op->u.lease.flag = flag;
}

void
pending_claim(Lease *entry, int64 lease, bool journaled)
{
	note_lease(PENDING_CLAIM, entry, lease, OUTCOME_SUCCEEDED, 0, journaled);
}

void
pending_end(Lease *entry, int64 lease, int64 task, Outcome outcome)
{
	note_lease(PENDING_END, entry, lease, outcome, 0, false);
	pending[pending_used - 1].u.lease.task = task;
}

void
pending_requeue(Lease *entry, int64 lease, TimestampTz due, bool counts)
{
	note_lease(PENDING_REQUEUE, entry, lease, OUTCOME_SUCCEEDED, due, counts);
}

void
pending_pin(Lease *entry, int64 lease)
{
	note_lease(PENDING_PIN, entry, lease, OUTCOME_SUCCEEDED, 0, false);
}

/*
 * Notes about one task that was withdrawn are chained: the last one tells what
 * becomes of it at commit, and when the first one is undone, it is what it was
 * before.  A task that is ENDING knows the last note of its ender.
 */
static Pending *
note_withdrawn(PendingKind kind, Task *task, Queue *queue, bool again)
{
	Pending    *op = note(kind, queue);

	memset(&op->u.task, 0, sizeof(op->u.task));
	op->u.task.task = task->node.id;
	op->u.task.previous = again ? task->note : -1;
	if (again)
		pending[task->note].u.task.superseded = true;
	task->note = op - pending;
	return op;
}

/* Has this transaction withdrawn the task before, and changed it then? */
bool
pending_is_change(const Task *task)
{
	return task->state == TASK_ENDING && TransactionIdEquals(task->ender, GetTopTransactionIdIfAny()) &&
		task->note >= 0 && task->note < pending_used &&
		pending[task->note].kind == PENDING_CHANGE && pending[task->note].u.task.task == task->node.id;
}

Queue *
pending_queue(const Task *task)
{
	return &fanout_queues[pending[task->note].queue];
}

TaskTerms
pending_terms(const Task *task)
{
	return pending[task->note].u.task.terms;
}

void
pending_withdraw(Task *task)
{
	(void) note_withdrawn(PENDING_WITHDRAW, task, NULL, pending_is_change(task));
}

void
pending_change(Task *task)
{
	bool		again = pending_is_change(task);
	Pending    *before = again ? &pending[task->note] : NULL;
	Pending    *op = note_withdrawn(PENDING_CHANGE, task, again ? pending_queue(task) : queue_of_lane(lane_of(task)), again);

	op->u.task.terms = again ? before->u.task.terms : task_terms(task);
	op->u.task.from = task->queue;
	op->u.task.from_id = fanout_queues[task->queue].id;
}

/* Neither is the task in that lane, nor has this transaction moved it there before. */
bool
pending_change_enters(const Task *task, const Queue *target, int64 partition)
{
	const Pending *op = &pending[task->note];
	const Pending *before = op->u.task.previous >= 0 ? &pending[op->u.task.previous] : NULL;

	if (target == queue_of_lane(lane_of(task)) && partition == lane_of(task)->partition)
		return false;
	return before == NULL || before->queue != target - fanout_queues || before->u.task.terms.partition != partition;
}

bool
pending_change_reserve(Task *task, Queue *target, int64 partition)
{
	Pending    *op = &pending[task->note];
	Pending    *before = op->u.task.previous >= 0 ? &pending[op->u.task.previous] : NULL;
	bool		enters = pending_change_enters(task, target, partition);

	if (target != queue_of_lane(lane_of(task)) || partition != lane_of(task)->partition)
	{
		if (!lane_keep(target, partition) && !(evict_any_lane() && lane_keep(target, partition)))
			return false;
		op->u.task.lane_kept = true;
		op->u.task.in_backlog = enters;
		if (enters)
			queue_count_backlog(target, partition, 1);
	}
	op->queue = target - fanout_queues;
	op->queue_id = target->id;
	op->generation = target->generation;
	op->u.task.terms.partition = partition;
	if (target != queue_of_lane(lane_of(task)) && (before == NULL || before->queue != op->queue))
	{
		target->pending++;
		op->u.task.counted = true;
	}
	return true;
}

void
pending_change_set(const Task *task, const TaskTerms *terms)
{
	pending[task->note].u.task.terms = *terms;
}

void
pending_cancel_request(int64 task)
{
	note(PENDING_CANCEL_REQUEST, NULL)->u.task.task = task;
}

void
pending_forget_withdrawal(void)
{
	Assert(pending_used > 0 && (pending[pending_used - 1].kind == PENDING_WITHDRAW || pending[pending_used - 1].kind == PENDING_CHANGE));
	pending_used--;
}

/*
 * Ids follow on, so most tasks are told by the ids that this transaction has
 * been given.  Among these the notes are looked through: that is for tasks
 * without an entry, as an entry knows who enqueues it.
 */
bool
pending_enqueues(int64 task)
{
	if (task < enqueued_first || task > enqueued_last)
		return false;
	for (int i = pending_used - 1; i >= 0; i--)
	{
		const Pending *op = &pending[i];

		if (op->kind == PENDING_ENQUEUE && task >= op->u.enqueue.first.task &&
			task < op->u.enqueue.first.task + op->u.enqueue.count)
			return true;
	}
	return false;
}

bool
pending_range(int64 *first, int64 *last)
{
	*first = enqueued_first;
	*last = enqueued_last;
	return enqueued_first <= enqueued_last;
}

bool
pending_claims_any(void)
{
	for (int i = pending_used - 1; i >= 0; i--)
	{
		if (pending[i].kind == PENDING_CLAIM)
			return true;
	}
	return false;
}

int64
pending_leave(const Queue *queue)
{
	int32		index = queue - fanout_queues;
	int64		count = 0;

	for (int i = 0; i < pending_used; i++)
	{
		const Pending *op = &pending[i];

		if (op->kind == PENDING_CHANGE && !op->u.task.superseded &&
			op->u.task.from == index && op->u.task.from_id == queue->id && op->queue != index)
			count++;
	}
	return count;
}

void
pending_batch_change(int64 batch)
{
	note(PENDING_BATCH_CHANGE, NULL)->u.batch = batch;
}

void
pending_batch_seal(int64 batch)
{
	note(PENDING_BATCH_SEAL, NULL)->u.batch = batch;
}

void
pending_queue_create(Queue *queue)
{
	note(PENDING_QUEUE_CREATE, queue);
}

void
pending_queue_alter(Queue *queue, const QueueSettings *settings)
{
	note(PENDING_QUEUE_ALTER, queue)->u.settings = *settings;
	pending_alters++;
}

/* The settings that the queue will have when this transaction commits; under the lock. */
const QueueSettings *
pending_settings(Queue *queue)
{
	for (int i = pending_used - 1; i >= 0 && pending_alters > 0; i--)
	{
		if (pending[i].kind == PENDING_QUEUE_ALTER && queue_of_note(&pending[i]) == queue)
			return &pending[i].u.settings;
	}
	return &queue->settings;
}

/* The lane is kept in memory for it: lane_keep(). */
void
pending_lane_set(Queue *queue, int64 partition, const LaneSettings *settings)
{
	Pending    *op = note(PENDING_LANE_SET, queue);

	op->u.lane.partition = partition;
	op->u.lane.settings = *settings;
}

void
pending_queue_drop(Queue *queue)
{
	note(PENDING_QUEUE_DROP, queue);
}

void
pending_queue_close(Queue *queue)
{
	note(PENDING_QUEUE_CLOSE, queue);
}

void
pending_queue_purge(Queue *queue, int64 on_disk)
{
	note(PENDING_QUEUE_PURGE, queue)->u.on_disk = on_disk;
}

/* The database wants a keeper, or to be looked at by the one it has. */
void
pending_register(Oid db)
{
	note(PENDING_REGISTER, NULL)->u.db = db;
}

void
pending_enqueue_reserved(int64 reserved)
{
	Assert(pending_used > 0 && pending[pending_used - 1].kind == PENDING_ENQUEUE);
	pending[pending_used - 1].u.enqueue.reserved = reserved;
}

void
pending_enqueue_counted(int64 counted)
{
	Assert(pending_used > 0 && pending[pending_used - 1].kind == PENDING_ENQUEUE);
	pending[pending_used - 1].u.enqueue.counted = counted;
}

void
pending_reload(void)
{
	note(PENDING_RELOAD, NULL);
}

void
pending_segments(const SegmentMap *map)
{
	note(PENDING_SEGMENTS, NULL)->u.segments = *map;
}

int
pending_notes(void)
{
	return pending_used;
}

/* Collect the leases of the queue with such a note; their number. */
static int
collect_ending(Queue *queue, const char *worker, PendingKind kind, Lease **leases)
{
	int			count = 0;

	for (int i = 0; i < pending_used; i++)
	{
		Lease	   *lease;

		if (pending[i].kind != kind)
			continue;
		lease = lease_of_note(&pending[i]);
		if (lease != NULL && !lease->passed_on &&
			task_of(lease)->queue == queue - fanout_queues &&
			(queue->settings.worker_concurrency == 0 || strcmp(worker_of(lease)->key.name, worker) == 0))
			leases[count++] = lease;
	}
	return count;
}

void
pending_ends(Queue *queue, Claimant *claimant)
{
	claimant->ended_count = collect_ending(queue, claimant->worker, PENDING_END, claimant->ending);
	claimant->ending_count = claimant->ended_count +
		collect_ending(queue, claimant->worker, PENDING_REQUEUE, &claimant->ending[claimant->ended_count]);
}

Pending *
pending_pop(void)
{
	Pending    *op = &pending[--pending_used];

	if (op->kind == PENDING_QUEUE_ALTER)
		pending_alters--;
	return op;
}

void
pending_forget_all(void)
{
	pending_used = 0;
	pending_alters = 0;
	enqueued_first = PG_INT64_MAX;
	enqueued_last = 0;
	if (pending_room > PENDING_KEEP)
	{
		pfree(pending);
		pending = NULL;
		pending_room = 0;
	}
}
