/*
 * shared_state.h
 *		What the dispatcher keeps in shared memory.
 *
 * One LWLock, the dispatcher lock, protects all of it; see README.md for why
 * one is enough and for the rules of what may run under it.
 */
#ifndef FANOUT_SHARED_STATE_H
#define FANOUT_SHARED_STATE_H

#include "datatype/timestamp.h"
#include "lib/ilist.h"
#include "storage/condition_variable.h"
#include "storage/itemptr.h"
#include "storage/lwlock.h"
#include "storage/proc.h"

#include "audit.h"
#include "order.h"
#include "points.h"
#include "rate.h"
#include "short_list.h"
#include "turns.h"

#define FANOUT_NAME_LEN			64	/* of a queue's or a worker's name, with the final NUL */
#define FANOUT_WAIT_QUEUES		16	/* queues that one dequeue may name */
#define FANOUT_DIRTY_JOINS		64
#define FANOUT_WORK_CHUNK		256 /* tasks handled in one hold of the lock */
#define FANOUT_REFILL_WINDOWS	64	/* that one refill reads for */
#define FANOUT_SEGMENTS			4	/* of the log: those that src/sql/02_tables.sql makes */
#define FANOUT_ERROR_LEN		256 /* of what is kept of an error's message */
#define FANOUT_SEGMENT_UNUSED	PG_INT64_MAX
#define CLOCK_SLACK				(1000 * INT64CONST(1000))	/* microseconds: a clock that differs by more was set */

/*
 * A window: the part of an order that is in memory.  Every waiting task of
 * the order that comes before the bound is in the set; from the bound on
 * tasks may be on disk only.  Without a bound, nothing is on disk only.
 */
typedef struct Window
{
	OrderedSet	set;
	int64		bound_key;		/* WINDOW_UNBOUNDED, and bound_id, too: none */
	int64		bound_id;
} Window;

typedef struct QueueSettings
{
	int32		concurrency;	/* 0: no limit, here and below */
	int32		worker_concurrency;
	int32		partition_concurrency;
	int32		partition_max_backlog;
	int64		max_backlog;
	int64		lease;			/* microseconds, here and below */
	int64		backoff;
	int64		backoff_max;
	int64		aging;			/* how long a task waits for one step of priority; 0: none counts */
	TimestampTz held_until;		/* nothing starts before */
	RateLimit	rates[RATE_WINDOWS];
	RateLimit	partition_rate; /* of each partition that has none of its own */
	int32		rate_count;
	int32		max_attempts;
	bool		synchronous_claims;
	bool		paused;
	bool		retries_pass;	/* a partition that runs one at a time does not wait for a task that is tried again */
} QueueSettings;

typedef struct LaneSettings
{
	int32		concurrency;	/* 0: the queue's for each partition */
	int16		weight;			/* its share, beside the other lanes' */
	bool		paused;
	int32		max_backlog;	/* 0: the queue's for each partition */
	RateLimit	rate;			/* no units: the queue's for each partition */
	TimestampTz held_until;		/* nothing of it starts before */
} LaneSettings;

/* What few lanes have: settings of their own, and starts that a rate limit remembers.  An element of a pool. */
typedef struct LaneLimits
{
	Link		next;			/* in the pool */
	Link		lane;
	LaneSettings settings;
	RateLog		rate_log;
	RateUse		rate_use;
	int32		unjournaled;	/* units that have started and are not on disk yet */
	int32		keepers;		/* notes of open transactions that are about the lane */
	bool		named;			/* it has settings of its own: it stays */
} LaneLimits;

/* A fair group: lanes of a queue that share one turn.  An element of a pool. */
typedef struct FairGroup
{
	Link		next;			/* in the pool */
	Turn		turn;			/* in Queue.turns, while a lane of it is in "lanes" */
	int32		lane_count;		/* that belong to it; the last one takes it along */
	int64		number;			/* hash of its name */
	Turns		lanes;			/* of its lanes, those that have a task that may start */
	int64		sample_task;	/* a task that named it: its row tells the name */
} FairGroup;

/*
 * A lane: the ready tasks of a queue that have the same partition key, with
 * limits and a share of their own.  An element of a pool, but for the main
 * lanes.  There may be many, so that each of its bytes counts.
 */
