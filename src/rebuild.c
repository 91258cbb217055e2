/*
 * rebuild.c
 *		Memory from the tables: all of it at start, windows later on.
 *
 * At start nobody else uses the database's part of memory: every function
 * waits until it is ready.  So a rebuild is three plain scans: queues; the
 * attempts of unfinished tasks, from which follow leases, counts and times;
 * the unfinished tasks themselves.
 *
 * A refill happens while everybody works; window.c says what makes that safe.
 * Three things may be met on the way: a task that is in memory (it is left
 * alone), one that has ended since the snapshot was taken (there is a
 * tombstone of it in memory), and a queue that was purged or dropped
 * meanwhile (its epoch has changed, and what was read is thrown away).
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/hsearch.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "dispatch.h"
#include "ids.h"
#include "lane.h"
#include "partitions.h"
#include "queue_settings.h"
#include "rebuild.h"
#include "registry.h"
#include "spi.h"
#include "wait.h"
#include "window.h"

#define REBUILD_FETCH	10000
#define ATTEMPTED_CHUNK	1000
#define REFILL_LEAST	64
#define REFILL_MOST		8192
#define REFILL_URGENT	16
#define REFILL_PARTITION	64	/* tasks of one partition */
#define REFILL_PARTITIONS	64

#define UNFINISHED " NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = t.id) "
#define EARLY_JOIN " (t.batch IS NOT NULL AND EXISTS (SELECT FROM fanout.batch b WHERE b.id = t.batch AND b.join_policy <> 'all')) "
#define SEED_COLUMNS " t.id, t.ctid, coalesce(t.priority, 0), t.run_at, t.batch, t.max_attempts, coalesce(t.lane, 0), coalesce(t.cost, 1)," EARLY_JOIN

static SpiStatement select_queues = {
	"SELECT id, " QUEUE_SETTINGS_COLUMNS " FROM fanout.queue", 0, {0}
};
static SpiStatement select_attempts = {
	"SELECT a.task, a.lease, a.event, a.at, a.until, a.worker FROM fanout.attempt a"
	" WHERE NOT EXISTS (SELECT FROM fanout.outcome o WHERE o.task = a.task)"
	" ORDER BY a.task, a.at, a.lease", 0, {0}
};
static SpiStatement select_unfinished = {
	"SELECT" SEED_COLUMNS ", t.queue FROM fanout.task t WHERE" UNFINISHED, 0, {0}
};

static SpiStatement select_attempted = {
	"SELECT" SEED_COLUMNS ", t.queue FROM fanout.task t WHERE t.id = ANY ($1) AND" UNFINISHED, 1, {INT8ARRAYOID}
};

/* A start that was not journaled before it ended is known from its end. */
static SpiStatement select_starts = {
	"SELECT t.queue, coalesce(t.lane, 0), min(s.at), coalesce(t.cost, 1)"
	"  FROM (SELECT task, lease, at FROM fanout.attempt WHERE event IN ('c', 'b', 'f', 'r', 'x') AND at > $1"
	"        UNION ALL SELECT task, lease, claimed_at FROM fanout.outcome WHERE claimed_at > $1) s"
	"  JOIN fanout.task t ON t.id = s.task WHERE t.queue = ANY ($2)"
	" GROUP BY t.queue, t.lane, t.cost, s.task, s.lease ORDER BY 3",
	2, {TIMESTAMPTZOID, INT4ARRAYOID}
};

