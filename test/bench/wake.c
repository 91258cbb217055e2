/*
 * wake.c
 *		How long after an enqueuer's commit does a worker that waits have the
 *		task?
 *
 *		wake fanout|notify COUNT
 *
 * Two threads with a connection each: one that enqueues a task when the other
 * has waited for some milliseconds, and one that waits for it.  A time is
 * taken when the commit has returned to the first, another when the row has
 * reached the second; it may do so earlier.  "notify" is the careful SKIP
 * LOCKED queue of schema.sql, with a NOTIFY in the enqueuer's transaction and
 * a worker that listens.  Prints percentiles 50 and 99 in milliseconds.
 */
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libpq-fe.h>

#define WARM_UP 100

static const char *enqueue;
static const char *dequeue;
static const char *complete;
static const char *listen_to = NULL;
static int	count;
static double *committed;
static double *received;
static atomic_int done = -1;	/* tasks that the worker has completed; -1: it has not begun */

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static PGresult *
check(PGconn *conn, PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK)
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		exit(1);
	}
	return result;
}

static PGconn *
open_connection(void)
{
	PGconn	   *conn = PQconnectdb("");

	if (PQstatus(conn) != CONNECTION_OK)
	{
		fprintf(stderr, "%s", PQerrorMessage(conn));
		exit(1);
	}
	return conn;
}

static void
wait_for_notification(PGconn *conn)
{
	struct pollfd socket = {.fd = PQsocket(conn),.events = POLLIN};
	PGnotify   *notification;

	for (;;)
	{
		if (!PQconsumeInput(conn))
		{
			fprintf(stderr, "%s", PQerrorMessage(conn));
			exit(1);
		}
		notification = PQnotifies(conn);
		if (notification != NULL)
			break;
		poll(&socket, 1, -1);
	}
	PQfreemem(notification);
}

static void *
work(void *arg)
{
	PGconn	   *conn = open_connection();

	PQclear(check(conn, PQprepare(conn, "dequeue", dequeue, 0, NULL)));
	PQclear(check(conn, PQprepare(conn, "complete", complete, 1, NULL)));
	if (listen_to != NULL)
		PQclear(check(conn, PQexec(conn, listen_to)));
	atomic_store(&done, 0);
	for (int i = 0; i < count; i++)
	{
		PGresult   *row;
		const char *lease;

		if (listen_to != NULL)
			wait_for_notification(conn);
		row = check(conn, PQexecPrepared(conn, "dequeue", 0, NULL, NULL, NULL, 0));
		received[i] = now();
		if (PQntuples(row) != 1)
		{
			fprintf(stderr, "the worker was woken, but there was no task\n");
			exit(1);
		}
		lease = PQgetvalue(row, 0, 0);
		PQclear(check(conn, PQexecPrepared(conn, "complete", 1, &lease, NULL, NULL, 0)));
		PQclear(row);
		atomic_fetch_add(&done, 1);
	}
	PQfinish(conn);
	return NULL;
}

static void
enqueue_all(void)
{
	PGconn	   *conn = open_connection();

	PQclear(check(conn, PQprepare(conn, "enqueue", enqueue, 0, NULL)));
	for (int i = 0; i < count; i++)
	{
		while (atomic_load(&done) < i)
			usleep(100);
		usleep(2000 + random() % 3000);
		PQclear(check(conn, PQexecPrepared(conn, "enqueue", 0, NULL, NULL, NULL, 0)));
		committed[i] = now();
	}
	PQfinish(conn);
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return (x > y) - (x < y);
}

int
main(int argc, char **argv)
{
	pthread_t	worker;
	int			counted;

	if (argc != 3 || atoi(argv[2]) < 1)
		return 2;
	if (strcmp(argv[1], "notify") == 0)
	{
		enqueue = "WITH n AS (SELECT pg_notify('bench_queue', ''))"
			" INSERT INTO bench.queue (name, args) SELECT 'index_document', '{\"page\": 1}' FROM n";
		dequeue = "UPDATE bench.queue SET ready = false, attempt = attempt + 1, worker = 'w', lease_until = now() + '60 s'"
			" WHERE id = (SELECT id FROM bench.queue WHERE ready ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1)"
			" RETURNING id, name, args, attempt";
		complete = "DELETE FROM bench.queue WHERE id = $1";
		listen_to = "LISTEN bench_queue";
	}
	else
	{
		enqueue = "SELECT fanout.enqueue('empty', 'index_document', '{\"page\": 1}')";
		dequeue = "SELECT lease, name, args, attempt FROM fanout.dequeue('empty', 'w', wait => '60 s')";
		complete = "SELECT fanout.complete($1::bigint)";
	}
	count = atoi(argv[2]) + WARM_UP;
	committed = calloc(count, sizeof(double));
	received = calloc(count, sizeof(double));
	if (pthread_create(&worker, NULL, work, NULL) != 0)
		return 1;
	enqueue_all();
	pthread_join(worker, NULL);

	counted = count - WARM_UP;
	for (int i = 0; i < counted; i++)
		received[i] = received[i + WARM_UP] - committed[i + WARM_UP];
	qsort(received, counted, sizeof(double), compare);
	printf("%.3f %.3f\n", received[counted / 2], received[(int) (counted * 0.99)]);
	return 0;
}
