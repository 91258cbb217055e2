/*
 * lane_limits.c
 *		What only some lanes have: settings of their own, and starts that a rate
 *		limit remembers.
 *
 * That takes as much memory as a lane does, so it is in a pool of its own
 * (pg_fanout.max_limited_lanes).  A lane takes a place with its settings or
 * with a start, and gives it back when there is nothing to be known any more.
 *
 * Should the pool be used up, settings are refused.  A start could not be
 * remembered, so there is none: the lane waits, as it does without an entry of
 * a rate log.  A rebuild, which cannot wait, marks the lanes whose starts have
 * no place: they start nothing until none of these would count any more.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "lane.h"
#include "lane_limits.h"
#include "window.h"

const LaneSettings lane_no_settings = {.weight = 1};

/* The lane's rate limit; none if its view has no windows.  Without a log nothing is remembered. */
static RateView
rate_of(const Lane *lane)
{
	LaneLimits *limits = lane_limits(lane);
	RateView	view = {0};

	if (lane->partition == 0)
		return view;
	view.limits = limits != NULL && limits->settings.rate.units > 0 ? &limits->settings.rate :
		&queue_of_lane(lane)->settings.partition_rate;
	view.count = view.limits->units > 0 ? 1 : 0;
	if (limits != NULL)
	{
		view.log = &limits->rate_log;
		view.uses = &limits->rate_use;
	}
	return view;
}

int32
lane_limit(const Lane *lane)
{
	int32		own = lane_settings(lane)->concurrency;

	if (lane->partition == 0)
		return 0;
	return own > 0 ? own : queue_of_lane(lane)->settings.partition_concurrency;
}

int32
lane_max_backlog(const Lane *lane)
{
	int32		own = lane_settings(lane)->max_backlog;

	if (lane->partition == 0)
		return 0;
	return own > 0 ? own : queue_of_lane(lane)->settings.partition_max_backlog;
}

/* The lane's limits, entered if it has none; NULL if the pool is used up. */
static LaneLimits *
limits_for(Lane *lane)
{
	return lane->limited ? lane_limits(lane) : lane_limits_enter(lane);
}

void
lane_drop_idle_limits(Lane *lane)
{
	LaneLimits *limits = lane_limits(lane);
	RateView	rate;

	if (limits == NULL || limits->named || limits->keepers > 0 || limits->unjournaled > 0 ||
		limits->rate_log.newest != 0)
		return;
	if (limits->rate_log.lost != 0 || limits->settings.held_until != 0)
	{
		TimestampTz now = GetCurrentTimestamp();

		rate = rate_of(lane);
		if (limits->settings.held_until > now || (rate.count > 0 && rate_left(&rate, now) < rate.limits->units))
			return;
	}
	lane_limits_free(limits);
}

bool
lane_keep(Queue *queue, int64 partition)
{
	Lane	   *lane;
	LaneLimits *limits;

	if (partition == 0)
		return true;
	lane = lane_for(queue, partition);
	if (lane == NULL)
		return false;
	limits = limits_for(lane);
	if (limits == NULL)
	{
		lane_release(lane);
		return false;
	}

	/* its windows may have slid until now when it had limits before */
	limits->rate_log.seen = Max(limits->rate_log.seen, GetCurrentTimestamp());
	limits->keepers++;
	return true;
}

void
lane_let_go(Queue *queue, int64 partition)
{
	Lane	   *lane = partition != 0 ? lane_find(queue, partition) : NULL;
	LaneLimits *limits = lane != NULL ? lane_limits(lane) : NULL;

	if (limits == NULL)
		return;					/* memory was built anew meanwhile */
	limits->keepers -= limits->keepers > 0;
	lane_drop_idle_limits(lane);
	lane_release(lane);
}

bool
lane_set(Queue *queue, int64 partition, const LaneSettings *settings)
{
	Lane	   *lane = lane_for(queue, partition);
	LaneLimits *limits = lane != NULL ? limits_for(lane) : NULL;

	if (limits == NULL)
	{
		if (lane != NULL)
			lane_release(lane);
		return false;
	}
	limits->settings = *settings;
	/* its worker's word to wait keeps it in the set of throttled lanes until that is over */
	limits->named = settings->concurrency > 0 || settings->weight != 1 || settings->paused ||
		settings->rate.units > 0 || settings->max_backlog > 0;
	lane_recount_rate(lane);
	lane_settle(lane);
	lane_release(lane);
	return true;
}

/* The lane's rate limit has changed. */
void
lane_recount_rate(Lane *lane)
{
	LaneLimits *limits = lane_limits(lane);
	RateView	rate = rate_of(lane);

	if (limits == NULL)
		return;
	if (rate.count > 0)
		rate_recount(&rate, GetCurrentTimestamp());
	else
	{
		rate_log_free(&limits->rate_log);
		memset(&limits->rate_use, 0, sizeof(RateUse));
	}
}

bool
lane_has_rate(Lane *lane)
{
	return rate_of(lane).count > 0;
}

/*
 * The starts that a crash may make us forget, as they were not on disk yet:
 * never more than these are left to the journal, and a rebuild takes them for
 * started.
 */
int64
rate_slack(const RateView *rate)
{
	int64		slack = PG_INT64_MAX;

	for (int i = 0; i < rate->count; i++)
	{
		double		units = (double) rate->limits[i].units;
		double		while_journaled = units * fanout_journal_interval * 2000 / rate->limits[i].period;
		double		of_window = Max(units / 16, while_journaled);

		slack = Min(slack, (int64) Max(1, Min(of_window, units)));
	}
	return slack;
}

