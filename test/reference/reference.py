"""What the README promises of the dispatcher, as plainly as can be: dictionaries and sums over them.

The reference takes no decision that the README leaves open (which of several partitions has the next turn, whether a
start that a restart may have forgotten counts): it follows the server's answer, and says no if the answer is none that
is promised. Times are over, or so soon that it is waited for, or an hour off; windows of rate limits are hours long and
forget nothing here. Since when a task waits, which is its place where there is aging, is told by the server.
"""

import collections

WAITS = ("ready", "scheduled")
ENDED = ("succeeded", "failed", "cancelled")


class Wrong(Exception):
    """The server's answer is not what it should be."""


class Task:
    def __init__(self, number, queue, key, priority, cost, far, max_attempts, group):
        self.number, self.queue, self.key, self.group = number, queue, key, group
        self.priority, self.cost, self.max_attempts = priority, cost, max_attempts
        self.timed = False          # it was enqueued with a time
        self.late = False           # its deadline is over when it comes
        self.soon = False           # so is its time, or soon after it
        self.since = 0              # it waits, in microseconds; known in queues with aging
        self.args = self.batch = None
        self.steps = {}             # values of checkpoints
        self.about = None           # its key, which others cannot have
        self.holds_on = None        # to it: True, for long; False, no longer; None, until it has ended
        self.state = "uncommitted"
        self.due_state = "scheduled" if far else "ready"
        self.attempts = 0
        self.lease = None           # that it runs under
        self.cancel_asked = False
        self.leased = False         # at any time in this life
        self.retried = False        # it waits for another attempt, and for its time
        self.busy = None            # the session whose open transaction decides about it

    def place(self):
        aging = self.queue.aging
        return self.priority if aging is None else self.since + self.priority * aging, self.number

    def __repr__(self):
        return f"task {self.number} ({self.queue.name}, {self.key}, {self.state}, priority {self.priority})"


class Lease:
    def __init__(self, number, task, worker, session):
        self.number, self.task, self.worker = number, task, worker
        self.claimer = session      # its transaction is open; None: committed
        self.ender = None           # the session whose open transaction ends it
        self.ends = False           # its task, rather than give it back for another attempt
        self.ended = 0              # counts ends, in their order
        self.writer = None          # the session whose open transaction has written under it
        self.permit_passed = False  # to a claim of that transaction
        self.lane_passed = False    # and that of the partition
        self.permit_of = None       # the lease whose permit this claim got


class Batch:
    def __init__(self, number, join, count):
        self.number, self.join, self.count = number, join, count
        self.tasks = []
        self.committed = False
        self.ended = False          # by its join, and for good

    def is_decided(self):
        """Is there something for the keeper to do?"""
        states = [task.state for task in self.tasks]
        if self.join == "all":
            return False
        return all(state in ENDED for state in states) or \
            {"any": states.count("succeeded") >= 1, "n": states.count("succeeded") >= (self.count or 0),
             "fail_fast": states.count("failed") >= 1}[self.join]


