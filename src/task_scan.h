/*
 * task_scan.h
 *		The unfinished tasks of a queue, in the order of an index.
 */
#ifndef FANOUT_TASK_SCAN_H
#define FANOUT_TASK_SCAN_H

#include "storage/itemptr.h"

#include "dispatch.h"

typedef enum TaskScanKind
{
	/* in the order of ids, those that were enqueued with a time left out */
	TASKS_OF_MAIN_LANE,			/* those of the usual rank, which no other index has */
	TASKS_OF_PARTITIONS,		/* all of them */
	/* in the order of a key, and then of ids */
	TASKS_OF_LOWER_RANK,		/* of the main lane, by rank, below 0; those that were enqueued with a time left out */
	TASKS_OF_HIGHER_RANK,		/* the same above 0, from where the scan is started */
	TASKS_OF_ONE_PARTITION,		/* by rank, the same */
	TASKS_WITH_TIME				/* by the time that they were enqueued with, of all lanes */
} TaskScanKind;

typedef struct TaskScan TaskScan;

/*
 * Begin a scan, in an SpiScope; it is to be started then.  What is read is
 * whatever is committed by now.  It must be ended, unless the transaction is.
 */
extern TaskScan *task_scan_begin(int segment, int32 queue, TaskScanKind kind);

/* Start, or start anew, at that place, whose key is 0 in the order of ids; the partition is that of TASKS_OF_ONE_PARTITION. */
extern void task_scan_start(TaskScan *scan, int64 partition, int64 key, int64 id);

/*
 * The next one; false if there is none.  So many rows are looked at, which are
 * counted down, and it stops.
 */
extern bool task_scan_next(TaskScan *scan, int64 *rows, TaskSeed *seed, ItemPointer tid);

/* Has it stopped, and before which place? */
extern bool task_scan_stopped(const TaskScan *scan, int64 *key, int64 *id);

extern void task_scan_end(TaskScan *scan);

#endif							/* FANOUT_TASK_SCAN_H */
