/*
 * journal.c
 *		Claims and their unspoken ends, written behind.
 *
 * A claim writes nothing; its lease waits in the database's journal list.
 * Some milliseconds later the keeper writes a row of fanout.attempt for each
 * lease that is still held, many in one transaction.  A lease that has ended
 * by then has left the list, as its end is on disk: short tasks cost no
 * journal at all.  Extensions and expiries go the same way.
 *
 * A lease leaves the list only once its row is committed.  If the keeper
 * fails in between, the next one writes the row (again): readers take rows of
 * one lease together.
 */
#include "postgres.h"

#include "access/xact.h"
#include "miscadmin.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

#include "finish.h"
#include "journal.h"
#include "points.h"
#include "starts.h"

#define JOURNAL_CHUNK	1024

/* What is to be written of one lease. */
typedef struct JournalItem
{
	int64		lease;
	int64		task;
	uint8		what;
	bool		bound;
	TimestampTz claimed_at;
	TimestampTz until;
	char		worker[FANOUT_NAME_LEN];
} JournalItem;

/* Claims are listed as they are committed; what comes before the first of them are extensions and expiries. */
TimestampTz
journal_oldest(Database *database)
{
	int			looked = 0;

	short_list_foreach(node, &database->journal)
	{
		const Lease *lease = link_container(Lease, journal_link, node);

		if (lease->journal & LEASE_JOURNAL_CLAIM)
			return lease->claimed_at;
		if (++looked == FANOUT_WORK_CHUNK)
			break;
	}
	return 0;
}

static int
copy_items(Database *database, JournalItem *items)
{
	int			count = 0;

	dispatcher_lock();
	short_list_foreach(node, &database->journal)
	{
		Lease	   *lease = link_container(Lease, journal_link, node);
		JournalItem *item;

		if (count == JOURNAL_CHUNK)
			break;
		item = &items[count++];
		item->lease = lease->node.id;
		item->task = lease->task_id;
		item->what = lease->journal;
		item->bound = lease->bound;
		item->claimed_at = lease->claimed_at;
		item->until = lease->node.key;
		memcpy(item->worker, worker_of(lease)->key.name, FANOUT_NAME_LEN);
	}
	dispatcher_unlock();
	return count;
}

static void
write_item(LogWriter *writer, const JournalItem *item, TimestampTz now)
{
	if (item->what & LEASE_JOURNAL_CLAIM)
		write_attempt(writer, item->lease, item->task, item->bound ? 'b' : 'c', item->claimed_at, item->until,
					  item->worker, (Datum) 0, true);
	if (item->what & LEASE_JOURNAL_EXTEND)
		write_attempt(writer, item->lease, item->task, 'e', now, item->until, NULL, (Datum) 0, true);
	if (item->what & LEASE_JOURNAL_EXPIRE)
		write_attempt(writer, item->lease, item->task, 'x', item->until, 0, item->worker, (Datum) 0, true);
}

/* The item is on disk: take it off what is to be written, unless there is something new. */
static void
settle_item(const JournalItem *item)
{
	Lease	   *lease = lease_find(MyDatabaseId, item->lease);
	uint8		left;

	if (lease == NULL || lease->journal == 0)
		return;
	if (item->what & LEASE_JOURNAL_CLAIM)
		lease_start_journaled(lease);
	left = lease->journal & ~item->what;
	if ((lease->journal & LEASE_JOURNAL_EXTEND) && lease->node.key != item->until)
		left |= LEASE_JOURNAL_EXTEND;
	if (left == 0)
		lease_journaled(lease);
	else
		lease->journal = left;
}

bool
journal_flush(Database *database)
{
	static JournalItem items[JOURNAL_CHUNK];
	int			count = copy_items(database, items);
	TimestampTz now = GetCurrentTimestamp();
	LogWriter  *writer;

	if (count == 0)
		return false;

	FANOUT_POINT(JOURNAL_COPIED);
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	writer = log_writer_open(LOG_ATTEMPT, count * 2);
	for (int i = 0; i < count; i++)
		write_item(writer, &items[i], now);
	log_writer_close(writer);
	FANOUT_POINT(JOURNAL_WRITTEN);
	PopActiveSnapshot();
	CommitTransactionCommand();
	FANOUT_POINT(JOURNAL_COMMITTED);

	dispatcher_lock();
	for (int i = 0; i < count; i++)
		settle_item(&items[i]);
	database->journaled += count;
	dispatcher_unlock();
	FANOUT_POINT(JOURNAL_SETTLED);
	return true;
}
