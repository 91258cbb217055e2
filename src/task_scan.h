/*
 * task_scan.h
 *		The unfinished tasks of a queue in the order of their ids, and those of
 *		a partition in its order.
 */
#ifndef FANOUT_TASK_SCAN_H
#define FANOUT_TASK_SCAN_H

#include "storage/itemptr.h"

#include "dispatch.h"

typedef enum TaskScanKind
{
	TASKS_OF_MAIN_LANE,			/* those of the usual rank, which no index has */
	TASKS_OF_PARTITIONS,		/* all of them */
	TASKS_OF_ONE_PARTITION		/* in its order: see task_scan_begin_partitions() */
} TaskScanKind;

typedef struct TaskScan TaskScan;

/*
 * Begin at that id, in an SpiScope.  What is read is whatever is committed by
 * now; tasks that were enqueued with a time are left out.  The scan must be
 * ended, unless the transaction is.
 */
extern TaskScan *task_scan_begin(int segment, int32 queue, TaskScanKind kind, int64 id);

/* The same for single partitions, one after the other; each is to be named first, with the place to begin at. */
extern TaskScan *task_scan_begin_partitions(int segment, int32 queue);
extern void task_scan_partition(TaskScan *scan, int64 partition, int64 rank, int64 id);

/* The next one; false if there is none, or none among so many rows (not NULL), which are counted down: 0 is left then. */
extern bool task_scan_next(TaskScan *scan, int64 *rows, TaskSeed *seed, ItemPointer tid);

/* All tasks before that one have been seen, be it that they are none of those. */
extern int64 task_scan_seen(const TaskScan *scan);

extern void task_scan_end(TaskScan *scan);

#endif							/* FANOUT_TASK_SCAN_H */