typedef struct Lane
{
	Link		next;			/* in the pool */
	uint32		sample_task;	/* the low half of the id of one of its tasks, maybe ended, or not committed if it is
								 * the first: its row tells the partition's key */
	int64		partition;		/* hash of the key; 0: the queue's main lane, of tasks without one */
	Window		ready;			/* ordered by (rank, id) */
	Turn		turn;			/* in Queue.turns or in FairGroup.lanes, or aside in Queue.throttled */
	Link		group;			/* FairGroup; 0: none */
	ShortList	scheduled;		/* SCHEDULED tasks: first those that wait for another attempt, last those that may be
								 * left on disk; others are not in it, nor are those of the main lane.  Task.link */
	ShortNode	link;			/* in Queue.lanes */
	int32		tasks;			/* pool entries that belong to it */
	int32		spare;			/* those that may be left on disk: the delayed ones, and READY ones of that kind */
	int32		backlog;		/* its waiting tasks, those on disk and of open transactions too; not of the main
								 * lane */
	int32		running;		/* permits held, uncommitted claims included */
	int32		startable;		/* how many of its tasks may start now, as far as the lane goes; not 0: it waits for
								 * its turn */
	uint32		disk_before:27; /* no task that is on disk only has an id that is further below bound_id */
	uint32		limited:1;		/* it has LaneLimits */
	uint32		wants_refill:1;
	uint32		starved:1;		/* the last refill found no memory */
	uint32		starts_lost:1;	/* a rebuild found no place for its starts: it waits until none of them counts */
	uint32		with_strays:1;	/* it has no bound, but strays of the queue may be its own: all of them come after
								 * what it has in memory */
#ifdef FANOUT_CHECKED
	Recount		recount;
#endif
} Lane;

typedef enum QueueState
{
	QUEUE_FREE,
	QUEUE_NEW,					/* created by a transaction that is open */
	QUEUE_OPEN,
	QUEUE_CLOSED				/* being dropped or purged by a transaction that is open */
} QueueState;

typedef struct Queue
{
	QueueState	state;
	bool		was_new;		/* what CLOSED goes back to */
	bool		dropping;		/* CLOSED to be dropped, not purged: its leases are lost */
	TransactionId closer;		/* the transaction that closed it */
	Oid			db;
	int32		id;
	int64		generation;		/* tells one life of the slot from the next */
	QueueSettings settings;

	Lane		main;			/* tasks without a partition key */
	ShortList	lanes;			/* all others; those that ask for a refill come first, in the order they asked in */
	Link		last_asker;		/* the last of these, Lane.link; 0: there is none */
	int32		lane_count;
	Link		walk;			/* where queue_walk_lanes() goes on; 0: at the head */
	Window		strays;			/* by (0, id): on disk, and their lanes have no place in memory; its set is empty */
	Window		scheduled;		/* timed tasks, ordered by (due, id) */

	Turns		turns;			/* of lanes that have a task that may start, and groups of such */
	OrderedSet	throttled;		/* lanes that time will change, by that time */
	RateLog		rate_log;
	RateUse		rate_uses[RATE_WINDOWS];
	int64		unjournaled;	/* units that have started and are not on disk yet */
	TimestampTz loaded_at;		/* when a rebuild found it, or 0 */
	bool		starts_lost;	/* by that rebuild, of partitions whose lane had no place in memory */
	int64		startable;		/* tasks that may start as far as their lanes go */
	int64		ready_count;	/* ready tasks that are in memory */
	int64		delayed;		/* tasks in its lanes' lists with TASK_FLAG_DELAYED */
	int64		main_delayed;	/* such of the main lane */
	int64		spare;			/* tasks that may be left on disk: what its lanes count, and these of the main lane */

	int64		waiting;		/* ready and scheduled ones, on disk too */
	int64		timed;			/* those of them that are scheduled */
	int64		pending;		/* enqueued by transactions that are open */
	int64		reserved;		/* pool entries of the pending ones */
	int64		running;		/* permits held, uncommitted claims included */
	bool		wants_refill;
	bool		refill_held;	/* partitions ask for a refill that it could not use yet */
	bool		due_held;		/* what is due on disk waits until the queue could use it */
	bool		strays_held;	/* strays wait for more lanes to be free, or for the keeper to come by */
	bool		strays_blocked; /* when they were read last, there was no lane for the next one */
	bool		idle_with_strays;	/* a lane with strays may have nothing ready in memory */
	bool		ranks_on_disk;	/* tasks of partitions that are on disk may have another rank than 0 */
	int32		refilling;		/* windows that are being refilled */
	int64		epoch;			/* counts the times it was closed */

	dlist_head	waiters;		/* WaitLink.node, first come first */
	int32		waiter_count;
	int32		woken;			/* waiters that were woken and have not looked yet */
	int32		returns;		/* permits that are kept for a moment for who gave them back: return.c */

	int64		enqueued;		/* counters since the server started */
	int64		dequeued;
	int64		succeeded;
	int64		failed;
	int64		cancelled;
#ifdef FANOUT_CHECKED
	Recount		recount;
#endif
} Queue;