/* The order of the main lane is that of three scans: priorities below, at and above the usual one. */
static SpiStatement refill_below = {
	"SELECT" SEED_COLUMNS "FROM fanout.task t WHERE t.queue = $1 AND t.lane IS NULL AND t.priority < 0"
	" AND (t.priority, t.id) >= ($2, $3) AND t.run_at IS NULL AND" UNFINISHED
	"ORDER BY t.priority, t.id LIMIT $4", 4, {INT4OID, INT4OID, INT8OID, INT8OID}
};
static SpiStatement refill_usual = {
	"SELECT" SEED_COLUMNS "FROM fanout.task t WHERE t.queue = $1 AND t.lane IS NULL AND t.priority IS NULL AND $2 = 0"
	" AND t.id >= $3 AND t.run_at IS NULL AND" UNFINISHED
	"ORDER BY t.id LIMIT $4", 4, {INT4OID, INT4OID, INT8OID, INT8OID}
};
static SpiStatement refill_above = {
	"SELECT" SEED_COLUMNS "FROM fanout.task t WHERE t.queue = $1 AND t.lane IS NULL AND t.priority > 0"
	" AND (t.priority, t.id) >= ($2, $3) AND t.run_at IS NULL AND" UNFINISHED
	"ORDER BY t.priority, t.id LIMIT $4", 4, {INT4OID, INT4OID, INT8OID, INT8OID}
};
static SpiStatement refill_partition = {
	"SELECT" SEED_COLUMNS "FROM fanout.task t WHERE t.queue = $1 AND t.lane = $5"
	" AND (coalesce(t.priority, 0), t.id) >= ($2, $3) AND t.run_at IS NULL AND" UNFINISHED
	"ORDER BY coalesce(t.priority, 0), t.id LIMIT $4", 5, {INT4OID, INT4OID, INT8OID, INT8OID, INT8OID}
};
static SpiStatement refill_strays = {
	"SELECT" SEED_COLUMNS "FROM fanout.task t WHERE t.queue = $1 AND t.lane IS NOT NULL AND $2 = 0"
	" AND t.id >= $3 AND t.run_at IS NULL AND" UNFINISHED
	"ORDER BY t.id LIMIT $4", 4, {INT4OID, INT4OID, INT8OID, INT8OID}
};
static SpiStatement refill_timed = {
	"SELECT" SEED_COLUMNS "FROM fanout.task t WHERE t.queue = $1"
	" AND t.run_at IS NOT NULL AND (t.run_at, t.id) >= ($2, $3) AND" UNFINISHED
	"ORDER BY t.run_at, t.id LIMIT $4", 4, {INT4OID, TIMESTAMPTZOID, INT8OID, INT8OID}
};

/* What the journal says of an unfinished task. */
typedef struct History
{
	int64		task;			/* the key */
	int			attempts;
	int64		last_lease;		/* the one that was counted last */
	int64		running;		/* 0: no lease is open */
	bool		bound;
	TimestampTz claimed_at;
	TimestampTz until;
	TimestampTz due;			/* 0: at once */
	char		worker[FANOUT_NAME_LEN];
} History;

static void
load_queues(Database *database)
{
	SpiScope	scope;
	uint64		rows;

	spi_begin(&scope);
	rows = spi_read_latest(&select_queues, NULL, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		int32		id = DatumGetInt32(spi_value(i, 1, &isnull));
		QueueSettings settings = queue_settings_read(i, 2);
		Queue	   *queue;

		dispatcher_lock();
		queue = queue_enter(database->db, id);
		if (queue != NULL)
		{
			queue->settings = settings;
			queue->state = QUEUE_OPEN;
		}
		dispatcher_unlock();
		if (queue == NULL)
			ereport(WARNING,
					(errmsg("pg_fanout has no place in memory for a queue"),
					 errhint("Raise pg_fanout.max_queues and restart the server.")));
	}
	spi_end(&scope);
}

/* The longest window of the queue's rate limits, or 0 if it has none. */
static int64
longest_window(const Queue *queue)
{
	int64		longest = queue->settings.partition_rate.period;
	dlist_iter	iter;

	for (int i = 0; i < queue->settings.rate_count; i++)
		longest = Max(longest, queue->settings.rates[i].period);
	dlist_foreach(iter, &((Queue *) queue)->lanes)
		longest = Max(longest, dlist_container(Lane, link, iter.cur)->settings.rate.period);
	return longest;
}

/* The ids of queues with rate limits; how far back these reach. */
static int64
find_rated_queues(Database *database, Datum *ids, int *count)
{
	int64		longest = 0;

	*count = 0;
	dispatcher_lock();
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];
		int64		window;

		if (queue->state == QUEUE_FREE || queue->db != database->db)
			continue;
		window = longest_window(queue);
		if (window > 0)
			ids[(*count)++] = Int32GetDatum(queue->id);
		longest = Max(longest, window);
	}
	dispatcher_unlock();
	return longest;
}

