/*
 * spi.c
 *		SQL of our own, run as the extension's owner and out of reach of the
 *		caller's search_path.
 *
 * The caller's rights are checked before, in C, against the role that calls.
 * An error on the way restores role and settings with the transaction.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

#include "registry.h"
#include "spi.h"

/*
 * A statement of ours runs.  It is this that counts, and not an open SpiScope:
 * an error leaves scopes without their end, and if a block or a savepoint
 * catches it, the transaction goes on with statements that are not ours.  How
 * a statement ends is seen on the spot, so there is nothing to be put right
 * when a transaction or subtransaction ends.
 */
static bool runs_ours = false;

bool
spi_is_ours(void)
{
	return runs_ours;
}

static void
set_here(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
spi_begin(SpiScope *scope)
{
	Oid			owner = registry_owner();

	GetUserIdAndSecContext(&scope->user, &scope->security_context);
	SetUserIdAndSecContext(owner, scope->security_context | SECURITY_LOCAL_USERID_CHANGE);
	scope->guc_level = NewGUCNestLevel();
	set_here("search_path", "pg_catalog, pg_temp");

	/*
	 * A plan is kept, and a table may have ten rows when it is made and a million a minute later: indexes are used
	 * whatever the statistics say.
	 */
	set_here("enable_seqscan", "off");
	set_here("jit", "off");
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
}

void
spi_end(SpiScope *scope)
{
	SPI_finish();
	AtEOXact_GUC(false, scope->guc_level);
	SetUserIdAndSecContext(scope->user, scope->security_context);
}

void
spi_follow_order(void)
{
	static const char *const off[] = {
		"enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_hashjoin", "enable_mergejoin"
	};

	for (int i = 0; i < lengthof(off); i++)
		set_here(off[i], "off");
}

/* The plan goes with the SpiScope, or with the error that ends that. */
static SPIPlanPtr
plan_of(SpiStatement *statement)
{
	SPIPlanPtr	plan = SPI_prepare(statement->sql, statement->nargs, statement->types);

	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	return plan;
}

static void
prepare(SpiStatement *statement)
{
	SPIPlanPtr	plan;

	if (statement->plan != NULL)
		return;
	plan = plan_of(statement);
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	statement->plan = plan;
}

/* Triggers of the statement are run within it. */
static uint64
execute(SpiStatement *statement, Datum *values, const char *nulls, Snapshot snapshot, bool read_only)
{
	bool		outer = runs_ours;
	int			result = 0;

	runs_ours = true;
	PG_TRY();
	{
		result = SPI_execute_snapshot(statement->plan, values, nulls, snapshot, InvalidSnapshot, read_only, true, 0);
	}
	PG_FINALLY();
	{
		runs_ours = outer;
	}
	PG_END_TRY();
	if (result < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s", SPI_result_code_string(result));
	return SPI_processed;
}

uint64
spi_run(SpiStatement *statement, Datum *values, const char *nulls)
{
	uint64		processed;

	prepare(statement);
	processed = execute(statement, values, nulls, InvalidSnapshot, false);
	CommandCounterIncrement();
	return processed;
}

uint64
spi_run_once(SpiStatement *statement, Datum *values)
{
	uint64		processed;

	statement->plan = plan_of(statement);
	processed = execute(statement, values, NULL, InvalidSnapshot, false);
	CommandCounterIncrement();
	return processed;
}

uint64
spi_run_latest(SpiStatement *statement, Datum *values, const char *nulls)
{
	uint64		processed;

	prepare(statement);
	processed = execute(statement, values, nulls, GetLatestSnapshot(), false);
	CommandCounterIncrement();
	return processed;
}

uint64
spi_read_latest(SpiStatement *statement, Datum *values, const char *nulls)
{
	uint64		processed;

	prepare(statement);
	PushActiveSnapshot(GetLatestSnapshot());
	processed = execute(statement, values, nulls, InvalidSnapshot, true);
	PopActiveSnapshot();
	return processed;
}

Datum
spi_value(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

/* A column that is not NULL. */
int64
spi_int64(uint64 row, int column)
{
	bool		isnull;
	Datum		value = spi_value(row, column, &isnull);

	Assert(!isnull);
	return DatumGetInt64(value);
}
