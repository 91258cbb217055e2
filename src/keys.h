/*
 * keys.h
 *		Keys of tasks: one task of a queue holds a key at a time.
 */
#ifndef FANOUT_KEYS_H
#define FANOUT_KEYS_H

#include "request.h"

#define TASK_KEY_MAX	255		/* bytes */

#define ERRCODE_KEY_HELD	MAKE_SQLSTATE('F', 'O', '0', '0', '6')

/* Throws 22023 for a key that is none. */
extern void check_key(text *key);

/*
 * Take the request's key until the transaction ends, and do with the task that
 * holds it what on_conflict says; the queue is locked.  True if that task is
 * what the call asks for: it is seed.task then.  Otherwise the request is to
 * be enqueued, and after that "superseded", if not 0, to be given its outcome
 * by cancel_withdrawn().  Throws FO006.
 */
extern bool key_settle(Request *request, int64 *superseded);

#endif							/* FANOUT_KEYS_H */
