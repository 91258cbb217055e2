/*
 * starts.c
 *		Starts of tasks, as rate limits remember them.
 *
 * A claim that rate limits admit is a start; it is remembered for the queue
 * and for the partition.  It counts from the claim on, and is forgotten only
 * if the claim is undone.  How many may be unjournaled at a time, and what a
 * rebuild makes of it, is said at rate_slack().
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "lane.h"
#include "lane_limits.h"
#include "starts.h"
#include "wait.h"

static RateView
rate_of(Queue *queue)
{
	RateView	view = {&queue->rate_log, queue->settings.rates, queue->rate_uses, queue->settings.rate_count};

	return view;
}

/*
 * When the queue lets the task whose turn it is start, as far as its rates
 * go and its workers' word to wait; 0: now.  Who is told a later time is woken
 * then.
 */
TimestampTz
queue_admits_start(Queue *queue, TimestampTz now)
{
	RateView	rate = rate_of(queue);
	Lane	   *lane = queue_next_lane(queue);
	TimestampTz at = 0;

	if (queue->settings.held_until > now)
		at = queue->settings.held_until;
	else if (rate.count > 0 && lane != NULL)
	{
		int32		cost = lane_first(lane)->cost;

		at = rate_admits(&rate, cost, now);
	}
	if (at != 0)
		keeper_wake_by(database_of(queue), at);
	return at;
}

/* How many tasks may start now, as far as lanes and rates go. */
int64
queue_startable(Queue *queue)
{
	RateView	rate = rate_of(queue);
	TimestampTz now;

	if (queue->startable == 0 || (rate.count == 0 && queue->settings.held_until == 0))
		return queue->startable;
	now = GetCurrentTimestamp();
	if (queue_admits_start(queue, now) != 0)
		return 0;
	return rate.count > 0 ? Min(queue->startable, Max(rate_left(&rate, now), 1)) : queue->startable;
}

/* The queue gets these settings. */
void
queue_set(Queue *queue, const QueueSettings *settings)
{
	RateView	rate;

	queue->settings = *settings;
	rate = rate_of(queue);
	memset(queue->rate_uses, 0, sizeof(queue->rate_uses));
	if (rate.count > 0)
		rate_recount(&rate, GetCurrentTimestamp());
	else
		rate_log_free(&queue->rate_log);
	queue_settle_lanes(queue);
}

/*
 * The task starts under the lease: rate limits remember it.  It counts as of
 * one time everywhere, which is not before any that the windows have slid to.
 */
void
lease_note_start(Lease *lease)
{
	Task	   *task = task_of(lease);
	Queue	   *queue = queue_of_lane(lane_of(task));
	RateView	rate = rate_of(queue);
	TimestampTz at = Max(lease->claimed_at, Max(queue->rate_log.seen, lane_earliest_start(lane_of(task))));

	if (rate.count == 0 && !lane_has_rate(lane_of(task)))
		return;
	if (rate.count > 0)
	{
		rate_take(&rate, task->cost, at);
		audit_start(&rate, task->cost, at);
	}
	lane_start(lane_of(task), task->cost, at);
	lease->claimed_at = at;
	lease->cost = task->cost;

	/* what a crash may make us forget is bounded: beyond that, a claim is on disk with its own commit */
	lease->synchronous = (rate.count > 0 && queue->unjournaled + task->cost > rate_slack(&rate)) ||
		!lane_has_slack(lane_of(task), task->cost);
	if (lease->synchronous)
		return;
	lease->unjournaled = true;
	queue->unjournaled += task->cost;
	lease->lane_unjournaled = lane_leave_unjournaled(lane_of(task), task->cost);
}

/* What the lease's start has taken of rate limits is on disk by now, or was given back. */
void
lease_start_journaled(Lease *lease)
{
	Queue	   *queue;

	if (!lease->unjournaled || lease->task == 0)
		return;
	queue = queue_of_lane(lane_of(task_of(lease)));
	lease->unjournaled = false;
	queue->unjournaled -= lease->cost;
	if (lease->lane_unjournaled)
		lane_journaled(lane_of(task_of(lease)), lease->cost);
	lease->lane_unjournaled = false;
}

/* The claim was undone: give back what its start has taken. */
void
lease_undo_start(Lease *lease)
{
	Queue	   *queue = queue_of_lane(lane_of(task_of(lease)));
	RateView	rate = rate_of(queue);

	if (lease->cost == 0)
		return;
	if (rate.count > 0)
		rate_give_back(&rate, lease->cost, lease->claimed_at);
	lane_unstart(lane_of(task_of(lease)), lease->cost, lease->claimed_at);
	lease_start_journaled(lease);
}

/* The clock was set back: what lanes wait for is a time by the old one. */
void
queue_follow_clock(Queue *queue, TimestampTz now)
{
	queue->loaded_at = Min(queue->loaded_at, now);
	queue_settle_lanes(queue);
}

int64
queue_longest_window(const Queue *queue)
{
	int64		longest = queue->settings.partition_rate.period;

	for (int i = 0; i < queue->settings.rate_count; i++)
		longest = Max(longest, queue->settings.rates[i].period);
	short_list_foreach(node, &queue->lanes)
		longest = Max(longest, lane_settings(link_container(Lane, link, node))->rate.period);
	return longest;
}

/* For a rebuild: a task has started then.  To be told in the order of time. */
void
queue_remember_start(Queue *queue, int64 partition, int32 cost, TimestampTz at)
{
	RateView	rate = rate_of(queue);
	Lane	   *lane = NULL;

	if (rate.count > 0)
		rate_take(&rate, cost, Max(at, queue->rate_log.seen));
	if (partition != 0)
		lane = lane_for(queue, partition);
	if (lane != NULL)
	{
		lane_remember_start(lane, cost, at);
		lane_settle(lane);
		lane_release(lane);
	}
	else if (partition != 0)
		queue->starts_lost = true;
}

/* For a rebuild: some may have started that were not on disk yet. */
void
queue_remember_unknown_starts(Queue *queue, TimestampTz now)
{
	RateView	rate = rate_of(queue);

	if (rate.count > 0)
		rate_take(&rate, rate_slack(&rate), Max(now, queue->rate_log.seen));
	short_list_foreach(node, &queue->lanes)
		lane_remember_unknown_starts(link_container(Lane, link, node), now);
	queue->loaded_at = now;
}
