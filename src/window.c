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
 */
#include "postgres.h"

#include "window.h"

/* Is a task at this place possibly on disk only? */
bool
window_is_beyond(const Window *window, int64 key, int64 id)
{
	return window->bounded && !order_less(key, id, window->bound_key, window->bound_id);
}

/* The first task of the order, or NULL if there is none or a refill must come before. */
OrderNode *
window_first(const Window *window)
{
	OrderNode  *first = window->set.first;

	/* without a bound the task is not looked at: it is not in the processor's cache yet */
	if (first == NULL || !window->bounded)
		return first;
	return window_is_beyond(window, first->key, first->id) ? NULL : first;
}

/* A waiting task at this place is, from now on, on disk only. */
void
window_leave_on_disk(Window *window, int64 key, int64 id)
{
	if (!window_is_beyond(window, key, id))
	{
		window->bounded = true;
		window->bound_key = key;
		window->bound_id = id;
	}
	if (window->refilling &&
		(!window->missed || order_less(key, id, window->missed_key, window->missed_id)))
	{
		window->missed = true;
		window->missed_key = key;
		window->missed_id = id;
	}
}

/* To be called before the snapshot of the refill is taken. */
void
window_begin_refill(Window *window)
{
	window->refilling = true;
	window->missed = false;
}

/*
 * The refill has put into memory all it saw before (key, id), or all there is
 * if there is no more.
 */
void
window_end_refill(Window *window, bool more, int64 key, int64 id)
{
	window->refilling = false;
	window->bounded = more;
	window->bound_key = key;
	window->bound_id = id;
	if (window->missed)
		window_leave_on_disk(window, window->missed_key, window->missed_id);
	window->missed = false;
}
