/*
 * rate.c
 *		Rate limits: how much has started, in windows that slide.
 *
 * A limit says how many units may start within any period of some length.  To
 * hold that for every period, and not only for those that begin at a round
 * time, each start is remembered until no window reaches back to it.  A log
 * has its starts in the order of time; each of its windows remembers its
 * first start and the units in it, so that a claim costs as many steps as
 * starts leave the windows, and none is counted anew.
 *
 * Starts of one moment are one entry.  Should the pool of entries be used up,
 * the newest entry of the log takes the start, and moves to its time: what it
 * held then counts for longer than it must, never for less.  A log that has no
 * entry yet must find one: rate_admits() lets nothing start while there may be
 * none for both logs of a start, the queue's and the lane's.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "rate.h"
#include "shared_state.h"

/* Starts of one moment. */
typedef struct RateEntry
{
	TimestampTz at;
	int64		units;
	int32		next;			/* a later one; of one that is free, another free one */
	int32		previous;
} RateEntry;

static RateEntry *entries = NULL;	/* from 1 on */

Size
rate_pool_size(void)
{
	return mul_size(fanout_max_rate_entries + 1, sizeof(RateEntry));
}

void
rate_pool_init(void *memory, bool found)
{
	entries = memory;
	if (found)
		return;
	memset(entries, 0, rate_pool_size());
	for (int i = 1; i < fanout_max_rate_entries; i++)
		entries[i].next = i + 1;
	fanout_shared->free_rate_entry = 1;
	fanout_shared->free_rate_entries = fanout_max_rate_entries;
}

/* May there be no entry for each of two logs that have none yet? */
static bool
pool_is_short(void)
{
	int32		place = fanout_shared->free_rate_entry;

	return place == 0 || entries[place].next == 0;
}

bool
rate_has_room(const RateView *rate)
{
	return rate->count == 0 || (rate->log != NULL && rate->log->newest != 0) || !pool_is_short();
}

/* Append an entry; 0 if the pool is used up. */
static int32
append(RateLog *log, TimestampTz at)
{
	int32		place = fanout_shared->free_rate_entry;
	RateEntry  *entry = &entries[place];

	if (place == 0)
		return 0;
	fanout_shared->free_rate_entry = entry->next;
	fanout_shared->free_rate_entries--;
	entry->at = at;
	entry->units = 0;
	entry->next = 0;
	entry->previous = log->newest;
	if (log->newest != 0)
		entries[log->newest].next = place;
	else
		log->oldest = place;
	log->newest = place;
	return place;
}

static void
drop_oldest(RateLog *log)
{
	int32		place = log->oldest;

	log->oldest = entries[place].next;
	if (log->oldest != 0)
		entries[log->oldest].previous = 0;
	else
		log->newest = 0;
	entries[place].next = fanout_shared->free_rate_entry;
	fanout_shared->free_rate_entry = place;
	fanout_shared->free_rate_entries++;
}

/*
 * What is remembered has happened before now.  If it has a later time, the
 * clock was set back: all of it is put back as far, as if no time had passed
 * since the latest of it, so that none counts for less than it must, and none
 * for as long as the clock was set back.
 */
static void
follow_clock(RateLog *log, TimestampTz now)
{
	TimestampTz latest = log->newest != 0 ? Max(log->seen, entries[log->newest].at) : log->seen;
	int64		ahead;

	/* who had to wait for the lock may have an old time */
	if (latest - CLOCK_SLACK <= now || latest - CLOCK_SLACK <= GetCurrentTimestamp())
		return;
	ahead = latest - GetCurrentTimestamp();
	for (int32 place = log->oldest; place != 0; place = entries[place].next)
		entries[place].at -= ahead;
	log->seen -= ahead;
	log->since -= ahead;
	if (log->lost != 0)
		log->lost -= ahead;
}

/* Let the windows slide to now, and forget what none of them holds. */
static void
slide(const RateView *rate, TimestampTz now)
{
	follow_clock(rate->log, now);
	rate->log->seen = Max(rate->log->seen, now);
	for (int i = 0; i < rate->count; i++)
	{
		RateUse    *use = &rate->uses[i];

		while (use->from != 0 && entries[use->from].at + rate->limits[i].period < now)
		{
			use->used -= entries[use->from].units;
			use->from = entries[use->from].next;
		}
	}
	while (rate->log->oldest != 0)
	{
		for (int i = 0; i < rate->count; i++)
		{
			if (rate->uses[i].from == rate->log->oldest)
				return;
		}
		drop_oldest(rate->log);
	}
}

/* When the window admits so many units; a start that is larger than the window takes all of it. */
static TimestampTz
window_admits(const RateLimit *limit, const RateUse *use, int32 cost)
{
	int64		excess = use->used + Min(cost, limit->units) - limit->units;
	TimestampTz at = 0;

	for (int32 place = use->from; place != 0 && excess > 0; place = entries[place].next)
	{
		excess -= entries[place].units;
		at = entries[place].at + limit->period + 1;
	}
	return at;
}

