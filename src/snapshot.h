/*
 * snapshot.h
 *		What procedures need in order to wait without holding a snapshot.
 */
#ifndef FANOUT_SNAPSHOT_H
#define FANOUT_SNAPSHOT_H

#include "fmgr.h"

/* Throws 25001 unless the procedure may end the transaction that it was called in. */
extern void require_nonatomic(FunctionCallInfo fcinfo, const char *procedure);

/*
 * End the current transaction and go on in a new one that has no snapshot.
 * Neither an own snapshot may be active nor an SpiScope open.  The current
 * memory context stays current and must outlive transactions, as the one that
 * a procedure is called in does.
 */
extern void release_snapshot(void);

/* Have a snapshot again: before tables are read, after a release. */
extern void take_snapshot(void);

#endif							/* FANOUT_SNAPSHOT_H */
