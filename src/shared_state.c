/*
 * shared_state.c
 *		The layout of shared memory, and its pools.
 *
 * All of it is allocated at server start and has a fixed size.  Elements of
 * the pools (pool.c), and of the server's own hash tables of fixed size that
 * have the workers, never move, so other structures link to them.  What is
 * looked for is looked for by number, what is ordered is linked by its own
 * nodes.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/shmem.h"
#include "utils/hsearch.h"

#include "lane.h"
#include "pool.h"
#include "room.h"
#include "shared_state.h"
#include "strays.h"
#include "window.h"

SharedState *fanout_shared = NULL;
char	   *link_base = NULL;
Queue	   *fanout_queues = NULL;
Database   *fanout_databases = NULL;

static Pool task_pool;
static Pool lease_pool;
static HTAB *worker_pool = NULL;
static HTAB *worker_use_pool = NULL;
static Waiter *waiters = NULL;

/* Latches to be set when this backend lets go of the lock: set_latch_after_unlock(). */
#define LATCHES_MOST	64

int			latches_to_set = 0;
static Latch *latches[LATCHES_MOST];

/* An auxiliary process never waits in our functions; the margin is for what servers after 15 add. */
#define WAITER_COUNT	(MaxBackends + 64)

static Size
queues_size(void)
{
	return mul_size(fanout_max_queues, sizeof(Queue));
}

static Size
databases_size(void)
{
	return mul_size(fanout_max_databases, sizeof(Database));
}

static Size
waiters_size(void)
{
	return mul_size(WAITER_COUNT, sizeof(Waiter));
}

/* Have the process wake when the lock is free again.  Under the lock. */
void
set_latch_after_unlock(PGPROC *proc)
{
	Assert(dispatcher_lock_held());

	if (latches_to_set < LATCHES_MOST)
		latches[latches_to_set++] = &proc->procLatch;
	else
		SetLatch(&proc->procLatch);
}

/* The process may have ended since: then whoever has its place is woken for nothing, as may happen with any latch. */
void
set_latches(void)
{
	for (int i = 0; i < latches_to_set; i++)
		SetLatch(latches[i]);
	latches_to_set = 0;
}

/* Ask for memory and the lock: for shmem_request_hook. */
void
shared_state_request(void)
{
	Size		size = sizeof(SharedState);

	size = add_size(size, queues_size());
	size = add_size(size, databases_size());
	size = add_size(size, waiters_size());
	size = add_size(size, rate_pool_size());
	size = add_size(size, pool_size(fanout_max_tracked_tasks, sizeof(Task)));
	size = add_size(size, pool_size(fanout_max_tracked_tasks, sizeof(Lease)));
	size = add_size(size, lane_pools_size());
	size = add_size(size, hash_estimate_size(fanout_max_workers, sizeof(Worker)));
	size = add_size(size, hash_estimate_size(mul_size(fanout_max_workers, 2), sizeof(WorkerUse)));
	if (size > LINK_REACH)
		ereport(FATAL,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("pg_fanout would need more than 16 GB of shared memory"),
				 errhint("Lower pg_fanout.max_tracked_tasks, pg_fanout.max_lanes or pg_fanout.max_limited_lanes.")));
	RequestAddinShmemSpace(size);
	RequestNamedLWLockTranche("pg_fanout", 1);
}

/*
 * The hash of a number that counts up.  What is at work at one time has numbers
 * that are close together: it is found in neighbouring buckets, on few pages of
 * memory, and seldom are two in the same one.
 */
static uint32
hash_number(int64 number, Oid db)
{
	return (uint32) number ^ (uint32) ((uint64) number >> 32) ^ db * 0x9e3779b9U;
}

static uint32
hash_task(const Task *task)
{
	return hash_number(task->node.id, fanout_queues[task->queue].db);
}

static uint32
hash_lease(const Lease *lease)
{
	return hash_number(lease->node.id, lease->db);
}

static HTAB *
create_table(const char *name, int64 count, Size keysize, Size entrysize)
{
	HASHCTL		info;

	memset(&info, 0, sizeof(info));
	info.keysize = keysize;
	info.entrysize = entrysize;
	return ShmemInitHash(name, count, count, &info, HASH_ELEM | HASH_FIXED_SIZE | HASH_BLOBS);
}

