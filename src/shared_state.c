/*
 * shared_state.c
 *		The layout of shared memory, and its pools.
 *
 * All of it is allocated at server start and has a fixed size.  The pools of
 * tasks, leases and workers are the server's own hash tables of fixed size:
 * their elements never move, so other structures point to them.  What is
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
#include "shared_state.h"
#include "window.h"

SharedState *fanout_shared = NULL;
char	   *link_base = NULL;
Queue	   *fanout_queues = NULL;
Database   *fanout_databases = NULL;

static HTAB *task_pool = NULL;
static HTAB *lease_pool = NULL;
static Pool lane_pool;
static Pool limits_pool;
static Pool group_pool;
static HTAB *worker_pool = NULL;
static HTAB *worker_use_pool = NULL;
static Waiter *waiters = NULL;

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

/* Fair groups that are kept: most lanes are in none, or share one with others. */
int
max_groups(void)
{
	return Max(fanout_max_lanes / 32, 4);
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
	size = add_size(size, hash_estimate_size(fanout_max_tracked_tasks, sizeof(Task)));
	size = add_size(size, hash_estimate_size(fanout_max_tracked_tasks, sizeof(Lease)));
	size = add_size(size, pool_size(fanout_max_lanes, sizeof(Lane)));
	size = add_size(size, pool_size(fanout_max_limited_lanes, sizeof(LaneLimits)));
	size = add_size(size, pool_size(max_groups(), sizeof(FairGroup)));
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
hash_task(const void *key, Size keysize)
{
	return hash_number(((const TaskKey *) key)->task, ((const TaskKey *) key)->db);
}

static uint32
hash_lease(const void *key, Size keysize)
{
	return hash_number(((const LeaseKey *) key)->lease, ((const LeaseKey *) key)->db);
}

/* Without a function of its own, the hash is one of the key's bytes. */
static HTAB *
create_pool(const char *name, int64 count, Size keysize, Size entrysize, HashValueFunc hash)
{
	HASHCTL		info;

	memset(&info, 0, sizeof(info));
	info.keysize = keysize;
	info.entrysize = entrysize;
	info.hash = hash;
	return ShmemInitHash(name, count, count, &info,
						 HASH_ELEM | HASH_FIXED_SIZE | (hash != NULL ? HASH_FUNCTION : HASH_BLOBS));
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
	task_pool = create_pool("pg_fanout tasks", fanout_max_tracked_tasks, sizeof(TaskKey), sizeof(Task), hash_task);
	lease_pool = create_pool("pg_fanout leases", fanout_max_tracked_tasks, sizeof(LeaseKey), sizeof(Lease), hash_lease);
	pool_attach(&lane_pool, "pg_fanout lanes", fanout_max_lanes, sizeof(Lane));
	pool_attach(&limits_pool, "pg_fanout limited lanes", fanout_max_limited_lanes, sizeof(LaneLimits));
	pool_attach(&group_pool, "pg_fanout fair groups", max_groups(), sizeof(FairGroup));
	worker_pool = create_pool("pg_fanout workers", fanout_max_workers, sizeof(WorkerKey), sizeof(Worker), NULL);
	worker_use_pool = create_pool("pg_fanout worker uses", (int64) fanout_max_workers * 2,
								  sizeof(WorkerUseKey), sizeof(WorkerUse), NULL);

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
		dlist_init(&database->journal);
		dlist_init(&database->result_waiters);
		fanout_shared->database_high = Max(fanout_shared->database_high, i + 1);
		return database;
	}
	return NULL;
}

/* Free everything in memory that belongs to the database; its slot stays, as STARTING. */
void
database_clear(Database *database)
{
	HASH_SEQ_STATUS scan;
	Task	   *task;
	Lease	   *lease;
	WorkerUse  *use;
	Worker	   *worker;

	database->state = DATABASE_STARTING;
	order_init(&database->expiry);
	dlist_init(&database->journal);
	dlist_init(&database->result_waiters);
	database->ended.first = 0;
	database->refill_serial += database->refill_serial & 1; /* whoever was reading is gone */
	database->refilling = NULL;
	database->journal_count = 0;
	database->dirty_join_count = 0;
	database->dirty_join_overflow = false;
	database->next_deadline = database->deadlines_at_work = DT_NOEND;

	hash_seq_init(&scan, lease_pool);
	while ((lease = hash_seq_search(&scan)) != NULL)
	{
		if (lease->key.db == database->db)
			lease_free(lease);
	}
	hash_seq_init(&scan, task_pool);
	while ((task = hash_seq_search(&scan)) != NULL)
	{
		if (task->key.db == database->db)
			task_free(task);
	}
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

		if (waiter->db != database->db || waiter->proc == NULL)
			continue;
		waiter->link_count = 0;
		waiter->woken_by = NULL;
		waiter->waits_for_results = false;
		SetLatch(&waiter->proc->procLatch);
	}
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];

		if (queue->state == QUEUE_FREE || queue->db != database->db)
			continue;
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