typedef enum TaskState
{
	TASK_ENQUEUED,				/* its enqueuer is yet to commit */
	TASK_SCHEDULED,
	TASK_READY,
	TASK_RUNNING,
	TASK_ENDING,				/* waited; a transaction that is open ends or changes it */
	TASK_ENDED					/* tombstone: a refill may still see it as unfinished */
} TaskState;

#define TASK_FLAG_TIMED			0x01	/* has a run_at of its own */
#define TASK_FLAG_UNTOUCHED		0x02	/* not leased in this life: its row says all */
#define TASK_FLAG_WAS_SCHEDULED	0x04	/* what an ENDING task goes back to */
#define TASK_FLAG_EARLY_JOIN	0x08	/* its batch may end before all tasks have */
#define TASK_FLAG_FRESH			0x10	/* never leased: it has no checkpoints */
#define TASK_FLAG_CANCELLED		0x20	/* somebody has asked its worker to stop */
#define TASK_FLAG_NEW			0x40	/* ENDING: its enqueuer is the same transaction, and it counts as pending */
#define TASK_FLAG_UNPLACED		0x80	/* and it had no place in memory */
#define TASK_FLAG_RETRIED		0x100	/* in Lane.scheduled: it waits for another attempt */
#define TASK_FLAG_DELAYED		0x200	/* it may be left on disk: in Lane.scheduled, unless of the main lane */

/* An unfinished task that is in memory: an element of the pool. */
typedef struct Task
{
	Link		next;			/* in the pool */
	OrderNode	node;			/* in its lane's ready window, or in the queue's scheduled one; its id is the task's */
	Link		lane;			/* 0: ENDED */
	Link		lease;			/* RUNNING */
	int64		batch;			/* 0: none */
	int64		rank;			/* its place in its lane: the priority, unless the queue has aging */
	TimestampTz deadline;		/* it is cancelled unless it has started by then; 0: none, or it has */
	int32		priority;
	int32		cost;			/* units of rate limits */
	TransactionId ender;		/* ENDING: the transaction that ends or changes it; ENQUEUED: that enqueues it;
								 * RUNNING: the last one that was to cancel it */
	int32		note;			/* ENDING: the ender's last note about it, of pending.c */
	ShortNode	link;			/* in Database.ended, if ENDED; in Lane.scheduled, if TASK_FLAG_RETRIED or
								 * TASK_FLAG_DELAYED */
	uint16		queue;			/* index of its Queue */
	int16		attempts;		/* begun ones, the running one included */
	int16		max_attempts;	/* 0: the queue's */
	ItemPointerData tid;
	uint16		kept_for;		/* the refill that may still read its row as it was before a change; 0: none */
	uint16		flags:12;
	uint16		state:4;		/* TaskState */
} Task;

typedef struct WorkerKey
{
	char		name[FANOUT_NAME_LEN];
	Oid			db;
} WorkerKey;

/* A worker, known from its leases. */
typedef struct Worker
{
	WorkerKey	key;
	ShortList	leases;
	int32		lease_count;
	int32		ended_count;	/* leases that have ended and are to be journaled with its name */
#ifdef FANOUT_CHECKED
	Recount		recount;
#endif
} Worker;

/* How many tasks of one queue one worker runs. */
typedef struct WorkerUseKey
{
	Worker	   *worker;
	int32		queue;
	uint32		zero;
} WorkerUseKey;

typedef struct WorkerUse
{
	WorkerUseKey key;
	int32		leases;
	int32		running;		/* permits; those that were passed on count no more */
#ifdef FANOUT_CHECKED
	Recount		recount;
#endif
} WorkerUse;

#define LEASE_JOURNAL_CLAIM		0x01	/* what the journal is yet to write of a lease */
#define LEASE_JOURNAL_EXTEND	0x02
#define LEASE_JOURNAL_EXPIRE	0x04