/* Lay the memory out, or attach to it: for shmem_startup_hook. */
void
shared_state_startup(void)
{
	void	   *rate_entries;
	bool		found;

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);

	fanout_shared = ShmemInitStruct("pg_fanout state", sizeof(SharedState), &found);
	link_base = (char *) fanout_shared;
	fanout_queues = ShmemInitStruct("pg_fanout queues", queues_size(), &found);
	fanout_databases = ShmemInitStruct("pg_fanout databases", databases_size(), &found);
	waiters = ShmemInitStruct("pg_fanout waiters", waiters_size(), &found);
	pool_attach(&task_pool, "pg_fanout tasks", fanout_max_tracked_tasks, sizeof(Task));
	pool_attach(&lease_pool, "pg_fanout leases", fanout_max_tracked_tasks, sizeof(Lease));
	lane_pools_attach();
	worker_pool = create_table("pg_fanout workers", fanout_max_workers, sizeof(WorkerKey), sizeof(Worker));
	worker_use_pool = create_table("pg_fanout worker uses", (int64) fanout_max_workers * 2,
								   sizeof(WorkerUseKey), sizeof(WorkerUse));

	if (!found)
	{
		memset(fanout_shared, 0, sizeof(SharedState));
		memset(fanout_queues, 0, queues_size());
		memset(fanout_databases, 0, databases_size());
		memset(waiters, 0, waiters_size());
		fanout_shared->lock = &(GetNamedLWLockTranche("pg_fanout"))->lock;
		ConditionVariableInit(&fanout_shared->changed);
		fanout_shared->free_tasks = fanout_max_tracked_tasks;
		fanout_shared->free_leases = fanout_max_tracked_tasks;
		fanout_shared->free_lanes = fanout_max_lanes;
		fanout_shared->free_limited_lanes = fanout_max_limited_lanes;
		fanout_shared->free_groups = max_groups();
		fanout_shared->free_workers = fanout_max_workers;
		fanout_shared->free_uses = (int64) fanout_max_workers * 2;
	}

	rate_entries = ShmemInitStruct("pg_fanout rate entries", rate_pool_size(), &found);
	rate_pool_init(rate_entries, found);

	LWLockRelease(AddinShmemInitLock);
}

/* Throw unless the library was preloaded. */
void
require_preload(void)
{
	if (fanout_shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_fanout is not preloaded"),
				 errhint("Add pg_fanout to shared_preload_libraries and restart the server.")));
}

Database *
database_find(Oid db)
{
	for (int i = 0; i < fanout_shared->database_high; i++)
	{
		if (fanout_databases[i].state != DATABASE_FREE && fanout_databases[i].db == db)
			return &fanout_databases[i];
	}
	return NULL;
}

/* The database's slot, made if there is none yet; NULL if all are taken. */
Database *
database_enter(Oid db)
{
	Database   *database = database_find(db);

	if (database != NULL)
		return database;

	for (int i = 0; i < fanout_max_databases; i++)
	{
		database = &fanout_databases[i];
		if (database->state != DATABASE_FREE)
			continue;

		memset(database, 0, sizeof(Database));
		database->state = DATABASE_STARTING;
		database->db = db;
		order_init(&database->expiry);
		database->next_deadline = database->deadlines_at_work = DT_NOEND;
		dlist_init(&database->result_waiters);
		fanout_shared->database_high = Max(fanout_shared->database_high, i + 1);
		return database;
	}
	return NULL;
}

static void
free_lease_of(Lease *lease, void *database)
{
	if (lease->db == ((Database *) database)->db)
		lease_free(lease);
}

static void
free_task_of(Task *task, void *database)
{
	if (fanout_queues[task->queue].db == ((Database *) database)->db)
		task_free(task);
}

