/*
 * views.h
 *		What the extension shows of itself.
 */
#ifndef FANOUT_VIEWS_H
#define FANOUT_VIEWS_H

#include "shared_state.h"

/*
 * The queues on which the current role has any privilege.  Read from the
 * catalogue and not from the registry's cache, which needs a keeper: what
 * only reads must work on a standby and while memory is rebuilt.
 */
typedef struct VisibleQueues
{
	Oid			role;			/* for which this was read */
	int			count;
	int32		ids[FLEXIBLE_ARRAY_MEMBER]; /* sorted */
} VisibleQueues;

extern VisibleQueues *read_visible_queues(void);
extern bool queue_is_visible(const VisibleQueues *queues, int32 id);

/* The state of a task in memory, in the words of the views; under the dispatcher lock. */
extern const char *state_in_memory(const Task *task, TimestampTz now);

/* The state of an unfinished task that is not in memory. */
extern const char *state_on_disk(bool timed, TimestampTz run_at, TimestampTz now);

#endif							/* FANOUT_VIEWS_H */
