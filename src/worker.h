/*
 * worker.h
 *		The background workers.
 */
#ifndef FANOUT_WORKER_H
#define FANOUT_WORKER_H

#include "shared_state.h"

extern void launcher_register(void);
extern void database_commands_init(void);

extern PGDLLEXPORT void fanout_launcher_main(Datum arg);
extern PGDLLEXPORT void fanout_keeper_main(Datum arg);

/* Of keepers that fail. */
extern void keeper_settings(void);
extern void keeper_guard(void (*run) (void));
extern void keeper_works(Database *database);
extern TimestampTz retention_begins(const Database *database, TimestampTz now);
extern void retention_ends(void);
extern int	keeper_pause(int failed);

#endif							/* FANOUT_WORKER_H */