/* What has started within the windows of rate limits, and may have. */
static void
load_starts(Database *database, TimestampTz now)
{
	Datum	   *ids = palloc(fanout_max_queues * sizeof(Datum));
	int			count;
	int64		longest = find_rated_queues(database, ids, &count);
	SpiScope	scope;
	Datum		values[2];
	uint64		rows;

	if (count == 0)
		return;
	values[0] = TimestampTzGetDatum(now - longest);
	values[1] = PointerGetDatum(construct_array(ids, count, INT4OID, 4, true, TYPALIGN_INT));
	spi_begin(&scope);
	rows = spi_read_latest(&select_starts, values, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		int32		queue_id = DatumGetInt32(spi_value(i, 1, &isnull));
		TimestampTz at = DatumGetTimestampTz(spi_value(i, 3, &isnull));
		int32		cost = DatumGetInt32(spi_value(i, 4, &isnull));
		Queue	   *queue;

		dispatcher_lock();
		queue = queue_find(database->db, queue_id);
		if (queue != NULL)
			queue_remember_start(queue, spi_int64(i, 2), cost, at);
		dispatcher_unlock();
	}
	spi_end(&scope);

	dispatcher_lock();
	for (int i = 0; i < count; i++)
	{
		Queue	   *queue = queue_find(database->db, DatumGetInt32(ids[i]));

		if (queue != NULL)
			queue_remember_unknown_starts(queue, now);
	}
	dispatcher_unlock();
}

/* Fold one row of the journal into the task's history; rows come in the order of time. */
static void
fold(History *history, int64 lease, char event, TimestampTz at, TimestampTz until, const char *worker)
{
	if (event == 'n')
	{
		history->attempts = 0;
		history->running = 0;
		history->due = 0;
		return;
	}
	if (event == 'e')
	{
		if (history->running == lease)
			history->until = until;
		return;
	}

	if (history->last_lease != lease)
		history->attempts++;
	history->last_lease = lease;
	history->running = 0;
	if (event == 'c' || event == 'b')
	{
		history->running = lease;
		history->bound = event == 'b';
		history->claimed_at = at;
		history->until = until;
		strlcpy(history->worker, worker != NULL ? worker : "", FANOUT_NAME_LEN);
	}
	else
		history->due = until;
	if (event == 'r')
		history->attempts--;
}

static void
fold_rows(HTAB *histories, uint64 rows)
{
	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;
		bool		found;
		int64		task = spi_int64(i, 1);
		Datum		until;
		TimestampTz until_time;
		char	   *worker = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 6);
		History    *history = hash_search(histories, &task, HASH_ENTER, &found);

		if (!found)
			memset((char *) history + sizeof(int64), 0, sizeof(History) - sizeof(int64));
		until = spi_value(i, 5, &isnull);
		until_time = isnull ? 0 : DatumGetTimestampTz(until);
		fold(history, spi_int64(i, 2), DatumGetChar(spi_value(i, 3, &isnull)),
			 DatumGetTimestampTz(spi_value(i, 4, &isnull)), until_time, worker);
	}
}

