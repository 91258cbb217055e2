/*
 * checkpoint.h
 *		Steps of a task.
 */
#ifndef FANOUT_CHECKPOINT_H
#define FANOUT_CHECKPOINT_H

#define STEP_NAME_MAX	1000	/* bytes; an index entry must hold it */

/* Throws 22023 for a name that cannot be stored. */
extern void check_step_name(text *step);

#endif							/* FANOUT_CHECKPOINT_H */