/* An element of the pool. */
typedef struct Lease
{
	Link		next;			/* in the pool */
	OrderNode	node;			/* in Database.expiry, once committed; the key is when it ends, the id its number */
	Link		task;			/* 0 once it has ended and only the journal needs it */
	Link		worker;
	Link		use;			/* the worker's use of the task's queue; 0 once it has ended */
	Oid			db;
	int64		task_id;
	int64		permit_of;		/* the lease whose permit was passed on to this claim, or 0 */
	TimestampTz claimed_at;
	ShortNode	worker_link;	/* in Worker.leases, until it has ended */
	ShortNode	journal_link;
	int32		holder;			/* the backend whose open transaction claimed it, or to which it is bound, as
								 * backend_number() tells; 0: none */
	TransactionId ender;		/* the open transaction that is ending it */
	int32		cost;			/* units of rate limits that it has taken */
	uint16		pins;			/* transactions that wrote under it: it does not expire under them */
	int16		attempt;
	uint16		journal:3;		/* LEASE_JOURNAL_ bits; not 0: in Database.journal */
	uint16		unjournaled:1;	/* its units are not on disk yet, and count so in its queue */
	uint16		lane_unjournaled:1; /* and in the limits of its lane */
	uint16		synchronous:1;	/* its claim is to be on disk with its own commit, for the sake of rate limits */
	uint16		committed:1;
	uint16		bound:1;		/* ends with the holder's session */
	uint16		passed_on:1;	/* the transaction that ends it has given its permit to a claim of its own */
	uint16		lane_lent:1;	/* its lane's permit is free for that claim, while the lock is held */
	uint16		lane_passed_on:1;	/* and that claim has taken it */
} Lease;

/* The segments of the log, as fanout.segment has them. */
typedef struct SegmentMap
{
	int64		firsts[FANOUT_SEGMENTS];	/* the first task id of each, or FANOUT_SEGMENT_UNUSED */
	TimestampTz began[FANOUT_SEGMENTS]; /* when it became the current one; 0: that is not known */
	bool		emptied[FANOUT_SEGMENTS];	/* unused, and yet to be truncated */
	bool		finished[FANOUT_SEGMENTS];	/* it is not the current one, and its tasks have all ended */
} SegmentMap;

/* Why a segment whose time has come is kept. */
typedef enum KeptReason
{
	KEPT_NOT,
	KEPT_UNFINISHED,			/* these four: too many tasks that have to stay, and most of them for this */
	KEPT_RECENT,
	KEPT_FAILED,
	KEPT_KEY,
	KEPT_BATCH,
	KEPT_LOCKED,				/* somebody uses its tables */
	KEPT_SLOW,					/* what has to stay was not moved in time */
	KEPT_SNAPSHOT				/* emptied, and a snapshot from before that is still in use */
} KeptReason;

typedef struct SegmentKept
{
	KeptReason	reason;
	int64		tasks;			/* that have to stay, as far as they were counted */
	TimestampTz at;				/* when it was looked at last */
} SegmentKept;

/* A window that a refill reads for. */
typedef struct WindowRefill
{
	Window	   *window;
	int64		missed_key;		/* the first of its tasks that was left on disk meanwhile; WINDOW_UNBOUNDED: none */
	int64		missed_id;
} WindowRefill;

typedef enum DatabaseState
{
	DATABASE_FREE,
	DATABASE_STARTING,			/* known; memory is not to be relied on yet */
	DATABASE_READY
} DatabaseState;