class Rate:
    """Units that have started, of a queue or a partition: at least, and at most."""

    def __init__(self):
        self.least = 0              # since there has been a limit
        self.most = 0
        self.largest = 0            # limit that there ever was

    def start(self, units, limited):
        self.most += units
        if limited:
            self.least += units

    def undo(self, units):
        self.most -= units
        self.least = max(self.least - units, 0)

    def note(self, limits):
        """The limits have changed."""
        if not limits:
            self.least = 0
        self.largest = max([self.largest, *limits])

    def fits(self, cost, limits, rebuilds):
        """True, False, or None if it is left open."""
        unknown = rebuilds * max(1, self.largest // 16)
        if any(self.least + min(cost, units) > units for units in limits):
            return False
        if all(self.most + unknown + min(cost, units) <= units for units in limits):
            return True
        return None


class Lane:
    def __init__(self):
        self.concurrency = None
        self.group = None           # that the latest task has named
        self.weight = 1
        self.paused = self.held = False
        self.rate_limit = None
        self.max_backlog = None
        self.rate = Rate()


class Turns:
    """Shares by weight: a turn moves a partition on by the inverse of its weight, and who is behind is next.

    Of each two that surely wait for their turns, what is known about how far one is ahead of the other. Who comes is
    even with those who wait, to a turn; and so it was, if one of them has its turn. Turns that are given back may be
    made up for.
    """

    def __init__(self):
        self.waiting = set()
        self.ahead = {}             # of a pair: by so much at least the first is ahead of the second
        self.owed = {}              # by key: turns that were given back, at most
        self.history = collections.deque(maxlen=60)     # for who reads that something is wrong

    def settle(self, keys):
        """These can surely start now."""
        keys = set(keys)
        came, left = keys - self.waiting, self.waiting - keys
        self.waiting -= left
        for key in came:
            for other in self.waiting:
                self.ahead[key, other] = -1 - self.owed.get(key, 0)
                self.ahead[other, key] = -1 - self.owed.get(other, 0)
            self.waiting.add(key)
        if came or left:
            self.history.append(" ".join([*(f"{key} waits" for key in came), *(f"{key} waits no longer" for key in left)]))

    def serve(self, key, weight):
        """The partition has its turn: it is ahead of none, and is so much further then."""
        if key in self.waiting:
            for other in self.waiting - {key}:
                if self.ahead[key, other] > 1e-3:
                    raise Wrong(f"partition {key} has its turn, {self.ahead[key, other]:.2f} ahead of {other}")
                self.ahead[other, key] = max(self.ahead[other, key], 0)
        self.move(key, 1 / weight, 1 / weight)
        self.owed[key] = max(self.owed.get(key, 0) - 1 / weight, 0)
        self.history.append(f"{key} has its turn, weight {weight}")

    def give_back(self, key, weight):
        """It was for nothing: it may be put back as much."""
        self.move(key, -1 / weight, 0)
        self.owed[key] = self.owed.get(key, 0) + 1 / weight
        self.history.append(f"{key} gives a turn back, weight {weight}")

    def move(self, key, least, most):
        if key in self.waiting:
            for other in self.waiting - {key}:
                self.ahead[key, other] += least
                self.ahead[other, key] -= most

    def __str__(self):
        return "\n".join(["the latest turns:", *self.history, *(
            f"{one} is ahead of {other} by {least:.2f} to {-self.ahead[other, one]:.2f}"
            for (one, other), least in self.ahead.items() if {one, other} <= self.waiting and str(one) < str(other))])


class Queue:
    def __init__(self, name, **settings):
        self.name = name
        self.settings = {"concurrency": None, "worker_concurrency": None, "partition_concurrency": None,
                         "partition_rate_limit": None, "max_backlog": None, "partition_max_backlog": None, "max_attempts": 3,
                         "partition_retries": "block", "aging": None, **settings}
        self.paused = self.held = False
        self.rate_limits = {}       # units by period, in hours
        self.rate = Rate()
        self.lanes = {}
        self.largest_lane_rate = 0
        self.tasks = set()          # unfinished ones
        self.leases = set()
        self.forget_turns()
        self.config_busy = None     # the session whose open transaction changes settings
        self.changed()

    def __getattr__(self, name):
        return self.settings[name]

    def lane(self, key):
        if key not in self.lanes:
            self.lanes[key] = Lane()
            self.lanes[key].rate.largest = self.largest_lane_rate   # the server may have known it before
        return self.lanes[key]

    # -- turns: of groups and of partitions that are in none, and those of the partitions of each group

    def forget_turns(self):
        self.turns, self.group_turns = Turns(), {}

    def settle(self, sure):
        """These partitions can surely start now."""
        members = {}
        for key in sure:
            members.setdefault(self.lane(key).group, []).append(key)
        for group in {*members, *self.group_turns} - {None}:
            self.group_turns.setdefault(group, Turns()).settle(members.get(group, []))
        self.turns.settle([*members.pop(None, []), *(f"group {group}" for group in members)])

    def turn(self, key, give_back=False):
        """The partition has a turn, or gives it back; so does its group."""
        lane = self.lane(key)
        turns, weight = self.turns, lane.weight
        if lane.group is not None:
            turns = self.group_turns.setdefault(lane.group, Turns())
            (self.turns.give_back if give_back else self.turns.serve)(f"group {lane.group}", 1)
        (turns.give_back if give_back else turns.serve)(key, weight)

    # -- settings

    def lane_concurrency(self, key):
        return None if key is None else self.lane(key).concurrency or self.partition_concurrency

    def lane_rates(self, key):
        limit = None if key is None else self.lane(key).rate_limit or self.partition_rate_limit
        return [limit] if limit else []

    def changed(self):
        """Settings have changed."""
        self.rate.note(list(self.rate_limits.values()))
        self.largest_lane_rate = max(self.largest_lane_rate, self.partition_rate_limit or 0)
        for key, lane in self.lanes.items():
            lane.rate.note(self.lane_rates(key))


class Reference:
    def __init__(self):
        self.queues = {}
        self.tasks = {}
        self.batches = {}
        self.leases = {}            # live ones
        self.completed = {}         # by lease
        self.rebuilds = 0
        self.exact_order = True     # everything has a place in memory
        self.lent = []              # leases that lend their permits while a session dequeues
        self.pool = 0               # if not, so many tasks have
        self.short = 0              # claims for which memory may be taken by what cannot leave it

    # -- what may start

    @staticmethod
    def permits(queue, worker, session, lender=None):
        """May the worker have a permit, and of which lease that its transaction ends; (False, None) if not."""
        held = [lease for lease in queue.leases if not lease.permit_passed]
        mine = [lease for lease in held if lease.worker == worker]
        passing = sorted((lease for lease in held if session is not None and lease.ender is session and
                          (queue.worker_concurrency is None or lease.worker == worker)),
                         key=lambda lease: (not lease.ends, lease.ended))

        def left(more):
            return ((queue.concurrency is None or len(held) - more < queue.concurrency) and
                    (queue.worker_concurrency is None or len(mine) - more < queue.worker_concurrency))
        if lender is not None:
            return left(1), lender
        if left(0):
            return True, None
        return (True, passing[0]) if passing and left(1) else (False, None)

    @staticmethod
    def first_of_lanes(queue):
        firsts = {}
        for task in queue.tasks:
            if task.state == "ready" and (task.key not in firsts or task.place() < firsts[task.key].place()):
                firsts[task.key] = task
        return firsts

    @staticmethod
    def awaits_retry(queue, key):
        """A partition that runs one at a time keeps its order over retries, unless they are to pass."""
        return queue.partition_retries == "block" and queue.lane_concurrency(key) == 1 and any(task.key == key and task.retried for task in queue.tasks)

    @staticmethod
    def lane_running(queue, key):
        return sum(lease.task.key == key and not lease.lane_passed for lease in queue.leases)

    def lend(self, queue, worker, session):
        """Partitions at their limit: the leases whose permits of these may go to claims of the session."""
        self.lent = [lease for lease in queue.leases if lease.ender is session and lease.ends and not lease.permit_passed and
                     (queue.worker_concurrency is None or lease.worker == worker) and
                     self.lane_running(queue, lease.task.key) >= (queue.lane_concurrency(lease.task.key) or 1000)]

    def lenders(self, queue, key):
        return [lease for lease in self.lent if lease.task.queue is queue and lease.task.key == key and not lease.permit_passed]

    def lane_admits(self, queue, task):
        """Do the limits of the task's partition admit it?  True, False, or None if it is left open."""
        lane, limit = queue.lane(task.key), queue.lane_concurrency(task.key)
        if lane.paused or lane.held or self.awaits_retry(queue, task.key):
            return False
        if limit and self.lane_running(queue, task.key) - len(self.lenders(queue, task.key)) >= limit:
            return False
        return lane.rate.fits(task.cost, queue.lane_rates(task.key), self.rebuilds)

    def queue_admits(self, queue, task):
        return queue.rate.fits(task.cost, list(queue.rate_limits.values()), self.rebuilds)

    def look(self, queue):
        """The first task of each lane that can start, as far as lanes go, and whether it surely can."""
        return {key: (task, admits) for key, task in self.first_of_lanes(queue).items()
                if (admits := self.lane_admits(queue, task)) is not False}

    def settle(self, queue):
        """Something of the queue has changed."""
        if self.exact_order:
            queue.settle(key for key, (_, sure) in self.look(queue).items() if sure)

    # -- dequeue

    def dequeue(self, queue, worker, session, limit, rows):
        """The server gave these (lease, task, attempt) of the queue, of at most so many; True if that is all it had to."""
        if not queue.paused:
            self.lend(queue, worker, session)
            self.settle(queue)
        for number, task_number, attempt in rows:
            self.claim(queue, worker, session, number, self.tasks[task_number], attempt)
        complete = len(rows) == limit or not self.must_start(queue, worker, session)
        self.lent = []
        self.settle(queue)
        return complete

    def claim(self, queue, worker, session, number, task, attempt):
        candidates = self.look(queue)
        lender = next(iter(self.lenders(queue, task.key)), None)
        admitted, passes = self.permits(queue, worker, session, lender)
        first = candidates.get(task.key, (None, None))[0]
        if queue.paused or queue.held or not admitted:
            raise Wrong(f"{task} started, but its queue lets none")
        if task.state != "ready" or task.key not in candidates:
            raise Wrong(f"{task} started, but its partition lets none")
        self.note_shortage()
        if first is not task and (self.exact_order or self.short == 0):
            raise Wrong(f"{task} started before {first}")
        if self.queue_admits(queue, task) is False:
            raise Wrong(f"{task} started beyond the rate limit of its queue")
        if attempt != task.attempts + 1:
            raise Wrong(f"{task} started as attempt {attempt}, after {task.attempts}")
        if number in self.leases or number in self.completed:
            raise Wrong(f"lease {number} was given before")
        if self.exact_order:
            queue.settle(key for key, (_, sure) in candidates.items() if sure)
            queue.turn(task.key)
        lease = Lease(number, task, worker, session)
        if passes is not None:
            passes.permit_passed, passes.lane_passed = True, passes is lender
            lease.permit_of = passes
        self.leases[number] = task.lease = lease
        queue.leases.add(lease)
        task.state, task.attempts = "running", attempt
        queue.rate.start(task.cost, bool(queue.rate_limits))
        queue.lane(task.key).rate.start(task.cost, bool(queue.lane_rates(task.key)))
        self.settle(queue)

    def note_shortage(self):
        """With no memory left a partition gives out what it has before what is on disk, and does until it finds some.

        So does a queue that has half of its share of memory full of what cannot leave it.
        """
        kept = collections.Counter(task.queue.name for task in self.tasks.values() if task.state not in ENDED and (
            task.leased or task.lease is not None or task.busy is not None or (task.timed and task.state == "ready")))
        short = kept.total() > self.pool * 3 // 4 or max(kept.values(), default=0) >= self.pool // 8
        self.short = 50 if short else max(self.short - 1, 0)

    def must_start(self, queue, worker, session):
        """Is there something that the worker surely should have been given?"""
        candidates = self.look(queue)
        if queue.paused or queue.held or not self.permits(queue, worker, session)[0]:
            return False
        return any(sure for _, sure in candidates.values()) and \
            all(self.queue_admits(queue, task) for task, _ in candidates.values())

    # -- ends

    def drop_lease(self, lease):
        del self.leases[lease.number]
        lease.task.queue.leases.remove(lease)
        lease.task.lease = None

    def undo_claim(self, lease):
        task = lease.task
        task.queue.rate.undo(task.cost)
        task.queue.lane(task.key).rate.undo(task.cost)
        self.drop_lease(lease)
        if lease.permit_of is not None:
            lease.permit_of.permit_passed = lease.permit_of.lane_passed = False
        self.settle(task.queue)
        task.queue.turn(task.key, give_back=True)
        task.attempts -= 1
        task.state = "cancelled" if task.cancel_asked else "ready"
        self.gone(task)

    def end(self, lease, outcome):
        self.drop_lease(lease)
        lease.task.state = outcome
        lease.task.busy = None
        if outcome == "succeeded":
            self.completed[lease.number] = True
        self.gone(lease.task)

    def requeue(self, lease, far, counts):
        task = lease.task
        self.drop_lease(lease)
        task.busy = None
        task.attempts -= not counts
        task.state = "cancelled" if task.cancel_asked else "scheduled" if far else "ready"
        task.retried = task.state == "scheduled"
        self.gone(task)
        self.settle(task.queue)

    def due(self, task):
        """It was scheduled, and its time has come."""
        task.state, task.retried, task.soon = "ready", False, False
        self.settle(task.queue)

    def gone(self, task):
        if task.state in ENDED:
            task.queue.tasks.discard(task)
        self.settle(task.queue)

    def holder(self, queue, about):
        """The task that holds the key, or None."""
        latest = max((task for task in self.tasks.values() if task.queue is queue and task.about == about),
                     key=lambda task: task.number, default=None)
        if latest is None or latest.holds_on is False or (latest.holds_on is None and latest.state in ENDED):
            return None
        return latest

    def come(self, task):
        """The task comes to its partition."""
        if task.key is not None:
            task.queue.lane(task.key).group = task.group
        task.queue.tasks.add(task)
        self.settle(task.queue)

    @staticmethod
    def set_terms(task, terms):
        for name in {"priority", "key", "queue", "cost", "max_attempts", "group", "holds_on", "since", "soon", "args"} & terms.keys():
            setattr(task, name, terms[name])

    def change(self, task, terms):
        """A task that waits has another priority, time, queue or partition."""
        before = task.queue
        before.tasks.discard(task)
        self.set_terms(task, terms)
        if "far" in terms:
            task.timed = terms["timed"]
            task.state = "scheduled" if terms["far"] else "ready"
        task.retried = task.state == "scheduled" and task.leased
        self.settle(before)
        self.come(task)

    # -- what is shown

    def why(self, task):
        """The codes that why() may say."""
        queue, lane = task.queue, task.queue.lane(task.key)
        if task.state == "running":
            return {"cancelling" if task.cancel_asked else "running"}
        if task.state != "ready":
            return {task.state}
        firsts = self.first_of_lanes(queue)
        limit = queue.lane_concurrency(task.key)
        for code, holds in (("queue_paused", queue.paused), ("queue_held", queue.held),
                            ("partition_paused", lane.paused), ("partition_held", lane.held),
                            ("concurrency", queue.concurrency and
                             sum(not lease.permit_passed for lease in queue.leases) >= queue.concurrency),
                            ("partition_concurrency", limit and
                             self.lane_running(queue, task.key) >= limit),
                            ("partition_retry", self.awaits_retry(queue, task.key))):
            if holds:
                return {code}
        admits = lane.rate.fits(firsts[task.key].cost, queue.lane_rates(task.key), self.rebuilds)
        if admits is False:
            return {"partition_rate_limit"}
        codes = {"turn", "no_worker"} if admits else {"turn", "no_worker", "partition_rate_limit"}
        fits = [self.queue_admits(queue, first) for first, _ in self.look(queue).values()]
        if any(fit is not True for fit in fits):
            codes.add("rate_limit")
        if fits and all(fit is False for fit in fits):
            codes = {"rate_limit"} if admits else {"rate_limit", "partition_rate_limit"}
        return codes
