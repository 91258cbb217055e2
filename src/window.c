/*
 * window.c
 *		The part of an order of waiting tasks that is in memory.
 *
 * Invariant: every waiting task that comes before the bound is in memory.
 * So the first of the set may be given out if it comes before the bound; if
 * it does not, something on disk may come before it, and the keeper has to
 * read on from the bound first (a refill).
 *
 * A task that is left on disk lowers the bound to its place.  That is all it
 * takes: a commit that finds no memory allocates nothing.
 *
 * A refill reads with a snapshot, so it misses what commits after that.  Its
 * begin is noted before the snapshot is taken; a task that is left on disk
 * from then on is remembered (the first such is enough), and when the refill
 * ends, the new bound is the lower one of where the refill got and of what it
 * may have missed.
 *
 * One refill may read for several windows, with one snapshot.  All begin
 * before that is taken, and each has a first task of its own that was missed.
 * They end one after the other, as what was read is put into memory: from then
 * on a task that is left on disk lowers the bound as ever, since nothing that
 * this refill has read will raise it again.  A window that is refilled has a
 * bound: it began with one, and until the end that is only lowered.
 */
#include "postgres.h"

#include "window.h"

void
window_init(Window *window)
{
	order_init(&window->set);
	window->bound_key = window->bound_id = WINDOW_UNBOUNDED;
}

/* Is a task at this place possibly on disk only? */
bool
window_is_beyond(const Window *window, int64 key, int64 id)
{
	return !order_less(key, id, window->bound_key, window->bound_id);
}

/* The first task of the order, or NULL if there is none or a refill must come before. */
OrderNode *
window_first(const Window *window)
{
	OrderNode  *first = order_first(&window->set);

	/* without a bound the task is not looked at: it is not in the processor's cache yet */
	if (first == NULL || !window_is_bounded(window))
		return first;
	return window_is_beyond(window, first->key, first->id) ? NULL : first;
}

static void
lower_bound(Window *window, int64 key, int64 id)
{
	if (window_is_beyond(window, key, id))
		return;
	window->bound_key = key;
	window->bound_id = id;
}

/* What a refill that reads for the window knows of it, or NULL. */
static WindowRefill *
refill_of(Database *database, const Window *window)
{
	/* whoever has no bound is not refilled: few have one, and this is asked for each lane that goes */
	if (!window_is_bounded(window))
		return NULL;
	for (int i = 0; i < database->refilling_count; i++)
	{
		if (database->refilling[i].window == window)
			return &database->refilling[i];
	}
	return NULL;
}

bool
window_is_refilling(const Database *database, const Window *window)
{
	return refill_of(unconstify(Database *, database), window) != NULL;
}

/* A waiting task at this place is, from now on, on disk only. */
void
window_leave_on_disk(Database *database, Window *window, int64 key, int64 id)
{
	WindowRefill *refill = refill_of(database, window);

	lower_bound(window, key, id);
	if (refill != NULL && order_less(key, id, refill->missed_key, refill->missed_id))
	{
		refill->missed_key = key;
		refill->missed_id = id;
	}
}

/* Has the refill that reads for the window missed a task that comes before this place? */
bool
window_has_missed(Database *database, const Window *window, int64 key, int64 id)
{
	WindowRefill *refill = refill_of(database, window);

	Assert(refill != NULL);
	return order_less(refill->missed_key, refill->missed_id, key, id);
}

/* To be called before the snapshot of the refill is taken. */
void
window_begin_refill(Database *database, Window *window)
{
	WindowRefill *refill = &database->refilling[database->refilling_count];

	Assert(window_is_bounded(window) && !window_is_refilling(database, window));
	Assert(database->refilling_count < FANOUT_REFILL_WINDOWS);
	database->refilling_count++;
	refill->window = window;
	refill->missed_key = refill->missed_id = WINDOW_UNBOUNDED;
}

/*
 * The refill has put into memory all it saw before (key, id), or all there is
 * if that is WINDOW_UNBOUNDED.
 */
void
window_end_refill(Database *database, Window *window, int64 key, int64 id)
{
	WindowRefill *refill = refill_of(database, window);

	Assert(refill != NULL);
	window->bound_key = key;
	window->bound_id = id;
	lower_bound(window, refill->missed_key, refill->missed_id);
	*refill = database->refilling[--database->refilling_count];
}

/* Whoever was refilling is gone, or what it was refilling. */
void
window_forget_refills(Database *database)
{
	database->refilling_count = 0;
}
