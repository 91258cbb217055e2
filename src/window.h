/*
 * window.h
 *		The part of an order of waiting tasks that is in memory.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_WINDOW_H
#define FANOUT_WINDOW_H

#include "shared_state.h"

#define WINDOW_UNBOUNDED	PG_INT64_MAX	/* as key and id of a bound: no task comes after it */

static inline bool
window_is_bounded(const Window *window)
{
	return window->bound_id != WINDOW_UNBOUNDED;
}

extern void window_init(Window *window);
extern bool window_is_beyond(const Window *window, int64 key, int64 id);
extern OrderNode *window_first(const Window *window);
extern void window_leave_on_disk(Database *database, Window *window, int64 key, int64 id);
extern bool window_has_missed(Database *database, const Window *window, int64 key, int64 id);
extern bool window_is_refilling(const Database *database, const Window *window);
extern void window_begin_refill(Database *database, Window *window);
extern void window_end_refill(Database *database, Window *window, int64 key, int64 id);
extern void window_forget_refills(Database *database);

#endif							/* FANOUT_WINDOW_H */