/* Free everything in memory that belongs to the database; its slot stays, as STARTING. */
void
database_clear(Database *database)
{
	HASH_SEQ_STATUS scan;
	WorkerUse  *use;
	Worker	   *worker;

	database->state = DATABASE_STARTING;
	order_init(&database->expiry);
	dlist_init(&database->result_waiters);
	database->journal.first = database->ended.first = 0;
	database->refill_serial += database->refill_serial & 1; /* whoever was reading is gone */
	window_forget_refills(database);
	database->journal_count = 0;
	database->dirty_join_count = 0;
	database->dirty_join_overflow = false;
	database->next_deadline = database->deadlines_at_work = DT_NOEND;

	lease_iterate(free_lease_of, database);
	task_iterate(free_task_of, database);
	hash_seq_init(&scan, worker_use_pool);
	while ((use = hash_seq_search(&scan)) != NULL)
	{
		if (use->key.worker->key.db == database->db)
			worker_use_free(use);
	}
	hash_seq_init(&scan, worker_pool);
	while ((worker = hash_seq_search(&scan)) != NULL)
	{
		if (worker->key.db == database->db)
			worker_free(worker);
	}

	for (int i = 0; i < WAITER_COUNT; i++)
	{
		Waiter	   *waiter = &waiters[i];

		if (waiter->db != database->db)
			continue;
		waiter->returns_to = NULL;
		waiter->returns = 0;
		if (waiter->proc == NULL)
			continue;
		waiter->link_count = 0;
		waiter->woken_by = NULL;
		waiter->waits_for_results = false;
		set_latch_after_unlock(waiter->proc);
	}
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state == QUEUE_FREE || queue->db != database->db)
			continue;
		fanout_shared->reserved -= queue->reserved;
		fanout_shared->spare -= queue->spare;
		queue_clear_lanes(queue);
		queue->state = QUEUE_FREE;
	}
	lanes_freed();
}

Queue *
queue_find(Oid db, int32 id)
{
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state != QUEUE_FREE && queue->id == id && queue->db == db)
			return queue;
	}
	return NULL;
}

/* A new slot for the queue, as NEW; NULL if all are taken.  Settings are the caller's to fill in. */
Queue *
queue_enter(Oid db, int32 id)
{
	for (int i = 0; i < fanout_max_queues; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state != QUEUE_FREE)
			continue;

		memset(queue, 0, sizeof(Queue));
		queue->state = QUEUE_NEW;
		queue->db = db;
		queue->id = id;
		queue->generation = ++fanout_shared->queue_generations;
		queue->main.turn.queue = i;
		window_init(&queue->main.ready);
		window_init(&queue->strays);
		window_init(&queue->scheduled);
		dlist_init(&queue->waiters);
		fanout_shared->queue_high = Max(fanout_shared->queue_high, i + 1);
		return queue;
	}
	return NULL;
}

Task *
task_find(Oid db, int64 task)
{
	Task	   *entry = pool_bucket(&task_pool, hash_number(task, db));

	while (entry != NULL && !task_is(entry, db, task))
		entry = link_target(entry->next);
	return entry;
}

/*
 * A pool entry for a task that is not in memory, zeroed but for its id and its
 * queue; NULL if the pool is used up.  Should the task be in memory after all,
 * its entry is left alone, as it is linked to others: NULL, too.
 */
Task *
task_enter(Queue *queue, int64 task)
{
	Task	   *entry = task_find(queue->db, task);

	Assert(entry == NULL);
	if (entry != NULL || fanout_shared->free_tasks == 0)
		return NULL;
	entry = pool_enter(&task_pool, hash_number(task, queue->db));
	entry->node.id = task;
	entry->queue = queue - fanout_queues;
	fanout_shared->free_tasks--;
	return entry;
}

void
task_free(Task *task)
{
	pool_free(&task_pool, hash_task(task), task);
	fanout_shared->free_tasks++;
	if (fanout_shared->task_wanted)
		tasks_freed();
}

/* Call "visit" for every task in memory; it may free the task that it is given. */
void
task_iterate(void (*visit) (Task *task, void *arg), void *arg)
{
	Task	   *task;

	for (int32 i = 0; (task = pool_element(&task_pool, i)) != NULL; i++)
	{
		if (task->node.id != 0)
			visit(task, arg);
	}
}

Lease *
lease_find(Oid db, int64 lease)
{
	Lease	   *entry = pool_bucket(&lease_pool, hash_number(lease, db));

	while (entry != NULL && !lease_is(entry, db, lease))
		entry = link_target(entry->next);
	return entry;
}

Lease *
lease_enter(Oid db, int64 lease)
{
	Lease	   *entry = lease_find(db, lease);

	Assert(entry == NULL);
	if (entry != NULL || fanout_shared->free_leases == 0)
		return NULL;
	entry = pool_enter(&lease_pool, hash_number(lease, db));
	entry->node.id = lease;
	entry->db = db;
	fanout_shared->free_leases--;
	return entry;
}

void
lease_free(Lease *lease)
{
	pool_free(&lease_pool, hash_lease(lease), lease);
	fanout_shared->free_leases++;
}

