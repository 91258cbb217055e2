/*
 * spi.h
 *		SQL of our own, run as the extension's owner and out of reach of the
 *		caller's search_path.
 */
#ifndef FANOUT_SPI_H
#define FANOUT_SPI_H

#include "executor/spi.h"

typedef struct SpiScope
{
	Oid			user;
	int			security_context;
	int			guc_level;
} SpiScope;

/* Statements stand in a table at the top of each file and are prepared at first use. */
typedef struct SpiStatement
{
	const char *sql;
	int			nargs;
	Oid			types[20];
	SPIPlanPtr	plan;
} SpiStatement;

extern void spi_begin(SpiScope *scope);
extern void spi_end(SpiScope *scope);

/*
 * Have the statements read along an index and stop at their limit, whatever
 * the planner believes of tables that were never analyzed.  Lasts as long as
 * the SpiScope.
 */
extern void spi_follow_order(void);

/* Run it; NULLs where "nulls" has 'n'.  The result is in SPI_tuptable. */
extern uint64 spi_run(SpiStatement *statement, Datum *values, const char *nulls);

/* The same for one that was made up for this call: its plan is not kept. */
extern uint64 spi_run_once(SpiStatement *statement, Datum *values);

/* The same, seeing all that is committed by now, whatever the isolation level. */
extern uint64 spi_run_latest(SpiStatement *statement, Datum *values, const char *nulls);

/* The same for a query that only reads. */
extern uint64 spi_read_latest(SpiStatement *statement, Datum *values, const char *nulls);

/* Is it a statement of ours that runs? */
extern bool spi_is_ours(void);

extern Datum spi_value(uint64 row, int column, bool *isnull);
extern int64 spi_int64(uint64 row, int column);

#endif							/* FANOUT_SPI_H */
