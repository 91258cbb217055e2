/*
 * return.c
 *		Permits that are kept for a moment for the worker that gave them back.
 *
 * A worker that completes its task mostly comes for the next one as soon as it
 * has the answer.  Where the queue's concurrency is used up and others wait,
 * each completion would wake one of these for the permit, and put the worker
 * to sleep in its place: for short tasks, one more switch of processes a task
 * is a good part of all there is to do.  So if it came at once the last time,
 * the permit is kept for it for a moment: nobody is woken for it.
 *
 * It is not reserved: whoever looks takes it, who has waited for PATIENCE
 * (wait.c) is woken for it all the same, and the worker that finds none waits
 * like all others.  One that does not come back in time has cost the others
 * RETURN_MOST once, as it is expected no more until it has shown again that it
 * comes at once.  The keeper sees to that time: it is awake as often anyhow as
 * long as tasks are leased, for the journal.
 */
#include "postgres.h"

#include "miscadmin.h"

#include "return.h"
#include "wait.h"

/* Who came after this time the last time is likely to come back. */
#define RETURN_SOON		INT64CONST(1000)

/* For how long a permit is kept. */
#define RETURN_MOST		INT64CONST(5000)

/* When this backend has given back a permit, by wait_clock(), and not looked for another one yet; 0: it has looked. */
static int64 gave_back_at = 0;
static bool comes_at_once = false;

void
note_return(void)
{
	if (gave_back_at == 0)
		return;
	comes_at_once = wait_clock() - gave_back_at <= RETURN_SOON;
	gave_back_at = 0;
}

void
expect_return(Queue *queue)
{
	Waiter	   *waiter = waiter_of_backend();
	Database   *database = database_of(queue);

	if (queue->settings.concurrency == 0 || queue->waiter_count == 0)
		return;
	gave_back_at = wait_clock();

	/* a keeper has to be there, should it not come */
	if (!comes_at_once || database->keeper == NULL || (waiter->returns_to != NULL && waiter->returns_to != queue))
		return;
	waiter->db = MyDatabaseId;
	waiter->returns_to = queue;
	waiter->returns++;
	waiter->returns_by = gave_back_at + RETURN_MOST;
	queue->returns++;
	database->returns_until = waiter->returns_by;
	keeper_wake_by(database, wait_clock_time(waiter->returns_by));
}

Queue *
forget_return(Waiter *waiter)
{
	Queue	   *queue = waiter->returns_to;

	if (queue == NULL)
		return NULL;
	queue->returns -= Min(waiter->returns, queue->returns); /* 0 where the slot has another queue by now */
	waiter->returns = 0;
	waiter->returns_to = NULL;
	return queue;
}

int64
end_overdue_returns(Database *database, int64 now)
{
	int64		next = 0;

	if (database->returns_until == 0)
		return 0;				/* there may be thousands of backends to look at */
	for (int i = 0; i < waiters_most(); i++)
	{
		Waiter	   *waiter = waiter_of(i);
		Queue	   *queue;

		if (waiter->returns_to == NULL || waiter->db != database->db)
			continue;
		if (waiter->returns_by > now)
			next = next == 0 ? waiter->returns_by : Min(next, waiter->returns_by);
		else if ((queue = forget_return(waiter)) != NULL)
			queue_wake(queue);
	}
	database->returns_until = next;
	return next;
}