/* Call "visit" for every lease of the server; it may free the lease that it is given. */
void
lease_iterate(void (*visit) (Lease *lease, void *arg), void *arg)
{
	Lease	   *lease;

	for (int32 i = 0; (lease = pool_element(&lease_pool, i)) != NULL; i++)
	{
		if (lease->node.id != 0)
			visit(lease, arg);
	}
}

/* Keys of the server's own hash tables are compared as bytes: what is left of them is zero. */
static WorkerKey
worker_key(Oid db, const char *name)
{
	WorkerKey	key;

	memset(&key, 0, sizeof(key));
	strlcpy(key.name, name, sizeof(key.name));
	key.db = db;
	return key;
}

Worker *
worker_find(Oid db, const char *name)
{
	WorkerKey	key = worker_key(db, name);

	return hash_search(worker_pool, &key, HASH_FIND, NULL);
}

/* The worker, entered if it is not known yet; NULL if the pool is used up. */
Worker *
worker_enter(Oid db, const char *name)
{
	WorkerKey	key = worker_key(db, name);
	Worker	   *worker = hash_search(worker_pool, &key, HASH_FIND, NULL);

	if (worker != NULL || fanout_shared->free_workers == 0)
		return worker;
	worker = hash_search(worker_pool, &key, HASH_ENTER_NULL, NULL);
	worker->leases.first = 0;
	worker->lease_count = 0;
	worker->ended_count = 0;
	fanout_shared->free_workers--;
	return worker;
}

void
worker_free(Worker *worker)
{
	WorkerKey	key = worker->key;

	hash_search(worker_pool, &key, HASH_REMOVE, NULL);
	fanout_shared->free_workers++;
}

static WorkerUseKey
worker_use_key(Worker *worker, int32 queue)
{
	WorkerUseKey key = {.worker = worker, .queue = queue, .zero = 0};

	return key;
}

WorkerUse *
worker_use_find(Worker *worker, int32 queue)
{
	WorkerUseKey key = worker_use_key(worker, queue);

	return hash_search(worker_use_pool, &key, HASH_FIND, NULL);
}

WorkerUse *
worker_use_enter(Worker *worker, int32 queue)
{
	WorkerUseKey key = worker_use_key(worker, queue);
	WorkerUse  *use = hash_search(worker_use_pool, &key, HASH_FIND, NULL);

	if (use != NULL || fanout_shared->free_uses == 0)
		return use;
	use = hash_search(worker_use_pool, &key, HASH_ENTER_NULL, NULL);
	use->leases = 0;
	use->running = 0;
	fanout_shared->free_uses--;
	return use;
}

void
worker_use_free(WorkerUse *use)
{
	WorkerUseKey key = use->key;

	hash_search(worker_use_pool, &key, HASH_REMOVE, NULL);
	fanout_shared->free_uses++;
}

#ifdef FANOUT_CHECKED
void
worker_iterate(void (*visit) (Worker *worker, void *arg), void *arg)
{
	HASH_SEQ_STATUS scan;
	Worker	   *worker;

	hash_seq_init(&scan, worker_pool);
	while ((worker = hash_seq_search(&scan)) != NULL)
		visit(worker, arg);
}

void
worker_use_iterate(void (*visit) (WorkerUse *use, void *arg), void *arg)
{
	HASH_SEQ_STATUS scan;
	WorkerUse  *use;

	hash_seq_init(&scan, worker_use_pool);
	while ((use = hash_seq_search(&scan)) != NULL)
		visit(use, arg);
}
#endif

/* The waiter of this backend. */
Waiter *
waiter_of_backend(void)
{
	return &waiters[MyProc - ProcGlobal->allProcs];
}

/* One of the WAITER_COUNT there are. */
Waiter *
waiter_of(int32 i)
{
	return &waiters[i];
}

/* How many backends wait, for work or results; and how many can. */
int32
waiters_count(void)
{
	int32		count = 0;

	for (int i = 0; i < WAITER_COUNT; i++)
		count += waiters[i].link_count > 0 || waiters[i].waits_for_results;
	return count;
}

int32
waiters_most(void)
{
	return MaxBackends;
}

/* This backend, as long as it lives; not 0. */
int32
backend_number(void)
{
	return MyProc - ProcGlobal->allProcs + 1;
}

int
backend_pid(int32 number)
{
	return number != 0 ? ProcGlobal->allProcs[number - 1].pid : 0;
}