typedef struct Database
{
	DatabaseState state;
	Oid			db;
	Oid			anchor;			/* OID of fanout.queue: tells one life of the extension from the next */

	PGPROC	   *keeper;			/* to wake it; NULL while there is none */
	int32		keeper_pid;
	TimestampTz keeper_wakes_at;	/* it will look by itself then */
	bool		keeper_wanted;
	bool		reload;			/* the tables were filled by other hands than ours: rebuild */
	int32		held_by;		/* pid of the backend whose command wants the database free of keepers */
	TimestampTz keeper_since;	/* when the last one signed on */
	int64		keeper_starts;	/* how many have, since the server started */
	int64		keeper_failures;	/* how many of them ended with an error */
	int32		failed_in_a_row;	/* the last ones, that have not come to the end of a turn */
	TimestampTz retention_failed_at;	/* when one last failed at what retention asks for; 0: none has */
	TimestampTz told_at;		/* when the log was last told of an error, */
	int			told_sqlstate;	/* and of which kind */
	TimestampTz failed_at;		/* the last one; 0: none */
	char		last_error[FANOUT_ERROR_LEN];

	/* Numbers below the ceiling may be handed out; the ceiling is durable. */
	int64		next_task;
	int64		task_ceiling;
	int64		task_need;
	int64		next_lease;
	int64		lease_ceiling;

	SegmentMap	segments;
	uint64		segments_version;	/* odd while they change: who reads them without the lock looks again */
	uint64		unsettled[FANOUT_SEGMENTS]; /* counts what may have made tasks of an older one unfinished again */
	SegmentKept kept[FANOUT_SEGMENTS];
	bool		next_segment_wanted;
	bool		segment_reopen_wanted;
	TimestampTz filled_at;		/* when others last did so; 0: not since the server started */
	bool		retention_changed;	/* of a queue, maybe */

	OrderedSet	expiry;			/* committed leases, by their end */
	ShortList	journal;		/* leases with something for the journal to write */
	int64		journal_count;
	dlist_head	result_waiters; /* Waiter.result_link */

	int64		dirty_joins[FANOUT_DIRTY_JOINS];	/* batches whose join wants a look */
	int32		dirty_join_count;
	bool		dirty_join_overflow;
	bool		cancelled_waits;	/* a task that was cancelled while it ran may wait again */
	TimestampTz next_deadline;	/* no task that waits has an earlier one, but for those the keeper looks at: */
	TimestampTz deadlines_at_work;	/* from here on; DT_NOEND: it is done with them */

	uint16		refill_serial;	/* odd while a refill reads: there is one at a time */
	bool		refill_void;	/* what that has read is not to be relied on */
	int32		refilling_count;
	WindowRefill refilling[FANOUT_REFILL_WINDOWS];	/* what it reads for, each from its bound on */
	ShortList	ended;			/* tombstones, kept while a refill reads */
	int64		changes;		/* of tasks that wait, committed since the server started */

	int64		refills;
	int64		evictions;
	int64		journaled;
	int64		expired;
	int64		retired;		/* segments, since the server started */
	int64		carried;		/* tasks that were moved from these to the next ones */
	TimestampTz retired_at;		/* the last one; 0: none since then */
	TimestampTz ready_since;
	int64		rebuilds;		/* begun ones */
	TimestampTz rebuild_began;
	int64		rebuild_time;	/* microseconds */
	int64		rebuilt_tasks;	/* unfinished ones that the last rebuild has met so far */
	int64		returns_until;	/* of return.c: when to look for who has not come back, by wait_clock(); 0: nobody is
								 * expected */
	int64		wakeups;		/* of waiters for work */
	int64		idle_wakeups;	/* those who then found nothing to take */
#ifdef FANOUT_CHECKED
	Recount		recount;
#endif
} Database;

/* A backend's place in the list of one queue's waiters. */
typedef struct WaitLink
{
	dlist_node	node;
	struct Waiter *waiter;
	int32		queue;			/* index of the Queue */
} WaitLink;

/* A backend that waits: for work of queues, or for results. */
typedef struct Waiter
{
	PGPROC	   *proc;
	Oid			db;
	WaitLink	links[FANOUT_WAIT_QUEUES];
	int32		link_count;		/* 0: stands in no queue's list */
	int64		since;			/* it waits for work, by wait_clock() */
	char		worker[FANOUT_NAME_LEN];
	Queue	   *woken_by;		/* it was woken for this queue and has not looked yet */

	Queue	   *returns_to;		/* it has given back permits of this one, and is expected to come for them */
	int32		returns;
	int64		returns_by;		/* by wait_clock() */

	bool		waits_for_results;
	dlist_node	result_link;
	int64		batch;			/* 0: for the tasks from first to last */
	int64		first_task;
	int64		last_task;
	int64		hits;
	int64		hits_wanted;
} Waiter;

typedef struct SharedState
{
	LWLock	   *lock;			/* the dispatcher lock */
	PGPROC	   *launcher;
	ConditionVariable changed;	/* a database became ready or lost its keeper, a ceiling moved, a queue is open */
	int64		free_tasks;
	int64		free_leases;
	int64		free_lanes;
	int64		free_limited_lanes;
	int64		free_groups;
	bool		has_strays;		/* a queue may have strays */
	bool		task_wanted;	/* a refill has found no memory for a task */
	int32		free_rate_entry;
	int64		free_rate_entries;
	int64		reserved;		/* pool entries of tasks of open transactions, of all queues */
	int64		spare;			/* those of tasks that may be left on disk, of all queues */
	int64		queue_generations;
	int64		free_workers;
	int64		free_uses;
	int32		queue_high;		/* queues at or above this index were never used */
	int32		database_high;
#ifdef FANOUT_CHECKED
	AuditState	audit;
	PointState	points[POINT_COUNT];
#endif
} SharedState;

