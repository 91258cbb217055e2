/*
 * wait.c
 *		Waiting for work and for results, by latch.
 *
 * A backend that waits for work stands in the list of each queue it waits
 * for.  Whatever may let a task start (a commit, a permit that is given back,
 * a due time, a raised limit, a resume, a refill) ends in queue_wake(), which
 * keeps this invariant: as long as a queue has a task that may start and a
 * waiter whose worker may take it, at least that many waiters are awake and on
 * their way, or workers that have just given back a permit are expected to come
 * for it (return.c).  A waiter that was woken first
 * reports that it has looked (stop_waiting_for_queues()), then tries; if it
 * gets nothing, or leaves because it was cancelled, queue_wake() runs again,
 * so that a wake-up is passed on and never lost.
 *
 * A backend that waits for results says for which tasks and how many ends of
 * these it needs to see; it then reads the tables.  Ends that it counts twice
 * (in memory and in the tables) wake it too early, never too late.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "portability/instr_time.h"
#include "storage/latch.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "starts.h"
#include "wait.h"
#include "window.h"

/* Who has waited for so long is woken before who came later. */
#define PATIENCE	(100 * INT64CONST(1000))

static Waiter *
waiter_of_link(dlist_node *node)
{
	return dlist_container(WaitLink, node, node)->waiter;
}

/* Take the waiter out of the lists of all queues that it waits for. */
static void
unlink_waiter(Waiter *waiter)
{
	for (int i = 0; i < waiter->link_count; i++)
	{
		WaitLink   *link = &waiter->links[i];

		dlist_delete(&link->node);
		fanout_queues[link->queue].waiter_count--;
	}
	waiter->link_count = 0;
}

/* Wake the waiter for a task of the queue, if its worker may take one. */
static void
wake_for_queue(Queue *queue, Waiter *waiter)
{
	if (!queue_admits(queue, waiter->worker))
		return;
	unlink_waiter(waiter);
	waiter->woken_by = queue;
	queue->woken++;
	database_of(queue)->wakeups++;
	set_latch_after_unlock(waiter->proc);
}

/*
 * Wake as many waiters as the queue has tasks that may start.
 *
 * Who has waited for PATIENCE or longer is woken in the order of coming, so
 * that where tasks are rare or long all workers have their share of them.  Else
 * it is who came last: of many workers with little to do between them, a few
 * go on and on, with all that they need in the caches, and the others sleep.
 * These are not woken for a permit whose last worker is about to come back.
 */
void
queue_wake(Queue *queue)
{
	int64		startable;
	int64		permits = PG_INT64_MAX;
	int64		patient;
	dlist_mutable_iter iter;
	dlist_node *node;
	dlist_node *before;

	if (queue->waiter_count == 0 || queue->state != QUEUE_OPEN || queue->settings.paused)
		return;
	if (queue->settings.concurrency > 0)
		permits = queue->settings.concurrency - queue->running;
	startable = Min(queue_startable(queue), permits);
	if (queue->woken >= startable)
		return;

	patient = wait_clock() - PATIENCE;
	dlist_foreach_modify(iter, &queue->waiters)
	{
		Waiter	   *waiter = waiter_of_link(iter.cur);

		if (queue->woken >= startable || waiter->since > patient)
			break;
		wake_for_queue(queue, waiter);
	}
	startable = Min(startable, permits - queue->returns);
	for (node = queue->waiters.head.prev; node != &queue->waiters.head; node = before)
	{
		Waiter	   *waiter = waiter_of_link(node);

		if (queue->woken >= startable || waiter->since <= patient)
			break;
		before = node->prev;
		wake_for_queue(queue, waiter);
	}
}

/*
 * Put the waiter into a list that is in the order of coming.  It may have been
 * there before: who has looked for nothing keeps its place.
 */
static void
link_waiter(dlist_head *list, WaitLink *link)
{
	int64		since = link->waiter->since;
	dlist_node *before = list->head.prev;

	while (before != &list->head && waiter_of_link(before)->since > since)
		before = before->prev;
	dlist_insert_after(before, &link->node);
}

/* Put this backend, which has waited since then, into the lists of the queues, given by their indexes. */
void
wait_for_queues(const int32 *queues, int count, const char *worker, int64 since)
{
	Waiter	   *waiter = waiter_of_backend();

	Assert(waiter->link_count == 0 && waiter->woken_by == NULL);
	Assert(count <= FANOUT_WAIT_QUEUES);

	waiter->proc = MyProc;
	waiter->db = MyDatabaseId;
	waiter->since = since;
	strlcpy(waiter->worker, worker, sizeof(waiter->worker));
	for (int i = 0; i < count; i++)
	{
		WaitLink   *link = &waiter->links[i];
		Queue	   *queue = &fanout_queues[queues[i]];

		link->waiter = waiter;
		link->queue = queues[i];
		link_waiter(&queue->waiters, link);
		queue->waiter_count++;
	}
	waiter->link_count = count;
}

/* This backend looks for itself now: it counts as woken no longer.  Was it? */
bool
stop_waiting_for_queues(void)
{
	Waiter	   *waiter = waiter_of_backend();
	bool		woken = waiter->woken_by != NULL;

	unlink_waiter(waiter);
	if (woken && waiter->woken_by->woken > 0)
		waiter->woken_by->woken--;	/* 0 where the slot has another queue by now */
	waiter->woken_by = NULL;
	return woken;
}

