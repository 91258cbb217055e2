/*
 * batch.c
 *		Batches, and what a leased task has spawned under a step name.
 *
 * The tasks of one call have ids that follow on, so a batch is a few ranges
 * of ids: fan_out writes one row for it however many the tasks are, and the
 * ordinal of a task is its place in the ranges.  A growing batch is sealed
 * under a lock that whoever adds to it shares.
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"

#include "arguments.h"
#include "batch.h"
#include "checkpoint.h"
#include "commit_hooks.h"
#include "common/hashfn.h"
#include "lease.h"
#include "spi.h"

PG_FUNCTION_INFO_V1(fanout_create_batch);
PG_FUNCTION_INFO_V1(fanout_seal_batch);

static SpiStatement insert_batch = {
	"INSERT INTO fanout.batch (owner, join_policy, join_count, sealed) VALUES ($1::regrole, $2, $3, $4) RETURNING id",
	4, {OIDOID, TEXTOID, INT8OID, BOOLOID}
};
static SpiStatement insert_part = {
	"INSERT INTO fanout.batch_part (batch, first_task, tasks) VALUES ($1, $2, $3)", 3, {INT8OID, INT8OID, INT8OID}
};
static SpiStatement select_batch = {
	"SELECT owner::oid, sealed, join_policy <> 'all' FROM fanout.batch WHERE id = $1", 1, {INT8OID}
};
static SpiStatement seal = {
	"UPDATE fanout.batch SET sealed = true WHERE id = $1 AND NOT sealed", 1, {INT8OID}
};
static SpiStatement select_spawn = {
	"SELECT digest, kind, coalesce(batch, 0), coalesce(first_task, 0), tasks FROM fanout.spawn WHERE parent = $1 AND step = $2",
	2, {INT8OID, TEXTOID}
};
static SpiStatement insert_spawn = {
	"INSERT INTO fanout.spawn (parent, step, kind, digest, batch, first_task, tasks)"
	" VALUES ($1, $2, $3, $4, nullif($5, 0), nullif($6, 0), $7)",
	7, {INT8OID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT8OID, INT8OID}
};

/* Read what the step has spawned; false if nothing. */
static bool
find_spawn(Spawn *spawn)
{
	SpiScope	scope;
	Datum		values[2];
	bool		found;

	spi_begin(&scope);
	values[0] = Int64GetDatum(spawn->parent);
	values[1] = PointerGetDatum(spawn->step);
	found = spi_read_latest(&select_spawn, values, NULL) == 1;
	if (found)
	{
		char	   *kind = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2);

		if ((uint64) spi_int64(0, 1) != spawn->digest || strcmp(kind, spawn->kind) != 0)
			ereport(ERROR,
					(errcode(ERRCODE_STEP_MISMATCH),
					 errmsg("step \"%s\" was used with other arguments", text_to_cstring(spawn->step)),
					 errdetail("A step that is replayed must enqueue what it enqueued before."),
					 errhint("Give another step name to what is another step.")));
		spawn->batch = spi_int64(0, 3);
		spawn->first_task = spi_int64(0, 4);
		spawn->tasks = spi_int64(0, 5);
	}
	spi_end(&scope);
	return found;
}

/*
 * Two sessions that spawn under one step, as after a lost connection, do so
 * one after the other: the second finds what the first has spawned.
 */
static void
lock_step(int64 task, text *step)
{
	uint64		hash = hash_bytes_extended((unsigned char *) VARDATA_ANY(step), VARSIZE_ANY_EXHDR(step), task);

	LockDatabaseObject(get_relname_relid("spawn", get_namespace_oid("fanout", false)),
					   (Oid) hash, (uint16) (hash >> 32), ExclusiveLock);
}

bool
spawn_begin(FunctionCallInfo fcinfo, int lease_arg, int step_arg, const char *kind, uint64 digest, Spawn *spawn)
{
	HeldLease	held;

	memset(spawn, 0, sizeof(Spawn));
	if (PG_ARGISNULL(lease_arg) != PG_ARGISNULL(step_arg))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("lease and step must be given together"),
				 errdetail("The step name is what makes the call repeatable under a later lease of the task.")));
	if (PG_ARGISNULL(lease_arg))
		return false;

	spawn->step = PG_GETARG_TEXT_PP(step_arg);
	check_step_name(spawn->step);
	if (!lease_hold(PG_GETARG_INT64(lease_arg), LEASE_USE_WRITE, &held))
		throw_not_held(PG_GETARG_INT64(lease_arg), &held);
	lock_step(held.task, spawn->step);
	spawn->parent = held.task;
	spawn->kind = kind;
	spawn->digest = digest;
	return find_spawn(spawn);
}

void
spawn_end(const Spawn *spawn)
{
	SpiScope	scope;
	Datum		values[7];

	if (spawn->parent == 0)
		return;
	spi_begin(&scope);
	values[0] = Int64GetDatum(spawn->parent);
	values[1] = PointerGetDatum(spawn->step);
	values[2] = CStringGetTextDatum(spawn->kind);
	values[3] = Int64GetDatum((int64) spawn->digest);
	values[4] = Int64GetDatum(spawn->batch);
	values[5] = Int64GetDatum(spawn->first_task);
	values[6] = Int64GetDatum(spawn->tasks);
	(void) spi_run(&insert_spawn, values, NULL);
	spi_end(&scope);
}