/* When no window reaches back to this time any more. */
static TimestampTz
time_to_forget(const RateView *rate, TimestampTz time)
{
	TimestampTz at = 0;

	for (int i = 0; i < rate->count; i++)
		at = Max(at, time + rate->limits[i].period + 1);
	return at;
}

TimestampTz
rate_admits(const RateView *rate, int32 cost, TimestampTz now)
{
	TimestampTz at = 0;

	/* what could not be remembered must not start; room comes as other logs forget */
	if (!rate_has_room(rate))
		return now + RATE_NO_ROOM_PAUSE;
	if (rate->log == NULL)
		return 0;

	slide(rate, now);
	if (rate->log->lost != 0)
		at = time_to_forget(rate, rate->log->lost);
	if (at <= now)
		at = 0;
	for (int i = 0; i < rate->count; i++)
	{
		TimestampTz window_at = window_admits(&rate->limits[i], &rate->uses[i], cost);

		at = Max(at, window_at);
	}
	return at;
}

int64
rate_left(const RateView *rate, TimestampTz now)
{
	int64		left = PG_INT64_MAX;

	if (rate->log != NULL)
	{
		slide(rate, now);
		if (rate->log->lost != 0 && time_to_forget(rate, rate->log->lost) > now)
			return 0;
	}
	for (int i = 0; i < rate->count; i++)
		left = Min(left, rate->limits[i].units - (rate->log != NULL ? rate->uses[i].used : 0));
	return Max(left, 0);
}

void
rate_take(const RateView *rate, int32 cost, TimestampTz at)
{
	RateLog    *log = rate->log;
	int32		place = log->newest;

	log->seen = Max(log->seen, at);
	if (place == 0 || entries[place].at < at)
		place = append(log, at);
	if (place == 0)
	{
		place = log->newest;
		if (place == 0)
		{
			log->lost = at;		/* only at a rebuild: see rate_admits() */
			return;
		}
		entries[place].at = at;
	}
	entries[place].units += cost;
	for (int i = 0; i < rate->count; i++)
	{
		RateUse    *use = &rate->uses[i];

		/* an entry that has moved brings what it held back into a window that it had left */
		use->used = use->from == 0 ? entries[place].units : use->used + cost;
		if (use->from == 0)
			use->from = place;
	}
}

/* Does the window hold what started then? */
static bool
window_holds(const RateUse *use, TimestampTz at)
{
	return use->from != 0 && entries[use->from].at <= at;
}

void
rate_give_back(const RateView *rate, int32 cost, TimestampTz at)
{
	int32		place = rate->log->newest;

	if (at <= rate->log->since)
		return;					/* there was no limit then: it was not remembered */

	/* its entry is the first that is not earlier; it may have moved to a later time, but not back */
	while (place != 0 && entries[place].previous != 0 && entries[entries[place].previous].at >= at)
		place = entries[place].previous;
	if (place == 0 || entries[place].at < at || entries[place].units < cost)
		return;
	entries[place].units -= cost;
	for (int i = 0; i < rate->count; i++)
	{
		if (window_holds(&rate->uses[i], entries[place].at))
			rate->uses[i].used -= cost;
	}
}

void
rate_recount(const RateView *rate, TimestampTz now)
{
	/* what starts from now on has a later time than that, by which it is told from what had started before */
	if (rate->log->newest == 0)
	{
		rate->log->since = now;
		rate->log->seen = Max(rate->log->seen, now + 1);
	}
	for (int i = 0; i < rate->count; i++)
	{
		RateUse    *use = &rate->uses[i];

		use->from = rate->log->oldest;
		use->used = 0;
		for (int32 place = use->from; place != 0; place = entries[place].next)
			use->used += entries[place].units;
	}
	slide(rate, now);
}

TimestampTz
rate_empty_at(const RateView *rate)
{
	TimestampTz last = rate->log != NULL ? rate->log->lost : 0;

	if (rate->log != NULL && rate->log->newest != 0)
		last = Max(last, entries[rate->log->newest].at);
	return last != 0 ? time_to_forget(rate, last) : 0;
}

void
rate_log_free(RateLog *log)
{
	while (log->oldest != 0)
		drop_oldest(log);
	log->lost = 0;
}

#ifdef FANOUT_CHECKED
int64
rate_units_within(const RateView *rate, int64 period, TimestampTz at)
{
	int64		units = 0;

	for (int32 place = rate->log->newest; place != 0; place = entries[place].previous)
	{
		if (entries[place].at + period >= at)
			units += entries[place].units;
	}
	return units;
}

bool
rate_is_consistent(const RateView *rate)
{
	for (int i = 0; i < rate->count; i++)
	{
		int64		units = 0;

		for (int32 place = rate->uses[i].from; place != 0; place = entries[place].next)
			units += entries[place].units;
		if (units != rate->uses[i].used)
			return false;
	}
	return true;
}
#endif
