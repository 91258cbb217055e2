/*
 * lease.pml
 *		The life of one task: claim, journal, expiry, completion, restart.
 *
 * A model for spin, with two workers, the keeper, and one crash of the server
 * at any moment.  An atomic step is one hold of the dispatcher lock, or one
 * commit on disk.  src/README.md says which function each step stands for.
 *
 * What is checked, in all interleavings: a task gets one outcome; no lease
 * number is given twice; what is written under a lease is committed only while
 * nobody else has the task; in the end the task has its outcome, and no permit
 * is held.  Nobody waits for ever: that would be an invalid end state.
 *
 * BUG, from 1 on, plants an error that the checks must find: see run.sh.
 */
#ifndef BUG
#define BUG 0
#endif

/* how much happens, at most: the product of these is what makes a run long */
#ifndef CRASHES
#define CRASHES		1
#endif
#ifndef EXPIRIES
#define EXPIRIES	1
#endif
#ifndef ROLLBACKS
#define ROLLBACKS	1
#endif
#ifndef RELEASES
#define RELEASES	1
#endif
#ifndef FAILURES
#define FAILURES	1
#endif
#ifndef COPIES
#define COPIES		1
#endif

#define LEASES	16				/* numbers that there are */
#define AHEAD	3				/* how many the ceiling is raised by */
#define NOBODY	0

mtype = { READY, RUNNING, GONE };

/* on disk: outlives a crash */
bool d_outcome;
bool d_claimed[LEASES];			/* journal: claimed */
bool d_ended[LEASES];			/* journal: released or expired */
byte d_ceiling = 1;

/* in shared memory */
bool m_up;						/* memory is built: DATABASE_READY */
mtype m_task;
byte m_lease;					/* RUNNING: the number */
bool m_committed;
byte m_ender;					/* the worker whose transaction ends the lease */
byte m_pins;
byte m_running;					/* permits of the queue, whose limit is 1 */
byte m_next;
byte m_ceiling;
byte m_unjournaled_claim;		/* a lease whose claim is to be journaled */
byte m_unjournaled_end;			/* one whose expiry is */

/* of the server */
byte epoch;						/* counts the crashes: who began before one has no transaction any more */
byte crashes = CRASHES;

/* of the world */
byte expiries = EXPIRIES;		/* how often a lease runs out under a worker that has it */
byte rollbacks = ROLLBACKS;
byte releases = RELEASES;
byte failures = FAILURES;		/* how often a worker forgets its lease */
byte copies = COPIES;			/* how often one takes the other's, as a client that has lost its connection */
bool given[LEASES];				/* numbers that were given out */
byte has[3];					/* the lease that each worker believes to have */
byte finished;

#define same_life		(epoch == life)
#define live(lease)		(m_task == RUNNING && m_lease == lease)

inline forget_lease()
{
	m_lease = 0; m_committed = false; m_ender = NOBODY; m_pins = 0;
	m_running--;
}

/* queue_claim, then lease_commit or lease_undo */
inline dequeue()
{
	atomic {
		has[me] == 0 && m_up && m_task == READY && m_running < 1 && m_next < m_ceiling;
		life = epoch;
		lease = m_next;
		m_next++;
		assert(!given[lease]);
		given[lease] = true;
		m_task = RUNNING; m_lease = lease; m_committed = false; m_running++;
	}
	if
	:: atomic {
			if
			:: same_life ->
				assert(live(lease));
				m_committed = true; m_unjournaled_claim = lease;
				has[me] = lease
			:: else
			fi
		}
	:: atomic {
			rollbacks > 0 -> rollbacks--;
			if
			:: same_life -> forget_lease(); m_task = READY
			:: else
			fi
		}
	fi;
	lease = 0; life = 0
}

/*
 * try_to_hold in lease.c: pins the lease, and takes it for ending if it is to
 * end.  Its outcome is "held".
 */
inline hold(ends)
{
	held = false;
	do
	:: atomic {
			m_up;
			life = epoch;
			if
			:: live(has[me]) && m_committed && (m_ender == NOBODY || BUG == 5) ->
				held = true;
				m_pins++;
				if
				:: ends -> m_ender = me
				:: else
				fi;
				break
			:: live(has[me]) && m_committed && m_ender != NOBODY && BUG != 5
			:: else -> break
			fi
		}
		/* XactLockTableWait, and look again */
		(m_ender == NOBODY || !same_life)
	od
}

/* the end of a transaction that held the lease and does not end it: lease_unpin */
inline unpin()
{
	atomic {
		if
		:: same_life && live(has[me]) -> m_pins--; m_ender = (m_ender == me -> NOBODY : m_ender)
		:: else
		fi;
		held = false; life = 0
	}
}

/* complete: hold, insert the outcome, commit, task_end in the commit callback; or abort */
inline complete()
{
	hold(true);
	if
	:: !held ->
		/* completed_before, or FO001 */
		has[me] = 0
	:: held ->
#if BUG == 2
		atomic {
			if
			:: same_life && live(has[me]) -> forget_lease(); m_task = GONE
			:: else
			fi
		}
#endif
		if
		:: atomic {
				/* the commit record: all or nothing */
				if
				:: same_life ->
					assert(!d_outcome);
					assert(BUG == 2 || live(has[me]));
					d_outcome = true;
					committed = true
				:: else -> committed = false
				fi
			}
			atomic {
				if
				:: committed && same_life && live(has[me]) -> forget_lease(); m_task = GONE
				:: else
				fi;
				if
				:: committed -> has[me] = 0
				:: else				/* an error for the client, which may try again */
				fi;
				committed = false; held = false; life = 0
			}
		:: atomic { rollbacks > 0 -> rollbacks-- };
#if BUG != 2
			unpin()
#endif
		fi
	fi
}