static void
check_join(text *join, int64 join_count)
{
	char	   *name = text_to_cstring(join);
	bool		counted = strcmp(name, "n") == 0;

	if (!counted && strcmp(name, "all") != 0 && strcmp(name, "any") != 0 && strcmp(name, "fail_fast") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("unknown join \"%s\"", name),
				 errhint("Joins are all, any, n and fail_fast.")));
	if (counted != (join_count > 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg(counted ? "join \"n\" needs a join_count of at least 1" : "join_count goes with join \"n\" only")));
}

/* "join_count" is 0 where none is given. */
int64
batch_create(text *join, int64 join_count, bool sealed, bool *early_join)
{
	SpiScope	scope;
	Datum		values[4];
	char		nulls[5] = "    ";
	int64		batch;

	check_join(join, join_count);
	*early_join = strcmp(text_to_cstring(join), "all") != 0;

	values[0] = ObjectIdGetDatum(GetUserId());
	values[1] = PointerGetDatum(join);
	values[2] = Int64GetDatum(join_count);
	nulls[2] = join_count > 0 ? ' ' : 'n';
	values[3] = BoolGetDatum(sealed);
	spi_begin(&scope);
	(void) spi_run(&insert_batch, values, nulls);
	batch = spi_int64(0, 1);
	spi_end(&scope);
	return batch;
}

/* The lock on a batch, by two halves of its id. */
static void
lock_batch(int64 batch, LOCKMODE mode)
{
	Oid			relation = get_relname_relid("batch", get_namespace_oid("fanout", false));

	LockDatabaseObject(relation, (Oid) (batch & 0xffffffff), (uint16) (batch >> 32), mode);
}

void
throw_missing_batch(int64 batch)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("batch " INT64_FORMAT " does not exist", batch)));
}

void
check_batch_owner(int64 batch, Oid owner)
{
	if (!OidIsValid(owner))
		throw_missing_batch(batch);
	if (!role_is_mine(owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied for batch " INT64_FORMAT, batch),
				 errdetail("A batch belongs to the role that made it.")));
}

/* Check that the batch is there and ours; was it sealed? */
static bool
read_batch(int64 batch, bool *early_join)
{
	SpiScope	scope;
	Datum		values[1] = {Int64GetDatum(batch)};
	bool		isnull;
	bool		sealed = false;
	Oid			owner = InvalidOid;

	spi_begin(&scope);
	if (spi_read_latest(&select_batch, values, NULL) == 1)
	{
		owner = DatumGetObjectId(spi_value(0, 1, &isnull));
		sealed = DatumGetBool(spi_value(0, 2, &isnull));
		*early_join = DatumGetBool(spi_value(0, 3, &isnull));
	}
	spi_end(&scope);

	check_batch_owner(batch, owner);
	return sealed;
}

void
batch_open_for_tasks(int64 batch, bool *early_join)
{
	lock_batch(batch, RowExclusiveLock);
	if (read_batch(batch, early_join))
		ereport(ERROR,
				(errcode(ERRCODE_BATCH_SEALED),
				 errmsg("batch " INT64_FORMAT " is sealed", batch),
				 errhint("Make it with fanout.create_batch() and seal it when all of its tasks are enqueued.")));
}

void
batch_add_part(int64 batch, int64 first_task, int64 tasks)
{
	SpiScope	scope;
	Datum		values[3];

	values[0] = Int64GetDatum(batch);
	values[1] = Int64GetDatum(first_task);
	values[2] = Int64GetDatum(tasks);
	spi_begin(&scope);
	(void) spi_run(&insert_part, values, NULL);
	spi_end(&scope);
}

Datum
fanout_create_batch(PG_FUNCTION_ARGS)
{
	text	   *join;
	int64		join_count = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT64(1);
	uint64		digest;
	bool		early_join;
	Spawn		spawn;

	require_writable("fanout.create_batch()");
	(void) require_database();
	join = PG_ARGISNULL(0) ? cstring_to_text("all") : PG_GETARG_TEXT_PP(0);
	if (!PG_ARGISNULL(1) && join_count < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("join_count must be at least 1")));
	digest = hash_bytes_extended((unsigned char *) VARDATA_ANY(join), VARSIZE_ANY_EXHDR(join), join_count);
	if (!spawn_begin(fcinfo, 2, 3, "batch", digest, &spawn))
	{
		spawn.batch = batch_create(join, join_count, false, &early_join);
		spawn_end(&spawn);
	}
	PG_RETURN_INT64(spawn.batch);
}

Datum
fanout_seal_batch(PG_FUNCTION_ARGS)
{
	SpiScope	scope;
	Datum		values[1];
	int64		batch;
	bool		early_join;
	bool		sealed;

	require_writable("fanout.seal_batch()");
	require_arg(fcinfo, 0, "batch");
	(void) require_database();
	batch = PG_GETARG_INT64(0);
	(void) read_batch(batch, &early_join);

	/* waits for everybody who has added tasks and has not ended yet */
	lock_batch(batch, ExclusiveLock);
	values[0] = Int64GetDatum(batch);
	spi_begin(&scope);
	sealed = spi_run(&seal, values, NULL) == 1;
	spi_end(&scope);
	if (sealed)
	{
		pending_prepare(1);
		if (early_join)
			pending_batch_seal(batch);
		else
			pending_batch_change(batch);
	}
	PG_RETURN_BOOL(sealed);
}
