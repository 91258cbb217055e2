/*
 * window.h
 *		The part of an order of waiting tasks that is in memory.
 *
 * All of it expects the dispatcher lock to be held, and cannot throw.
 */
#ifndef FANOUT_WINDOW_H
#define FANOUT_WINDOW_H

#include "shared_state.h"

extern bool window_is_beyond(const Window *window, int64 key, int64 id);
extern OrderNode *window_first(const Window *window);
extern void window_leave_on_disk(Window *window, int64 key, int64 id);
extern void window_begin_refill(Window *window);
extern void window_end_refill(Window *window, bool more, int64 key, int64 id);

#endif							/* FANOUT_WINDOW_H */