/* Until when may starts count that a rebuild has found no place for? */
static TimestampTz
lost_until(const Lane *lane, const RateView *rate, TimestampTz now)
{
	TimestampTz loaded_at = queue_of_lane(lane)->loaded_at;

	return (loaded_at != 0 ? loaded_at : now) + rate->limits->period + 1;
}

/* Could a start be remembered? */
static bool
has_room(const RateView *rate)
{
	return rate_has_room(rate) && (rate->count == 0 || rate->log != NULL || fanout_shared->free_limited_lanes > 0);
}

bool
lane_has_room_for_start(Lane *lane)
{
	RateView	rate = rate_of(lane);

	return has_room(&rate);
}

TimestampTz
lane_held_until(Lane *lane, const Task *first)
{
	RateView	rate = rate_of(lane);
	TimestampTz held_until = lane_settings(lane)->held_until;
	TimestampTz now;

	if (rate.count == 0 && held_until == 0)
		return 0;
	now = GetCurrentTimestamp();
	if (held_until > now)
		return held_until;
	if (rate.count == 0)
		return 0;
	if (lane->starts_lost && lost_until(lane, &rate, now) > now)
		return lost_until(lane, &rate, now);
	lane->starts_lost = false;

	/* what is on disk is known once there is a unit to start it with */
	if (first != NULL || window_is_bounded(&lane->ready))
		return has_room(&rate) ? rate_admits(&rate, first != NULL ? first->cost : 1, now) : now + RATE_NO_ROOM_PAUSE;
	return rate_left(&rate, now) < rate.limits->units ? rate_empty_at(&rate) : 0;
}

/* So many more units may start now, as far as its rate limit goes. */
int64
lane_rate_left(Lane *lane)
{
	RateView	rate = rate_of(lane);

	return rate.count > 0 ? rate_left(&rate, GetCurrentTimestamp()) : PG_INT64_MAX;
}

/* A start must not be earlier than what the lane's windows have slid to, or may have when it had limits before. */
TimestampTz
lane_earliest_start(Lane *lane)
{
	RateView	rate = rate_of(lane);

	if (rate.count == 0)
		return 0;
	return rate.log != NULL ? rate.log->seen : GetCurrentTimestamp();
}

/* The same with a log, if there is room for one. */
static RateView
rate_for_start(Lane *lane, TimestampTz at)
{
	RateView	rate = rate_of(lane);
	LaneLimits *limits;

	if (rate.count == 0 || rate.log != NULL)
		return rate;
	limits = lane_limits_enter(lane);
	if (limits == NULL)
		return rate;
	limits->rate_log.since = at - 1;
	return rate_of(lane);
}

/* A task of the lane starts: there is room for that, lane_has_room_for_start() has said so. */
void
lane_start(Lane *lane, int32 cost, TimestampTz at)
{
	RateView	rate = rate_for_start(lane, at);

	Assert(rate.count == 0 || rate.log != NULL);
	if (rate.count > 0 && rate.log != NULL)
	{
		rate_take(&rate, cost, at);
		audit_start(&rate, cost, at);
	}
}

/* It has not started after all. */
void
lane_unstart(Lane *lane, int32 cost, TimestampTz at)
{
	RateView	rate = rate_of(lane);

	if (rate.count > 0 && rate.log != NULL)
		rate_give_back(&rate, cost, at);
}

/* May so many more units of the lane be started and not be on disk? */
bool
lane_has_slack(Lane *lane, int32 cost)
{
	RateView	rate = rate_of(lane);
	LaneLimits *limits = lane_limits(lane);

	return rate.count == 0 || (limits != NULL ? limits->unjournaled : 0) + cost <= rate_slack(&rate);
}

/* They are; false if the lane has no rate limit to which that matters. */
bool
lane_leave_unjournaled(Lane *lane, int32 cost)
{
	LaneLimits *limits = lane_limits(lane);

	if (limits == NULL || !lane_has_rate(lane))
		return false;
	limits->unjournaled += cost;
	return true;
}

/* They are on disk by now, or have not started after all. */
void
lane_journaled(Lane *lane, int32 cost)
{
	LaneLimits *limits = lane_limits(lane);

	Assert(limits != NULL && limits->unjournaled >= cost);
	limits->unjournaled -= cost;
}

/* For a rebuild: so much has started then. */
static void
remember(Lane *lane, int64 units, TimestampTz at)
{
	RateView	rate = rate_for_start(lane, at);

	if (rate.log != NULL)
		rate_take(&rate, units, Max(at, rate.log->seen));
	else
		lane->starts_lost = queue_of_lane(lane)->starts_lost = true;
}

void
lane_remember_start(Lane *lane, int32 cost, TimestampTz at)
{
	if (lane_has_rate(lane))
		remember(lane, cost, at);
}

/* Before a crash some may have started that nobody knows of. */
void
lane_remember_unknown_starts(Lane *lane, TimestampTz at)
{
	Queue	   *queue = queue_of_lane(lane);
	RateView	rate = rate_of(lane);
	int64		unknown = rate_slack(&rate);

	if (rate.count == 0 || at + rate.limits->period <= GetCurrentTimestamp())
		return;

	/* a lane that is new since may be one whose starts found no place */
	if (queue->loaded_at != 0 && queue->starts_lost)
		unknown = rate.limits->units;
	remember(lane, unknown, at);
}