/* The queue goes away: its waiters are on their own. */
void
stop_all_waiting_for(Queue *queue)
{
	dlist_mutable_iter iter;

	dlist_foreach_modify(iter, &queue->waiters)
	{
		Waiter	   *waiter = waiter_of_link(iter.cur);

		unlink_waiter(waiter);
		set_latch_after_unlock(waiter->proc);
	}
}

/* A task has got its outcome: tell those who wait for it. */
void
results_note_end(Database *database, const Task *task)
{
	dlist_iter	iter;

	dlist_foreach(iter, &database->result_waiters)
	{
		Waiter	   *waiter = dlist_container(Waiter, result_link, iter.cur);

		if (waiter->batch != 0 ? waiter->batch != task->batch :
			(task->node.id < waiter->first_task || task->node.id > waiter->last_task))
			continue;
		if (++waiter->hits >= waiter->hits_wanted)
			set_latch_after_unlock(waiter->proc);
	}
}

/* Something about the batch itself has changed (sealed, ended early): let its waiters look. */
void
results_wake_batch(Database *database, int64 batch)
{
	dlist_iter	iter;

	dlist_foreach(iter, &database->result_waiters)
	{
		Waiter	   *waiter = dlist_container(Waiter, result_link, iter.cur);

		if (waiter->batch != batch)
			continue;
		waiter->hits = waiter->hits_wanted;
		set_latch_after_unlock(waiter->proc);
	}
}

/* Many tasks may have ended at once: let every waiter look. */
void
results_wake_all(Database *database)
{
	dlist_iter	iter;

	dlist_foreach(iter, &database->result_waiters)
	{
		Waiter	   *waiter = dlist_container(Waiter, result_link, iter.cur);

		waiter->hits = waiter->hits_wanted;
		set_latch_after_unlock(waiter->proc);
	}
}

/*
 * Have the latch set once hits_wanted tasks have ended, of the batch or, if
 * that is 0, of the range of ids.  To be called before the tables are read.
 */
void
wait_for_results(Database *database, int64 batch, int64 first_task, int64 last_task, int64 hits_wanted)
{
	Waiter	   *waiter = waiter_of_backend();

	Assert(!waiter->waits_for_results);

	waiter->proc = MyProc;
	waiter->db = MyDatabaseId;
	waiter->batch = batch;
	waiter->first_task = first_task;
	waiter->last_task = last_task;
	waiter->hits = 0;
	waiter->hits_wanted = hits_wanted;
	waiter->waits_for_results = true;
	dlist_push_tail(&database->result_waiters, &waiter->result_link);
}

void
stop_waiting_for_results(void)
{
	Waiter	   *waiter = waiter_of_backend();

	if (waiter->waits_for_results)
		dlist_delete(&waiter->result_link);
	waiter->waits_for_results = false;
}

/*
 * Should the keeper have looked by now?  Then the clock was set forward while
 * it slept, for as long as it would have taken by the old one.  The clock is
 * not read for a time that is close to what the keeper has in mind.
 */
static bool
keeper_is_overdue(const Database *database, TimestampTz time)
{
	return time - database->keeper_wakes_at > CLOCK_SLACK &&
		database->keeper_wakes_at < GetCurrentTimestamp() - CLOCK_SLACK;
}

/*
 * See to it that the keeper looks by this time.  It says when it will look
 * next, so that what is nothing new to it costs no signal.
 */
void
keeper_wake_by(Database *database, TimestampTz time)
{
	/* the keeper itself looks at everything before it sleeps; to wake itself it would never come to that */
	if (database->keeper == NULL || database->keeper == MyProc ||
		(time >= database->keeper_wakes_at && !keeper_is_overdue(database, time)))
		return;
	database->keeper_wakes_at = time;
	set_latch_after_unlock(database->keeper);
}

void
keeper_wake(Database *database)
{
	keeper_wake_by(database, DT_NOBEGIN);
}

/* End what this backend waits for, passing on a wake-up that it did not use. */
void
abandon_waits(void)
{
	Waiter	   *waiter = waiter_of_backend();
	Queue	   *woken_by;

	dispatcher_lock();
	stop_waiting_for_results();
	woken_by = waiter->woken_by;
	(void) stop_waiting_for_queues();
	if (woken_by != NULL)
		queue_wake(woken_by);
	dispatcher_unlock();
}

int64
wait_clock(void)
{
	instr_time	now;

	INSTR_TIME_SET_CURRENT(now);
	return INSTR_TIME_GET_MICROSEC(now);
}

TimestampTz
wait_clock_time(int64 moment)
{
	return GetCurrentTimestamp() + (moment - wait_clock());
}

/*
 * Sleep until the latch is set or the deadline has come; false if it has.
 * Throws if the statement is cancelled or the session ended.
 */
bool
wait_on_latch(int64 deadline, uint32 wait_event)
{
	int64		left = deadline - wait_clock();
	long		timeout = Min(left / 1000 + 1, PG_INT32_MAX);

	if (left <= 0)
		return false;

	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, timeout, wait_event);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	return true;
}