/*
 * The keys of tasks and leases are padded with a zero by hand, and worker
 * names are filled up with zeros: the hash tables compare bytes.
 */
static TaskKey
task_key(Oid db, int64 task)
{
	TaskKey		key = {.task = task, .db = db, .zero = 0};

	return key;
}

Task *
task_find(Oid db, int64 task)
{
	TaskKey		key = task_key(db, task);

	return hash_search(task_pool, &key, HASH_FIND, NULL);
}

/*
 * A pool entry for a task that is not in memory, zeroed but for its key; NULL
 * if the pool is used up.  Should the task be in memory after all, its entry
 * is left alone, as it is linked to others: NULL, too.
 */
Task *
task_enter(Oid db, int64 task)
{
	TaskKey		key = task_key(db, task);
	Task	   *entry;
	bool		found;

	if (fanout_shared->free_tasks == 0)
		return NULL;
	entry = hash_search(task_pool, &key, HASH_ENTER_NULL, &found);
	Assert(entry != NULL && !found);
	if (entry == NULL || found)
		return NULL;
	memset((char *) entry + sizeof(TaskKey), 0, sizeof(Task) - sizeof(TaskKey));
	entry->node.id = task;
	fanout_shared->free_tasks--;
	return entry;
}

void
task_free(Task *task)
{
	TaskKey		key = task->key;

	hash_search(task_pool, &key, HASH_REMOVE, NULL);
	task->key.task = 0;			/* for task_is() */
	fanout_shared->free_tasks++;
}

/* Call "visit" for every task in memory; it may free the task that it is given. */
void
task_iterate(void (*visit) (Task *task, void *arg), void *arg)
{
	HASH_SEQ_STATUS scan;
	Task	   *task;

	hash_seq_init(&scan, task_pool);
	while ((task = hash_seq_search(&scan)) != NULL)
		visit(task, arg);
}

static LeaseKey
lease_key(Oid db, int64 lease)
{
	LeaseKey	key = {.lease = lease, .db = db, .zero = 0};

	return key;
}

Lease *
lease_find(Oid db, int64 lease)
{
	LeaseKey	key = lease_key(db, lease);

	return hash_search(lease_pool, &key, HASH_FIND, NULL);
}

Lease *
lease_enter(Oid db, int64 lease)
{
	LeaseKey	key = lease_key(db, lease);
	Lease	   *entry;
	bool		found;

	if (fanout_shared->free_leases == 0)
		return NULL;
	entry = hash_search(lease_pool, &key, HASH_ENTER_NULL, &found);
	Assert(entry != NULL && !found);
	if (entry == NULL || found)
		return NULL;
	memset((char *) entry + sizeof(LeaseKey), 0, sizeof(Lease) - sizeof(LeaseKey));
	entry->node.id = lease;
	fanout_shared->free_leases--;
	return entry;
}

void
lease_free(Lease *lease)
{
	LeaseKey	key = lease->key;

	hash_search(lease_pool, &key, HASH_REMOVE, NULL);
	lease->key.lease = 0;		/* for lease_is() */
	fanout_shared->free_leases++;
}

/* Call "visit" for every lease of the server; it may free the lease that it is given. */
void
lease_iterate(void (*visit) (Lease *lease, void *arg), void *arg)
{
	HASH_SEQ_STATUS scan;
	Lease	   *lease;

	hash_seq_init(&scan, lease_pool);
	while ((lease = hash_seq_search(&scan)) != NULL)
		visit(lease, arg);
}

static uint32
hash_in_queue(const Queue *queue, int64 number)
{
	return (uint32) number ^ (uint32) ((uint64) number >> 32) ^ (uint32) (queue - fanout_queues) * 0x9e3779b9U;
}

Lane *
lane_find(Queue *queue, int64 partition)
{
	Lane	   *lane;

	if (partition == 0)
		return &queue->main;
	lane = pool_bucket(&lane_pool, hash_in_queue(queue, partition));
	while (lane != NULL && (lane->partition != partition || queue_of_lane(lane) != queue))
		lane = link_target(lane->next);
	return lane;
}

