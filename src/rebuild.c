/*
 * rebuild.c
 *		Memory from the tables, at start.
 *
 * Nobody else uses the database's part of memory meanwhile: every function
 * waits until it is ready.  So a rebuild is plain scans: queues and settings
 * of partitions; the starts that rate limits remember; the attempts of
 * unfinished tasks, from which follow leases, counts and times; the unfinished
 * tasks themselves.  Segments whose tasks have all ended are left out.
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
#include "lane_limits.h"
#include "partitions.h"
#include "points.h"
#include "queue_settings.h"
#include "rebuild.h"
#include "registry.h"
#include "seed.h"
#include "segments.h"
#include "spi.h"
#include "starts.h"
#include "wait.h"

#define REBUILD_FETCH	10000
#define ATTEMPTED_CHUNK	1000

static SpiStatement select_queues = {
	"SELECT id, " QUEUE_SETTINGS_COLUMNS " FROM fanout.queue", 0, {0}
};

/*
 * In the order in which it happened, which the numbers of leases tell and the
 * clock may not: a lease begins, is extended and ends, and one of a task has
 * ended before the next one begins.  What a task that waits was told has a
 * number of its own.
 */
#define SELECT_ATTEMPTS(segment) { \
	"SELECT a.task, a.lease, a.event, a.at, a.until, a.worker FROM fanout.attempt" segment " a" \
	" WHERE NOT EXISTS (SELECT FROM fanout.outcome" segment " o WHERE o.task = a.task)" \
	" ORDER BY a.task, a.lease, strpos('nscbekrfx', a.event::text), a.at", 0, {0} \
}
#define SELECT_UNFINISHED(segment) { \
	"SELECT" SEED_COLUMNS ", t.queue FROM fanout.task" segment " t WHERE" UNFINISHED(segment), 0, {0} \
}

static SpiStatement select_attempted = {
	"SELECT" SEED_COLUMNS ", t.queue FROM fanout.task t WHERE t.id = ANY ($1) AND" UNFINISHED(""), 1, {INT8ARRAYOID}
};

/*
 * A start that was not journaled before it ended is known from its end.  It
 * was one of the queue and lane that the task left next, if it has moved since.
 * A rebuild (no queue) stands for starts that nobody knows of.
 */
static SpiStatement select_starts = {
	"WITH moved AS MATERIALIZED (SELECT task, at, string_to_array(error, ' ') AS place FROM fanout.attempt WHERE event = 'm' AND at > $1),"
	" started AS (SELECT task, lease, min(at) AS at"
	"  FROM (SELECT task, lease, at FROM fanout.attempt WHERE event IN ('c', 'b', 'f', 'r', 'x') AND at > $1"
	"        UNION ALL SELECT task, lease, claimed_at FROM fanout.outcome WHERE claimed_at > $1) a GROUP BY task, lease),"
	" placed AS (SELECT DISTINCT ON (s.task, s.lease) coalesce(m.place[1]::int, t.queue) AS queue,"
	"   coalesce(m.place[2]::bigint, t.lane, 0) AS lane, s.at, coalesce(t.cost, 1) AS cost"
	"  FROM started s JOIN fanout.task t ON t.id = s.task LEFT JOIN moved m ON m.task = s.task AND m.at >= s.at"
	"  ORDER BY s.task, s.lease, m.at)"
	" SELECT queue, lane, at, cost FROM placed WHERE queue = ANY ($2)"
	" UNION ALL SELECT NULL, 0, at, 0 FROM fanout.rebuilt WHERE at > $1 ORDER BY 3",
	2, {TIMESTAMPTZOID, INT4ARRAYOID}
};
static SpiStatement note_rebuild = {
	"WITH old AS (DELETE FROM fanout.rebuilt WHERE at <= $1) INSERT INTO fanout.rebuilt (at) VALUES ($2)",
	2, {TIMESTAMPTZOID, TIMESTAMPTZOID}
};

static SpiStatement select_attempts[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(SELECT_ATTEMPTS);
static SpiStatement select_unfinished[FANOUT_SEGMENTS] = FOR_EACH_SEGMENT(SELECT_UNFINISHED);

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
	bool		started;		/* once, be it in a former life: its deadline holds no more */
	bool		cancelled;		/* somebody has asked its worker to stop */
	char		worker[FANOUT_NAME_LEN];
} History;

static void
load_queues(Database *database)
{
	SpiScope	scope;
	uint64		rows;
	int			left_out = 0;

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
		left_out += queue == NULL;
	}
	spi_end(&scope);
	if (left_out > 0)
		ereport(WARNING,
				(errmsg("pg_fanout has no place in memory for %d queues of database %u", left_out, database->db),
				 errdetail("They cannot be used."),
				 errhint("Raise pg_fanout.max_queues and restart the server.")));
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
		window = queue_longest_window(queue);
		if (window > 0)
			ids[(*count)++] = Int32GetDatum(queue->id);
		longest = Max(longest, window);
	}
	dispatcher_unlock();
	return longest;
}

