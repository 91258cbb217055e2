/*
 * worker.h
 *		The background workers.
 */
#ifndef FANOUT_WORKER_H
#define FANOUT_WORKER_H

extern void launcher_register(void);
extern void database_commands_init(void);

extern PGDLLEXPORT void fanout_launcher_main(Datum arg);
extern PGDLLEXPORT void fanout_keeper_main(Datum arg);

#endif							/* FANOUT_WORKER_H */