/* The lane, entered if it is not known yet; NULL if the pool is used up. */
Lane *
lane_enter(Queue *queue, int64 partition)
{
	Lane	   *lane = lane_find(queue, partition);

	if (lane != NULL || fanout_shared->free_lanes == 0)
		return lane;
	lane = pool_enter(&lane_pool, hash_in_queue(queue, partition));
	lane->partition = partition;
	lane->turn.queue = queue - fanout_queues;
	window_init(&lane->ready);
	short_list_push_tail(&queue->lanes, &lane->link);
	queue->lane_count++;
	fanout_shared->free_lanes--;
	return lane;
}

void
lane_free(Lane *lane)
{
	Queue	   *queue = queue_of_lane(lane);
	LaneLimits *limits = lane_limits(lane);

	Assert(lane->partition != 0);
	if (limits != NULL)
		lane_limits_free(limits);
	if (queue->walk == link_to(&lane->link))
		queue->walk = queue->lanes.first != queue->walk ? lane->link.previous : 0;
	short_list_delete(&queue->lanes, &lane->link);
	queue->lane_count--;
	pool_free(&lane_pool, hash_in_queue(queue, lane->partition), lane);
	fanout_shared->free_lanes++;
}

/* Another of the queue's lanes, of which there must be one, with each call. */
Lane *
queue_walk_lanes(Queue *queue)
{
	ShortNode  *node = link_target(queue->walk);

	if (node != NULL)
		node = short_list_next(&queue->lanes, node);
	if (node == NULL)
		node = short_list_first(&queue->lanes);
	queue->walk = link_to(node);
	return link_container(Lane, link, node);
}

/* The queue goes, and nothing reads for it any more. */
void
queue_clear_lanes(Queue *queue)
{
	rate_log_free(&queue->rate_log);
	if (queue->refilling > 0)
		database_of(queue)->refilling = NULL;
	while (!short_list_is_empty(&queue->lanes))
	{
		Lane	   *lane = link_container(Lane, link, short_list_first(&queue->lanes));
		FairGroup  *group = group_of(lane);

		if (group != NULL && --group->lane_count == 0)
			group_free(group);
		lane_free(lane);
	}
}

/* Lanes are found by their places: most have no limits, and so no link to them. */
static uint32
hash_lane(const Lane *lane)
{
	return link_to(lane) / (sizeof(Lane) / LINK_UNIT);
}

LaneLimits *
lane_limits(const Lane *lane)
{
	LaneLimits *limits;

	if (!lane->limited)
		return NULL;
	limits = pool_bucket(&limits_pool, hash_lane(lane));
	while (limits->lane != link_to(lane))
		limits = link_target(limits->next);
	return limits;
}

/* Those of a lane that has none yet; NULL if the pool is used up. */
LaneLimits *
lane_limits_enter(Lane *lane)
{
	LaneLimits *limits = pool_enter(&limits_pool, hash_lane(lane));

	Assert(!lane->limited && lane->partition != 0);
	if (limits == NULL)
		return NULL;
	limits->lane = link_to(lane);
	limits->settings.weight = 1;
	lane->limited = true;
	fanout_shared->free_limited_lanes--;
	return limits;
}

void
lane_limits_free(LaneLimits *limits)
{
	Lane	   *lane = link_target(limits->lane);

	rate_log_free(&limits->rate_log);
	lane->limited = false;
	pool_free(&limits_pool, hash_lane(lane), limits);
	fanout_shared->free_limited_lanes++;
}

FairGroup *
group_find(Queue *queue, int64 number)
{
	FairGroup  *group = pool_bucket(&group_pool, hash_in_queue(queue, number));

	while (group != NULL && (group->number != number || group->turn.queue != queue - fanout_queues))
		group = link_target(group->next);
	return group;
}

/* A group that is not known yet, without lanes; NULL if the pool is used up. */
FairGroup *
group_enter(Queue *queue, int64 number)
{
	FairGroup  *group = pool_enter(&group_pool, hash_in_queue(queue, number));

	if (group == NULL)
		return NULL;
	group->number = number;
	group->turn.queue = queue - fanout_queues;
	group->turn.shared = true;
	fanout_shared->free_groups--;
	return group;
}

void
group_free(FairGroup *group)
{
	pool_free(&group_pool, hash_in_queue(&fanout_queues[group->turn.queue], group->number), group);
	fanout_shared->free_groups++;
}

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
	dlist_init(&worker->leases);
	worker->lease_count = 0;
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
