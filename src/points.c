/*
 * points.c
 *		Crash points: places between two steps at which a test can stop a process.
 *
 * Only in a checked build; points.h has their list.  fanout._set_point() says
 * what is to happen at one: who comes there waits until it is set to something
 * else (and can be terminated meanwhile), fails, or kills itself.  Points that
 * are not set cost one look at shared memory.
 *
 * The state of a point is changed without a lock, since some are met under the
 * dispatcher lock: tests see to it that one process at a time meets one that
 * is set.
 */
#include "postgres.h"

#include <signal.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"

#include "arguments.h"
#include "points.h"
#include "registry.h"
#include "shared_state.h"
#include "wait.h"

PG_FUNCTION_INFO_V1(fanout_points);
PG_FUNCTION_INFO_V1(fanout_set_point);

#ifdef FANOUT_CHECKED

#define POINT_SLICE		10		/* milliseconds between two looks */

#define POINT_NAME(id, name, may_throw) name,
static const char *const point_names[] = {FANOUT_POINTS(POINT_NAME)};

#define POINT_MAY_THROW(id, name, may_throw) may_throw,
static const bool point_may_throw[] = {FANOUT_POINTS(POINT_MAY_THROW)};

static const char *const action_names[] = {"nothing", "wait", "error", "disk full", "kill"};

/* Until somebody sets it to something else, or ends this process or statement; not so in callbacks, which nobody interrupts. */
static void
wait_at(PointState *point)
{
	while (point->action == POINT_WAIT)
	{
		CHECK_FOR_INTERRUPTS();
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, POINT_SLICE, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
	}
}

/* This process is at the point. */
void
point_reached(FanoutPoint id)
{
	PointState *point = &fanout_shared->points[id];
	int32		action = point->action;

	if (action == POINT_NOTHING)
		return;
	if (point->skip > 0)
	{
		point->skip--;
		return;
	}
	point->reached++;
	point->pid = MyProcPid;
	if (action == POINT_KILL)
	{
		(void) kill(MyProcPid, SIGKILL);
		for (;;)
			;					/* it has arrived by the time that kill() returns, or nearly so */
	}
	if (action == POINT_WAIT)
	{
		wait_at(point);
		return;
	}
	if (--point->times <= 0)
		point->action = POINT_NOTHING;
	if (action == POINT_DISK_FULL)
		ereport(ERROR,
				(errcode(ERRCODE_DISK_FULL),
				 errmsg("could not extend file at point \"%s\": No space left on device", point_names[id])));
	ereport(ERROR,
			(errcode(ERRCODE_RAISE_EXCEPTION),
			 errmsg("an error at point \"%s\"", point_names[id])));
}

static bool
point_may(FanoutPoint id, PointAction action)
{
	return point_may_throw[id] || action == POINT_NOTHING || action == POINT_KILL ||
		(action == POINT_WAIT && id == POINT_NOTES_CHUNK);
}

/* The place of a text argument in a list of names. */
static int
arg_name(FunctionCallInfo fcinfo, int arg, const char *what, const char *const *names, int count)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(arg));

	for (int i = 0; i < count; i++)
	{
		if (strcmp(names[i], name) == 0)
			return i;
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("there is no %s \"%s\"", what, name)));
}

Datum
fanout_set_point(PG_FUNCTION_ARGS)
{
	int			id;
	int			action;
	PointState *point;

	require_readable();
	require_arg(fcinfo, 0, "point");
	require_arg(fcinfo, 1, "action");
	require_arg(fcinfo, 2, "times");
	require_arg(fcinfo, 3, "skip");
	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("only superusers can set crash points")));
	id = arg_name(fcinfo, 0, "point", point_names, lengthof(point_names));
	action = arg_name(fcinfo, 1, "action", action_names, lengthof(action_names));
	if (!point_may(id, action))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("action \"%s\" is not possible at point \"%s\"", action_names[action], point_names[id]),
				 errdetail("An error there would be a PANIC, or nobody else could go on.")));

	point = &fanout_shared->points[id];
	point->action = POINT_NOTHING;
	point->times = PG_GETARG_INT32(2);
	point->skip = PG_GETARG_INT32(3);
	if (action != POINT_NOTHING)
		point->reached = point->pid = 0;
	point->action = action;
	PG_RETURN_VOID();
}

/* A row for each point. */
Datum
fanout_points(PG_FUNCTION_ARGS)
{
	ResultSet	set;

	require_readable();
	set = result_set_begin(fcinfo);
	for (int id = 0; id < POINT_COUNT; id++)
	{
		const PointState *point = &fanout_shared->points[id];
		Datum		values[5];
		bool		nulls[5] = {false, false, false, false, point->pid == 0};

		values[0] = CStringGetTextDatum(point_names[id]);
		values[1] = BoolGetDatum(point_may_throw[id]);
		values[2] = CStringGetTextDatum(action_names[point->action]);
		values[3] = Int32GetDatum(point->reached);
		values[4] = Int32GetDatum(point->pid);
		result_set_add(&set, values, nulls);
	}
	return (Datum) 0;
}

#else

Datum
fanout_set_point(PG_FUNCTION_ARGS)
{
	require_readable();
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("this build of pg_fanout has no crash points"),
			 errhint("Build it with make CHECKED=1.")));
}

Datum
fanout_points(PG_FUNCTION_ARGS)
{
	require_readable();
	(void) result_set_begin(fcinfo);
	return (Datum) 0;
}

#endif