/* Run a query to its end, some rows at a time. */
static void
for_each_chunk(SpiStatement *statement, void (*handle) (void *arg, uint64 rows), void *arg)
{
	SpiScope	scope;
	SPIPlanPtr	plan;
	Portal		portal;

	spi_begin(&scope);
	(void) set_config_option("enable_seqscan", "on", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	plan = SPI_prepare(statement->sql, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	portal = SPI_cursor_open(NULL, plan, NULL, NULL, true);
	for (;;)
	{
		SPI_cursor_fetch(portal, true, REBUILD_FETCH);
		if (SPI_processed == 0)
			break;
		handle(arg, SPI_processed);
		SPI_freetuptable(SPI_tuptable);
		CHECK_FOR_INTERRUPTS();
	}
	SPI_cursor_close(portal);
	spi_end(&scope);
}

static void
handle_attempts(void *arg, uint64 rows)
{
	fold_rows((HTAB *) arg, rows);
}

/* The columns of SEED_COLUMNS. */
static void
read_seed(uint64 row, TaskSeed *seed, ItemPointer tid)
{
	bool		isnull;
	Datum		value;

	memset(seed, 0, sizeof(TaskSeed));
	seed->task = spi_int64(row, 1);
	*tid = *(ItemPointer) DatumGetPointer(spi_value(row, 2, &isnull));
	seed->priority = DatumGetInt32(spi_value(row, 3, &isnull));
	value = spi_value(row, 4, &isnull);
	seed->timed = !isnull;
	seed->run_at = isnull ? 0 : DatumGetTimestampTz(value);
	value = spi_value(row, 5, &isnull);
	seed->batch = isnull ? 0 : DatumGetInt64(value);
	value = spi_value(row, 6, &isnull);
	seed->max_attempts = isnull ? 0 : DatumGetInt16(value);
	seed->partition = spi_int64(row, 7);
	seed->cost = DatumGetInt32(spi_value(row, 8, &isnull));
	seed->early_join = DatumGetBool(spi_value(row, 9, &isnull));
}

/*
 * Give the task back to the worker that had it.  The server was away for a
 * while, so the lease lasts once more as long as it was given for; one that
 * was bound to a session has ended with it.
 */
static bool
restore_lease(Task *task, const History *history, TimestampTz now)
{
	TimestampTz until = Max(history->until, now + (history->until - history->claimed_at));

	task->attempts = history->attempts - 1;
	if (history->bound)
		until = now;
	return lease_restore(task, history->running, history->worker, history->claimed_at, until) != NULL;
}

/* Enter one unfinished task; false if there was no memory for what is known of it.  Under the lock. */
static bool
enter_unfinished(Queue *queue, TaskSeed *seed, ItemPointer tid, const History *history, TimestampTz now)
{
	Task	   *task;

	/* of one that begins a new life the row says all, unless that is timed */
	if (history == NULL || (history->running == 0 && history->attempts == 0 && history->due == 0 && !seed->timed))
	{
		(void) task_rebuild(queue, seed, tid, 0, false, now);
		return true;
	}

	/* what is running is ready for a moment, before its lease is restored */
	seed->run_at = history->running != 0 ? now : history->due;
	seed->timed = true;
	task = task_rebuild(queue, seed, tid, history->attempts, true, now);
	if (task == NULL)
		return false;
	return history->running == 0 || restore_lease(task, history, now);
}

typedef struct RebuildState
{
	HTAB	   *histories;
	TimestampTz now;
	bool		attempted;		/* those that have a history, or the others */
	int64		forgotten;
} RebuildState;

static void
handle_unfinished(void *arg, uint64 rows)
{
	RebuildState *state = arg;
	Queue	   *queue = NULL;

	for (uint64 i = 0; i < rows; i++)
	{
		TaskSeed	seed;
		ItemPointerData tid;
		History    *history;
		bool		isnull;
		int32		queue_id = DatumGetInt32(spi_value(i, 10, &isnull));

		read_seed(i, &seed, &tid);
		history = hash_search(state->histories, &seed.task, HASH_FIND, NULL);
		if ((history != NULL) != state->attempted)
			continue;

		dispatcher_lock();
		if (queue == NULL || queue->id != queue_id)
			queue = queue_find(MyDatabaseId, queue_id);
		if (queue != NULL && !enter_unfinished(queue, &seed, &tid, history, state->now))
			state->forgotten++;
		dispatcher_unlock();
	}
}

static HTAB *
load_histories(void)
{
	HASHCTL		info = {0};
	HTAB	   *histories;

	info.keysize = sizeof(int64);
	info.entrysize = sizeof(History);
	info.hcxt = CurrentMemoryContext;
	histories = hash_create("pg_fanout histories", 1024, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for_each_chunk(&select_attempts, handle_attempts, histories);
	return histories;
}

/*
 * Enter the tasks that have a history, those that run first.  They have to be
 * in memory, and others, which can be left on disk, are not to take their
 * places, of lanes above all.
 */
static void
enter_attempted(RebuildState *state)
{
	int64		count = hash_get_num_entries(state->histories);
	Datum	   *ids = MemoryContextAllocHuge(CurrentMemoryContext, Max(count, 1) * sizeof(Datum));
	HASH_SEQ_STATUS scan;
	History    *history;
	int64		filled = 0;

	for (int running = 1; running >= 0; running--)
	{
		hash_seq_init(&scan, state->histories);
		while ((history = hash_seq_search(&scan)) != NULL)
		{
			if ((history->running != 0) == running)
				ids[filled++] = Int64GetDatum(history->task);
		}
	}

	state->attempted = true;
	for (int64 done = 0; done < count; done += ATTEMPTED_CHUNK)
	{
		SpiScope	scope;
		Datum		values[1];

		values[0] = PointerGetDatum(construct_array(&ids[done], Min(ATTEMPTED_CHUNK, count - done), INT8OID, 8,
													FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
		spi_begin(&scope);
		handle_unfinished(state, spi_read_latest(&select_attempted, values, NULL));
		spi_end(&scope);
		pfree(DatumGetPointer(values[0]));
		CHECK_FOR_INTERRUPTS();
	}
	state->attempted = false;
	pfree(ids);
}

void
rebuild(Database *database, bool foreign)
{
	RebuildState state = {.now = GetCurrentTimestamp()};
	TimestampTz end;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	ids_load(database, foreign);
	load_queues(database);
	partitions_load(database);
	load_starts(database, state.now);
	state.histories = load_histories();
	enter_attempted(&state);
	for_each_chunk(&select_unfinished, handle_unfinished, &state);
	PopActiveSnapshot();
	CommitTransactionCommand();

	ids_raise_ceilings(database);

	if (state.forgotten > 0)
		ereport(WARNING,
				(errmsg("pg_fanout has no memory for the attempts of " INT64_FORMAT " tasks", state.forgotten),
				 errdetail("They will be given out as if they had not been attempted."),
				 errhint("Raise pg_fanout.max_tracked_tasks and restart the server.")));

	end = GetCurrentTimestamp();
	dispatcher_lock();
	database->rebuild_time = end - state.now;
	database->ready_since = end;
	database->state = DATABASE_READY;
	database->dirty_join_overflow = true;
	dispatcher_unlock();
}

/* One row that a refill has read. */
typedef struct RefillRow
{
	TaskSeed	seed;
	ItemPointerData tid;
} RefillRow;

typedef enum RefillKind
{
	REFILL_SCHEDULED,
	REFILL_LANE,
	REFILL_STRAYS				/* only finds lanes: these are refilled on their own then */
} RefillKind;

typedef struct Refill
{
	RefillKind	kind;
	Queue	   *queue;
	Lane	   *lane;			/* REFILL_LANE */
	Window	   *window;
	int32		queue_id;
	int64		epoch;
	int64		key;			/* the bound it starts from */
	int64		id;
	int64		limit;
	int64		row_count;
	int64		loaded;
	bool		headway;
	bool		urgent;			/* nothing can be given out before it is done */
	bool		room;			/* the queue has room for more than what is urgent */
	RefillRow  *rows;
} Refill;

/* Read on with one statement. */
static void
read_rows(Refill *refill, SpiStatement *statement, int64 key, int64 id)
{
	Datum		values[5];
	uint64		rows;

	if (refill->row_count == refill->limit)
		return;
	values[0] = Int32GetDatum(refill->queue_id);
	values[1] = statement == &refill_timed ? TimestampTzGetDatum(key) : Int32GetDatum(Max(key, PG_INT32_MIN));
	values[2] = Int64GetDatum(id);
	values[3] = Int64GetDatum(refill->limit - refill->row_count);
	values[4] = Int64GetDatum(refill->lane != NULL ? refill->lane->key.partition : 0);
	rows = spi_read_latest(statement, values, NULL);
	for (uint64 i = 0; i < rows; i++)
	{
		RefillRow  *row = &refill->rows[refill->row_count++];

		read_seed(i, &row->seed, &row->tid);
	}
	SPI_freetuptable(SPI_tuptable);
}

/*
 * Have the statements read along an index and stop at their limit, whatever
 * the planner believes of tables that were never analyzed.  Lasts as long as
 * the SpiScope.
 */
static void
follow_the_order(void)
{
	static const char *const off[] = {
		"enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_hashjoin", "enable_mergejoin"
	};

	for (int i = 0; i < lengthof(off); i++)
		(void) set_config_option(off[i], "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/* Read the main lane from the bound on. */
static void
read_main_lane(Refill *refill)
{
	if (refill->key < 0)
		read_rows(refill, &refill_below, refill->key, refill->id);
	if (refill->key <= 0)
		read_rows(refill, &refill_usual, 0, refill->key == 0 ? refill->id : 0);
	read_rows(refill, &refill_above, Max(refill->key, 1), refill->key > 0 ? refill->id : 0);
}

/* Read from the bound on, in the order of the window. */
static void
read_from_bound(Refill *refill)
{
	SpiScope	scope;

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	spi_begin(&scope);
	follow_the_order();
	if (refill->kind == REFILL_SCHEDULED)
		read_rows(refill, &refill_timed, refill->key, refill->id);
	else if (refill->kind == REFILL_STRAYS)
		read_rows(refill, &refill_strays, 0, refill->id);
	else if (refill->lane->key.partition == 0)
		read_main_lane(refill);
	else
		read_rows(refill, &refill_partition, refill->key, refill->id);
	spi_end(&scope);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* Has the queue been dropped or purged since the refill began?  Under the lock. */
static bool
refill_is_void(const Refill *refill)
{
	const Queue *queue = refill->queue;

	return queue->state != QUEUE_OPEN || queue->db != MyDatabaseId || queue->id != refill->queue_id ||
		queue->epoch != refill->epoch;
}

static int64
place_of(const Refill *refill, const TaskSeed *seed)
{
	if (refill->kind == REFILL_SCHEDULED)
		return seed->run_at;
	return refill->kind == REFILL_STRAYS ? 0 : seed->priority;
}

/* Put one row that was read into memory; false if there is no room.  Under the lock. */
static bool
load_row(Refill *refill, const RefillRow *row, TimestampTz now)
{
	bool		urgent = refill->urgent && refill->loaded < REFILL_URGENT;

	if (refill->kind == REFILL_STRAYS)
	{
		/* a lane that is new now counts as being on disk, and asks for a refill */
		if (lane_for(refill->queue, row->seed.partition) == NULL)
			return false;
		refill->loaded++;
		return true;
	}
	if (task_find(MyDatabaseId, row->seed.task) != NULL)
		return true;
	if (task_load(refill->queue, &row->seed, (ItemPointer) &row->tid, urgent, now) == NULL)
		return false;
	refill->loaded++;
	return true;
}

/* The refill is done with the first "done" rows.  Under the lock. */
static void
end_refill(Refill *refill, int64 done)
{
	Queue	   *queue = refill->queue;
	Window	   *window = refill->window;
	bool		full = done < refill->row_count;

	refill->headway = !full || done > 0;
	if (refill_is_void(refill))
		window_end_refill(window, true, refill->key, refill->id);
	else if (full)
		window_end_refill(window, true, place_of(refill, &refill->rows[done].seed), refill->rows[done].seed.task);
	else if (refill->row_count == refill->limit)
		window_end_refill(window, true, place_of(refill, &refill->rows[done - 1].seed),
						  refill->rows[done - 1].seed.task + 1);
	else
		window_end_refill(window, false, 0, 0);
	queue->refilling--;
	if (queue->refilling == 0)
		queue_forget_ended(queue);
	if (refill->kind == REFILL_LANE)
	{
		refill->lane->starved = full && window_first(window) == NULL;
		lane_settle(refill->lane);
		lane_release(refill->lane);
	}
	queue_wake(queue);
}

/* Put what was read into memory, as far as there is room, and end the refill. */
static void
load_rows(Refill *refill)
{
	Queue	   *queue = refill->queue;
	TimestampTz now = GetCurrentTimestamp();
	int64		done = 0;

	dispatcher_lock();
	while (done < refill->row_count && !refill_is_void(refill) && load_row(refill, &refill->rows[done], now))
	{
		if (++done % FANOUT_WORK_CHUNK == 0)
		{
			dispatcher_unlock();
			dispatcher_lock();
		}
	}
	if (queue->state != QUEUE_FREE && queue->id == refill->queue_id && queue->db == MyDatabaseId)
		end_refill(refill, done);
	database_find(MyDatabaseId)->refills++;
	dispatcher_unlock();
}

/* Note the begin of the refill; false if the window needs none, or there is no room.  Under the lock. */
static bool
begin_refill(Refill *refill)
{
	Queue	   *queue = refill->queue;

	if (queue->state != QUEUE_OPEN || queue->db != MyDatabaseId || !refill->window->bounded)
		return false;
	refill->urgent = window_first(refill->window) == NULL;
	refill->room = queue_room(queue);
	if (refill->kind != REFILL_STRAYS && !refill->urgent && !refill->room)
		return false;			/* it asks again when it gives out what it has */
	refill->queue_id = queue->id;
	refill->epoch = queue->epoch;
	refill->key = refill->window->bound_key;
	refill->id = refill->window->bound_id;
	window_begin_refill(refill->window);
	queue->refilling++;
	return true;
}

/* Go on with a refill that has begun; false if there is more to read but no headway was made. */
static bool
run_refill(Refill *refill)
{
	int64		most = Max(REFILL_LEAST, Min(REFILL_MOST, queue_window_limit()));

	if (refill->kind == REFILL_LANE && refill->lane->key.partition != 0)
		most = Min(most, REFILL_PARTITION);
	if (refill->kind != REFILL_STRAYS && !refill->room)
		most = Min(most, REFILL_LEAST);
	refill->limit = most;
	refill->rows = palloc(refill->limit * sizeof(RefillRow));
	read_from_bound(refill);
	load_rows(refill);
	pfree(refill->rows);
	return refill->headway;
}

static bool
refill_window(Queue *queue, RefillKind kind, Lane *lane, Window *window)
{
	Refill		refill = {.kind = kind, .queue = queue, .lane = lane, .window = window, .headway = true};
	bool		begun;

	dispatcher_lock();
	begun = begin_refill(&refill);
	dispatcher_unlock();
	return !begun || run_refill(&refill);
}

/*
 * Refill some of the partitions that ask for it, which stand first in the
 * list; the next look goes on with others.  False if one made no headway.
 */
static bool
refill_partitions(Queue *queue)
{
	bool		headway = true;

	for (int i = 0; i < REFILL_PARTITIONS && headway; i++)
	{
		Refill		refill = {.kind = REFILL_LANE, .queue = queue, .headway = true};
		bool		begun = false;

		dispatcher_lock();
		if (queue->state == QUEUE_OPEN && queue->db == MyDatabaseId && !dlist_is_empty(&queue->lanes))
		{
			Lane	   *lane = dlist_head_element(Lane, link, &queue->lanes);

			if (lane->wants_refill)
			{
				lane->wants_refill = false;
				dlist_delete(&lane->link);
				dlist_push_tail(&queue->lanes, &lane->link);
				refill.lane = lane;
				refill.window = &lane->ready;
				begun = begin_refill(&refill);
			}
		}
		dispatcher_unlock();
		if (refill.lane == NULL)
			return true;
		if (begun)
			headway = run_refill(&refill);
		CHECK_FOR_INTERRUPTS();
	}
	dispatcher_lock();
	queue->wants_refill = true;
	dispatcher_unlock();
	return headway;
}

bool
refill_queue(Queue *queue)
{
	bool		headway;
	bool		strays;

	dispatcher_lock();
	queue->wants_refill = false;
	queue->main.wants_refill = false;
	strays = queue_may_have_lane(queue);
	dispatcher_unlock();

	headway = refill_window(queue, REFILL_SCHEDULED, NULL, &queue->scheduled);
	headway &= refill_window(queue, REFILL_LANE, &queue->main, &queue->main.ready);
	if (strays)
		headway &= refill_window(queue, REFILL_STRAYS, NULL, &queue->strays);
	headway &= refill_partitions(queue);
	return headway;
}

static void
reset_window(Queue *queue, Window *window)
{
	if (!window->refilling)
		return;
	window_end_refill(window, true, window->bound_key, window->bound_id);
	queue->refilling--;
}

void
refill_reset(Database *database)
{
	dispatcher_lock();
	for (int i = 0; i < fanout_shared->queue_high; i++)
	{
		Queue	   *queue = &fanout_queues[i];
		dlist_mutable_iter iter;

		if (queue->state == QUEUE_FREE || queue->db != database->db)
			continue;
		reset_window(queue, &queue->scheduled);
		reset_window(queue, &queue->main.ready);
		reset_window(queue, &queue->strays);
		dlist_foreach_modify(iter, &queue->lanes)
		{
			Lane	   *lane = dlist_container(Lane, link, iter.cur);

			reset_window(queue, &lane->ready);
			lane_settle(lane);
		}
		lane_settle(&queue->main);
		queue_forget_ended(queue);
		queue->wants_refill = true;
	}
	dispatcher_unlock();
}
