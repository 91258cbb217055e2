/*
 * seed.h
 *		What a row of fanout.task tells the dispatcher.
 */
#ifndef FANOUT_SEED_H
#define FANOUT_SEED_H

#include "executor/tuptable.h"
#include "storage/itemptr.h"

#include "dispatch.h"

/* Of the rows "t" of a segment, given by its suffix. */
#define UNFINISHED(segment) " NOT EXISTS (SELECT FROM fanout.outcome" segment " o WHERE o.task = t.id) "

/*
 * The same where few rows are read in an order.  A plan that was made while
 * there were no outcomes may join with all of them, and is kept when there are
 * many; OFFSET keeps the planner from a join, so that each row is looked up.
 */
#define UNFINISHED_ONE(segment) " NOT EXISTS (SELECT FROM fanout.outcome" segment " o WHERE o.task = t.id OFFSET 0) "

#define EARLY_JOIN " (t.batch IS NOT NULL AND EXISTS (SELECT FROM fanout.batch b WHERE b.id = t.batch AND b.join_policy <> 'all')) "
#define SEED_COLUMNS " t.id, t.ctid, coalesce(t.priority, 0), t.run_at, t.batch, t.max_attempts, coalesce(t.lane, 0), coalesce(t.cost, 1)," EARLY_JOIN ", t.fair_group, coalesce(t.rank, t.priority, 0), t.deadline "

/* How many these are. */
#define SEED_COLUMN_COUNT 12

/* A row of SPI_tuptable, whose first columns are SEED_COLUMNS. */
extern void seed_read(uint64 row, TaskSeed *seed, ItemPointer tid);

/* A whole row; "early_join" is not known from that, and false. */
extern void seed_of_row(TupleTableSlot *row, TaskSeed *seed);

#endif							/* FANOUT_SEED_H */