/* release: the journal's row in the same transaction, then task_requeue */
inline release()
{
	hold(true);
	if
	:: !held -> has[me] = 0
	:: held ->
		atomic {
			if
			:: same_life -> d_ended[has[me]] = true; committed = true
			:: else -> committed = false
			fi
		}
		atomic {
			if
			:: committed && same_life ->
				assert(live(has[me]));
				m_unjournaled_claim = (m_unjournaled_claim == has[me] -> 0 : m_unjournaled_claim);
				forget_lease(); m_task = READY
			:: else
			fi;
			has[me] = (committed -> 0 : has[me]);
			committed = false; held = false; life = 0
		}
	fi
}

/* checkpoint: what is written under a lease is committed only while it is the task's */
inline checkpoint()
{
	hold(false);
	if
	:: !held -> has[me] = 0
	:: held ->
		atomic {
			if
				/* two sessions with one lease are one worker: what it writes may come after its own end */
			:: same_life -> assert(live(has[me]) || COPIES > 0)
			:: else
			fi
		}
		unpin()
	fi
}

proctype Worker(byte me)
{
	byte life;
	byte lease;
	bool held;
	bool committed;

	do
	:: has[me] == 0 && m_up && m_task == GONE -> break
	:: dequeue()
	:: has[me] != 0 -> complete()
	:: has[me] != 0 -> checkpoint()
	:: atomic { has[me] != 0 && releases > 0 -> releases-- }; release()
	:: atomic { has[me] != 0 && failures > 0 -> failures--; has[me] = 0 }
	:: atomic { has[me] == 0 && has[3 - me] != 0 && copies > 0 -> copies--; has[me] = has[3 - me] }
	od;
	finished++
}

/* rebuild.c: folds the journal; ids_load: numbers go on from the ceiling */
inline rebuild()
{
	atomic {
		m_lease = 0; m_committed = false; m_ender = NOBODY; m_pins = 0; m_running = 0;
		m_unjournaled_claim = 0; m_unjournaled_end = 0;
		m_next = d_ceiling; m_ceiling = d_ceiling;
		number = LEASES - 1;
		do
		:: number > 0 && !d_claimed[number] && !d_ended[number] -> number--
		:: else -> break
		od;
#if BUG == 3
		m_next = number + 1;
#endif
		if
		:: d_outcome -> m_task = GONE
		:: !d_outcome && number > 0 && d_claimed[number] && !d_ended[number] ->
			m_task = RUNNING; m_lease = number; m_committed = true; m_running = 1
		:: else -> m_task = READY
		fi;
		m_up = true;
		number = 0
	}
}

proctype Keeper()
{
	byte life;
	byte number;

end:
	do
	:: !m_up -> rebuild()

		/* ids_raise_ceilings: on disk first */
	:: atomic { m_up && m_next == m_ceiling && m_ceiling + AHEAD <= LEASES -> life = epoch; number = m_ceiling + AHEAD };
		d_ceiling = (number > d_ceiling -> number : d_ceiling);
		atomic {
			if
			:: same_life && m_up -> m_ceiling = number
			:: else
			fi;
			number = 0; life = 0
		}

		/* expire_leases; nobody has to have given the lease up, but in the end somebody gets it */
	:: atomic {
			m_up && m_task == RUNNING && m_committed && (m_pins == 0 || BUG == 1) && m_unjournaled_end == 0 &&
			(expiries > 0 || (has[1] != m_lease && has[2] != m_lease)) ->
			if
			:: has[1] == m_lease || has[2] == m_lease -> expiries--
			:: else
			fi;
			m_unjournaled_end = m_lease;
			m_unjournaled_claim = (m_unjournaled_claim == m_lease -> 0 : m_unjournaled_claim);
			forget_lease(); m_task = READY;
#if BUG == 4
			m_running++
#endif
		}

		/* journal_flush: copy_items, commit, settle_item */
	:: atomic { m_up && m_unjournaled_claim != 0 -> life = epoch; number = m_unjournaled_claim };
		atomic {
			if
			:: same_life -> d_claimed[number] = true
			:: else
			fi
		}
		atomic {
			if
			:: same_life && m_unjournaled_claim == number -> m_unjournaled_claim = 0
			:: else
			fi;
			number = 0; life = 0
		}
	:: atomic { m_up && m_unjournaled_end != 0 -> life = epoch; number = m_unjournaled_end };
		atomic {
			if
			:: same_life -> d_ended[number] = true; m_unjournaled_end = 0
			:: else
			fi;
			number = 0; life = 0
		}
	od
}

/* All that is in memory goes, whatever anybody is doing. */
proctype Crash()
{
	atomic { crashes > 0 -> crashes--; epoch++; m_up = false; m_task = READY }
}

init
{
	atomic { run Keeper(); run Worker(1); run Worker(2); run Crash() }
	finished == 2;
	atomic {
		m_up -> assert(d_outcome && m_task == GONE && m_running == 0)
	}
}
