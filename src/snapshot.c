/*
 * snapshot.c
 *		What procedures need in order to wait without holding a snapshot.
 *
 * A snapshot that is held while somebody waits keeps VACUUM, of the whole
 * database, from removing what was deleted since.  A procedure that is called
 * outside a transaction block is free to commit: it then goes on in a new
 * transaction, which has no snapshot until it reads something.
 *
 * The snapshot that take_snapshot() takes is the portal's, of the CALL that
 * runs us: the server itself drops it with our next commit, or when the CALL
 * has ended.
 */
#include "postgres.h"

#include "executor/spi.h"
#include "nodes/parsenodes.h"
#include "tcop/pquery.h"

#include "snapshot.h"

void
require_nonatomic(FunctionCallInfo fcinfo, const char *procedure)
{
	if (fcinfo->context != NULL && IsA(fcinfo->context, CallContext) &&
		!castNode(CallContext, fcinfo->context)->atomic)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("%s must not run inside a transaction block", procedure),
			 errdetail("It ends its transaction so as to hold no snapshot while it waits."),
			 errhint("CALL it as a statement of its own, outside BEGIN and functions.")));
}

void
release_snapshot(void)
{
	if (SPI_connect_ext(SPI_OPT_NONATOMIC) != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect_ext failed");
	SPI_commit();
	SPI_finish();
}

void
take_snapshot(void)
{
	EnsurePortalSnapshotExists();
}