extern SharedState *fanout_shared;
extern Queue *fanout_queues;
extern Database *fanout_databases;

/* settings */
extern int	fanout_max_tracked_tasks;
extern int	fanout_max_queues;
extern int	fanout_max_databases;
extern int	fanout_max_workers;
extern int	fanout_max_lanes;
extern int	fanout_max_limited_lanes;
extern int	fanout_max_rate_entries;
extern int	fanout_journal_interval;
extern int	fanout_max_wait;
extern int	fanout_retention;
extern int	fanout_keep_failed;

extern void shared_state_request(void);
extern void shared_state_startup(void);
extern void require_preload(void);

static inline void
dispatcher_lock(void)
{
	LWLockAcquire(fanout_shared->lock, LW_EXCLUSIVE);
}

/*
 * Who is woken runs at once, in place of the waker if all processors are busy,
 * and wants this lock first.  So latches are set only when it is free again,
 * else each wake-up would put two more processes to sleep.
 */
extern int	latches_to_set;
extern void set_latch_after_unlock(PGPROC *proc);
extern void set_latches(void);

static inline void
dispatcher_unlock(void)
{
	audit_memory();
	LWLockRelease(fanout_shared->lock);
	if (latches_to_set > 0)
		set_latches();
}

#define dispatcher_lock_held() LWLockHeldByMeInMode(fanout_shared->lock, LW_EXCLUSIVE)

/* Everything below expects the dispatcher lock to be held, and cannot throw. */

extern Database *database_find(Oid db);
extern Database *database_enter(Oid db);
extern void database_clear(Database *database);

extern Queue *queue_find(Oid db, int32 id);
extern Queue *queue_enter(Oid db, int32 id);

static inline Database *
database_of(const Queue *queue)
{
	return database_find(queue->db);
}

/* Does a refill read that may have a snapshot from before the task was changed? */
static inline bool
task_is_kept(const Task *task, const Database *database)
{
	return task->kept_for != 0 && task->kept_for == database->refill_serial;
}

/*
 * An element of a pool never moves, so who has met one may keep its address
 * as a hint: it still is this task, or this lease, if it says so.
 */
static inline bool
task_is(const Task *entry, Oid db, int64 task)
{
	return entry != NULL && entry->node.id == task && fanout_queues[entry->queue].db == db;
}

static inline bool
lease_is(const Lease *entry, Oid db, int64 lease)
{
	return entry != NULL && entry->node.id == lease && entry->db == db;
}

static inline Lane *
lane_of(const Task *task)
{
	return link_target(task->lane);
}

static inline Lease *
lease_of(const Task *task)
{
	return link_target(task->lease);
}

static inline Task *
task_of(const Lease *lease)
{
	return link_target(lease->task);
}

static inline Worker *
worker_of(const Lease *lease)
{
	return link_target(lease->worker);
}

static inline WorkerUse *
use_of(const Lease *lease)
{
	return link_target(lease->use);
}

extern Task *task_find(Oid db, int64 task);
extern Task *task_enter(Queue *queue, int64 task);
extern void task_free(Task *task);
extern void task_iterate(void (*visit) (Task *task, void *arg), void *arg);

extern Lease *lease_find(Oid db, int64 lease);
extern Lease *lease_enter(Oid db, int64 lease);
extern void lease_free(Lease *lease);
extern void lease_iterate(void (*visit) (Lease *lease, void *arg), void *arg);

extern Worker *worker_find(Oid db, const char *name);
extern Worker *worker_enter(Oid db, const char *name);
extern void worker_free(Worker *worker);
extern WorkerUse *worker_use_find(Worker *worker, int32 queue);
extern WorkerUse *worker_use_enter(Worker *worker, int32 queue);
extern void worker_use_free(WorkerUse *use);

#ifdef FANOUT_CHECKED
extern void worker_iterate(void (*visit) (Worker *worker, void *arg), void *arg);
extern void worker_use_iterate(void (*visit) (WorkerUse *use, void *arg), void *arg);
#endif

extern Waiter *waiter_of_backend(void);
extern Waiter *waiter_of(int32 i);
extern int32 waiters_count(void);
extern int32 waiters_most(void);
extern int32 backend_number(void);
extern int	backend_pid(int32 number);

#endif							/* FANOUT_SHARED_STATE_H */