/* Before this rebuild, or an earlier one, some may have started that were not on disk yet. */
static void
remember_unknown_starts(Database *database, const Datum *ids, int count, TimestampTz at)
{
	dispatcher_lock();
	for (int i = 0; i < count; i++)
	{
		Queue	   *queue = queue_find(database->db, DatumGetInt32(ids[i]));

		if (queue != NULL)
			queue_remember_unknown_starts(queue, at);
	}
	dispatcher_unlock();
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
		bool		unknown;
		int32		queue_id = DatumGetInt32(spi_value(i, 1, &unknown));
		TimestampTz at = DatumGetTimestampTz(spi_value(i, 3, &isnull));
		int32		cost = DatumGetInt32(spi_value(i, 4, &isnull));
		Queue	   *queue;

		if (unknown)
		{
			remember_unknown_starts(database, ids, count, at);
			continue;
		}
		dispatcher_lock();
		queue = queue_find(database->db, queue_id);
		if (queue != NULL)
			queue_remember_start(queue, spi_int64(i, 2), cost, at);
		dispatcher_unlock();
	}
	remember_unknown_starts(database, ids, count, now);
	values[1] = TimestampTzGetDatum(now);
	(void) spi_run(&note_rebuild, values, NULL);
	spi_end(&scope);
}

/* Fold one row of the journal into the task's history; rows come in the order of leases. */
static void
fold(History *history, int64 lease, char event, TimestampTz at, TimestampTz until, const char *worker)
{
	if (event == 'n')
	{
		history->attempts = 0;
		history->running = 0;
		history->due = 0;
		history->cancelled = false;
		return;
	}
	if (event == 'k')
	{
		history->cancelled = true;
		return;
	}
	if (event == 's')
	{
		history->due = until;
		return;
	}
	if (event == 'm')
		return;					/* its row says where it is */
	if (event == 'e')
	{
		if (history->running == lease)
			history->until = until;
		return;
	}

	history->started = true;
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
enter_unfinished(Queue *queue, const TaskSeed *seed, ItemPointer tid, const History *history, TimestampTz now)
{
	TaskSeed	again = *seed;
	Task	   *task;

	/*
	 * of one that has not been attempted in this life the row says all, unless it has a deadline and has started
	 * once
	 */
	if (history == NULL ||
		(history->running == 0 && history->attempts == 0 && history->due == 0 && !history->cancelled &&
		 (seed->deadline == 0 || !history->started)))
	{
		(void) task_rebuild(queue, seed, tid, 0, false, now);
		return true;
	}

	/* what is running is ready for a moment, before its lease is restored */
	again.run_at = history->running != 0 ? now : history->due;
	again.timed = true;
	if (history->started)
		again.deadline = 0;
	task = task_rebuild(queue, &again, tid, history->attempts, true, now);
	if (task == NULL)
	{
		(void) task_rebuild(queue, seed, tid, 0, false, now);
		return false;
	}
	if (history->running != 0 && !restore_lease(task, history, now))
		return false;
	if (history->cancelled)
		task_request_cancel(task);
	return true;
}

typedef struct RebuildState
{
	Database   *database;
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
		int32		queue_id = DatumGetInt32(spi_value(i, SEED_COLUMN_COUNT + 1, &isnull));

		seed_read(i, &seed, &tid);
		history = hash_search(state->histories, &seed.task, HASH_FIND, NULL);
		if ((history != NULL) != state->attempted)
			continue;

		dispatcher_lock();
		if (queue == NULL || queue->id != queue_id)
			queue = queue_find(MyDatabaseId, queue_id);
		if (queue != NULL && !enter_unfinished(queue, &seed, &tid, history, state->now))
			state->forgotten++;
		state->database->rebuilt_tasks++;
		dispatcher_unlock();
	}
}

static HTAB *
load_histories(const int *segments, int segment_count)
{
	HASHCTL		info = {0};
	HTAB	   *histories;

	info.keysize = sizeof(int64);
	info.entrysize = sizeof(History);
	info.hcxt = CurrentMemoryContext;
	histories = hash_create("pg_fanout histories", 1024, &info, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	for (int i = 0; i < segment_count; i++)
		for_each_chunk(&select_attempts[segments[i]], handle_attempts, histories);
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
	RebuildState state = {.database = database, .now = GetCurrentTimestamp()};
	TimestampTz end;
	int			segments[FANOUT_SEGMENTS];
	int			segment_count;

	dispatcher_lock();
	database->rebuilds++;
	database->rebuild_began = state.now;
	database->rebuilt_tasks = 0;
	dispatcher_unlock();

	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (foreign)
		segments_forget_finished();
	segments_load(database);
	segment_count = segments_unfinished(database, segments);
	ids_load(database, foreign);
	FANOUT_POINT(REBUILD_BEGUN);
	load_queues(database);
	partitions_load(database);
	FANOUT_POINT(REBUILD_QUEUES);
	load_starts(database, state.now);
	FANOUT_POINT(REBUILD_STARTS);
	state.histories = load_histories(segments, segment_count);
	FANOUT_POINT(REBUILD_HISTORIES);
	enter_attempted(&state);
	FANOUT_POINT(REBUILD_ATTEMPTED);
	for (int i = 0; i < segment_count; i++)
		for_each_chunk(&select_unfinished[segments[i]], handle_unfinished, &state);
	FANOUT_POINT(REBUILD_UNFINISHED);
	PopActiveSnapshot();
	CommitTransactionCommand();
	FANOUT_POINT(REBUILD_COMMITTED);

	ids_raise_ceilings(database);
	FANOUT_POINT(REBUILD_CEILINGS);

	if (state.forgotten > 0)
		ereport(WARNING,
				(errmsg("pg_fanout has no memory for the attempts of " INT64_FORMAT " tasks of database %u", state.forgotten,
						database->db),
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
