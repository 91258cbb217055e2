"""What the logs of the actors say, compared with what is promised.

Nothing here can be a false alarm. A lease counts from its claim to a moment before its end was committed, or, if nobody
has ended it, to its time or the next stop of the server, whichever is first: it is known between which times that was.
A permit is held for longer than that.
"""
import bisect
import collections
import glob
import json

from actors import DEBOUNCED, LIMITED, PARTITION_RATES, QUEUES, RATES


class History:
    """What a setting was. Between the times before and after its transaction a change may be there or not."""
    def __init__(self, value):
        self.times, self.possible = [0], [{value}]
        self.changing = None        # what was possible before, and the value that it is changed to

    def add(self, at, possible):
        self.times.append(at)
        self.possible.append(possible)

    def begin(self, at, value):
        before = self.possible[-1]
        self.changing = before, value
        self.add(at, before | {value})      # and stays so, should nobody know how it ended

    def end(self, at, committed):
        before, value = self.changing
        self.add(at, {value} if committed else before)

    def values(self, begin, end):
        """All that it may have been at any moment from begin to end."""
        return set().union(*self.possible[max(bisect.bisect_left(self.times, begin) - 1, 0):bisect.bisect(self.times, end)])


class Lease:
    def __init__(self, claim):
        self.__dict__.update(claim)
        self.end = self.until
        self.kept = self.undone = False
        self.open_end = False       # somebody was about to end it, at the time "end"
        self.done = []              # what was committed under it: (server's time before it, what)


class Logs:
    def __init__(self, directory, stops):
        self.stops = stops
        self.leases, self.wrong = {}, []
        self.of_task = collections.defaultdict(list)
        self.enqueued, self.never, self.completed = {}, set(), collections.defaultdict(list)     # when it was known that they are there
        self.deadlines, self.children = {}, {}
        self.steps = {}             # by task and step: value, and when its commit was known
        self.changes, self.settings = [], collections.defaultdict(lambda: History(None))
        self.settings["limits"] = History((QUEUES["changing"]["concurrency"], QUEUES["changing"]["partition_concurrency"]))
        self.bounces = collections.defaultdict(list)    # calls of debounce that are known to be committed, by task
        self.touched, self.calls = set(), []    # tasks that somebody was about to cancel or change; what the guest did
        self.errors = collections.Counter()
        self.counts = collections.Counter()
        self.steps_given = []       # by claims: (when it began, task, checkpoints)
        for name in sorted(glob.glob(f"{directory}/*.log")):
            with open(name) as file:
                for line in file:
                    if line.endswith("\n"):     # who was killed may have left half a line
                        self.read(json.loads(line))
        self.read_changes()
        for lease in self.leases.values():
            if not lease.open_end:              # as far as we know nobody has ended it: it was there until then at least
                lease.end = min([lease.at if lease.bound else lease.until, lease.end, *(max(begin, lease.at) for begin, end in stops if end > lease.at)])
            self.of_task[lease.task].append(lease)

    def read(self, line):
        event = line.pop("event")
        self.counts[event] += 1
        if event in ("ending", "not ended", "lost") and line["lease"] not in self.leases:
            return              # its queue was dropped before the worker could look at what it had claimed
        if event == "claim":
            if line["lease"] in self.leases:
                self.wrong.append(f"lease {line['lease']} was given twice")
            self.leases[line["lease"]] = Lease(line)
            self.steps_given.append((line["t0"], line["task"], line.pop("steps")))
        elif event in ("kept", "undone"):
            for number in line["leases"]:
                lease = self.leases.get(number)
                if lease is not None:
                    setattr(lease, event, True)
                    if event == "undone":
                        lease.end, lease.open_end = line["at"], True
        elif event in ("ending", "not ended"):
            lease = self.leases[line["lease"]]
            lease.open_end = event == "ending" and line["sure"]
            lease.end = line["at"] if event == "ending" else lease.until
        elif event == "ended":
            self.read_end(self.leases[line["lease"]], line)
        elif event == "lost":
            self.leases[line["lease"]].open_end = False
        elif event == "stepped":
            self.read_step(self.leases[line["lease"]], line)
        elif event == "spawned":
            self.enqueued.update((task, min(line["at"], self.enqueued.get(task, line["at"]))) for task in line["tasks"])
            self.leases[line["lease"]].done.append((0, "spawned"))
            step, made = line["made"]
            if self.children.setdefault((line["task"], step), made) != made:
                self.wrong.append(f"task {line['task']} has made two {step}: {self.children[line['task'], step]}, {made}")
        elif event == "deadline":
            self.deadlines[line["task"]] = line["at"]
        elif event == "enqueued":
            self.enqueued.update(dict.fromkeys(line["tasks"], line["at"]))
            if line["bounced"]:
                self.bounces[line["bounced"]["task"]].append({**line["bounced"], "at": line["at"]})
        elif event == "never":
            self.never.update(line["tasks"])
        elif event == "touched":
            self.touched.update(line["tasks"])
        elif event == "privilege":
            self.calls.append(line)
        elif event in ("changing", "changed"):
            self.changes.append((line["t"], event, line))
        elif event == "violation":
            self.wrong.append(line["text"])
        elif event == "error":
            self.errors[line["sqlstate"], line["text"].split("\n")[0]] += 1

    def read_changes(self):
        """In their order: one changes settings at a time."""
        for _, event, line in sorted(self.changes, key=lambda change: change[0]):
            history = self.settings[line["setting"]]
            if event == "changing":
                value = line["value"]
                history.begin(line["at"], tuple(value) if isinstance(value, list) else value)
            else:
                history.end(line["at"], line["committed"])

    def read_end(self, lease, line):
        lease.open_end = True
        if line["did"]:
            lease.done.append((line["before"], line["how"]))
            if line["how"] == "complete":
                self.completed[lease.task].append(lease.lease)

    def read_step(self, lease, line):
        place = line["task"], line["step"]
        mine = line["value"][0] == lease.lease
        if mine:
            lease.done.append((line["before"], f"step {line['step']}"))
        known = self.steps.get(place)
        if known is None or line["t"] < known[1]:
            self.steps[place] = line["value"], line["t"]
        if known is not None and known[0] != line["value"]:
            self.wrong.append(f"step {place} has two values: {known[0]}, {line['value']}")

    # -- leases

    def check_leases(self, durable):
        """A lease that was given although another one of the task lives, or one that did something after another was given."""
        for task, leases in self.of_task.items():
            leases.sort(key=lambda lease: lease.lease)
            for first, second in zip(leases, leases[1:]):
                if first.at < second.at < first.end and (first.kept or first.open_end) and not self.is_forgotten(second, first.end, durable):
                    self.wrong.append(f"task {task} has lease {second.lease} at {second.at}, and {first.lease} until {first.end}")
            for i, stale in enumerate(leases):
                for before, what in stale.done:
                    self.check_stale(task, stale, before, what, leases[i + 1:], durable)

    def is_forgotten(self, lease, by, durable):
        """A crash forgets a lease that no row tells of, and the one before it may live again."""
        return lease.lease not in durable and any(begin <= by and end >= lease.at for begin, end in self.stops)

    def check_stale(self, task, stale, before, what, later, durable):
        for lease in later:
            if lease.at >= before:
                continue
            if self.is_forgotten(lease, before, durable):
                continue
            self.wrong.append(f"task {task}: {what} by lease {stale.lease} at {before}, after {lease.lease} at {lease.at}")

    def check_steps(self, stored):
        """What was committed before a claim began comes along with it; all values of a step are the same."""
        for t0, task, given in self.steps_given:
            for n in range(task % 4):
                known = self.steps.get((task, f"s{n}"))
                if known is not None and known[1] < t0 and f"s{n}" not in given:
                    self.wrong.append(f"task {task} was given out without its step s{n}")
                if f"s{n}" in given and given[f"s{n}"] != stored.get((task, f"s{n}")):
                    self.wrong.append(f"task {task} was given out with {given[f's{n}']} for step s{n}, stored is {stored.get((task, f's{n}'))}")
        for place, (value, _) in self.steps.items():
            if stored.get(place) != value:
                self.wrong.append(f"step {place} was stored as {value}, and is {stored.get(place)}")

    def check_deadlines(self, renewed):
        """A first start after the deadline."""
        for task, deadline in self.deadlines.items():
            leases = self.of_task.get(task, [])
            if leases and task not in renewed and (first := min(leases, key=lambda lease: lease.at)).at > deadline:
                self.wrong.append(f"task {task} has started at {first.at}, its deadline was {deadline}")

    def check_debounced(self):
        """What starts has the args of the last call, and has waited since it; until it is known to have started for good."""
        for task, calls in self.bounces.items():
            at = {call["call"]: call["at"] for call in calls}
            for lease in self.of_task.get(task, []):
                for call in calls:
                    if lease.at > call["at"] and call["before"] > at.get(lease.bounce, float("inf")):
                        self.wrong.append(f"task {task} has started at {lease.at} with the args of call {lease.bounce}, after call {call['call']}")
                    if call["at"] < lease.at < call["before"] + DEBOUNCED and call["waits"]:
                        self.wrong.append(f"task {task} has started at {lease.at}, with a call at {call['before']}")
                if lease.kept:
                    break

    def check_holds(self):
        """Starts in a time for which backpressure held them up."""
        for lease in self.leases.values():
            for setting in f"hold {lease.queue} None", f"hold {lease.queue} {lease.key}":
                until = min(value or 0 for value in self.settings[setting].values(lease.at, lease.at))
                if lease.at < until - 1:
                    self.wrong.append(f"task {lease.task} of {lease.queue}, {lease.key} has started at {lease.at}, and was held until {until}")

    def check_privileges(self):
        """The guest was let in if it had the privilege, and only then."""
        for call in self.calls:
            granted = {bool(value) for value in self.settings[call["setting"]].values(call["begin"], call["end"])}
            if call["allowed"] not in granted:
                self.wrong.append(f"{call['setting']}: the guest was {'' if call['allowed'] else 'not '}let in from {call['begin']} to {call['end']}")

    # -- order

    def overtakes(self, places, journaled):
        """
        Where a later task of the partition has started between two attempts of one. Leases are numbered as they are given.
        places: by queue, partition and task, the priority, and whether the task keeps its place while it waits. Nothing is
        said of one that starts anew as a crash made its lease unknown, or that somebody takes out of its place.
        """
        groups = collections.defaultdict(list)
        for lease in self.leases.values():
            if lease.kept and lease.task not in self.touched and lease.task in places.get((lease.queue, lease.key), {}):
                groups[lease.queue, lease.key].append(lease)
        overtakes = collections.defaultdict(list)
        for (queue, key), leases in groups.items():
            leases.sort(key=lambda lease: lease.lease)
            places_here, last = places[queue, key], {}
            for n, lease in enumerate(leases):
                before = last.get(lease.task)
                priority, stays = places_here[lease.task]
                if before is not None and stays and leases[before].lease in journaled:
                    overtakes[queue] += [f"task {other.task} has started with lease {other.lease}, between {leases[before].lease} and {lease.lease}"
                                         f" of task {lease.task}, which comes first in {key} of {queue}"
                                         for other in leases[before:n] if (places_here[other.task][0], other.task) > (priority, lease.task)]
                last[lease.task] = n
        return overtakes

    # -- retention

    def kept_for(self, queue, since, at, retention):
        """How long what ended had to stay at least, going by what was set between these times; retention is that of all queues."""
        window = {name: max([*RATES.get(name, {}), *PARTITION_RATES.get(name, {})], default=0) for name in QUEUES}
        everywhere = max(retention, *window.values())
        return min(everywhere if own is None else min(max(own, window[queue]), everywhere)
                   for own in self.settings[f"retention {queue}"].values(since, at))

    def check_retention(self, gone, ends, retention, keep_failed):
        """gone: rows of archive.gone and what they were; ends: by batch, the queue of each task, and when it ended."""
        wrong = []
        for task, queue, batch, status, finished_at, key_until, since, at in gone:
            if status is None:
                wrong.append(f"task {task} of {queue} was removed at {at}, unfinished")
                continue
            kept_for = self.kept_for(queue, since, at, retention)
            if finished_at > at - (max(kept_for, keep_failed) if status == "f" else kept_for):
                wrong.append(f"task {task} of {queue} ({status}) was removed at {at}, ended at {finished_at}, and was to stay {kept_for}")
            if key_until is not None and key_until > at:
                wrong.append(f"task {task} of {queue} was removed at {at}, and had its key until {key_until}")
            others = [(other, queue, ended) for other, (queue, ended) in ends.get(batch, {}).items() if self.enqueued.get(other, since) < since]
            kept_for = min([kept_for, *(self.kept_for(name, since, at, retention) for name in {name for _, name, _ in others})])
            for other, _, ended in others:
                if ended is None or ended > at - kept_for:
                    wrong.append(f"task {task} of {queue} was removed at {at}, and task {other} of its batch {batch} ended at {ended}, to stay {kept_for}")
                    break
        return wrong

    # -- concurrency

    def limit_at(self, queue, kind, name, at):
        """The highest that may be in force; None: no limit."""
        if kind == "partition" and (queue, name) in LIMITED:
            common = self.common_limit_at(queue, kind, at)
            return max(common if own is None else own for own in self.settings[f"partition {queue} {name}"].values(at, at))
        return self.common_limit_at(queue, kind, at)

    def common_limit_at(self, queue, kind, at):
        if queue == "changing" and kind != "worker":
            return max(limits[kind == "partition"] for limits in self.settings["limits"].values(at, at))
        return QUEUES[queue].get({"queue": "concurrency", "worker": "worker_concurrency", "partition": "partition_concurrency"}[kind])

    def check_concurrency(self, kind, group):
        groups, highest = collections.defaultdict(list), collections.Counter()
        for lease in self.leases.values():
            if (lease.kept or lease.undone) and group(lease) is not None and lease.queue in QUEUES:
                groups[lease.queue, group(lease)].append(lease)
        for (queue, name), leases in groups.items():
            begins = sorted(lease.at for lease in leases)
            ends = sorted(max(lease.end, lease.at + 1) for lease in leases)
            for at in begins:
                running = bisect.bisect(begins, at) - bisect.bisect(ends, at)
                limit = self.limit_at(queue, kind, name, at)
                highest[queue] = max(highest[queue], running)
                if limit is not None and running > limit:
                    self.wrong.append(f"{kind} {name} of {queue}: {running} of {limit} at {at}")
        return dict(highest)

    # -- rates

    def check_rates(self, queue, limits, group):
        groups = collections.defaultdict(list)
        for lease in self.leases.values():
            if lease.queue == queue and lease.kept and group(lease) is not None:
                groups[group(lease)].append((lease.at, lease.cost))
        highest = collections.Counter()
        for name, starts in groups.items():
            starts.sort()
            for period, limit in limits.items():
                first, units = 0, 0
                for i, (at, cost) in enumerate(starts):
                    units += cost
                    while starts[first][0] < at - period:
                        units -= starts[first][1]
                        first += 1
                    highest[period] = max(highest[period], units)
                    if units > limit:
                        self.wrong.append(f"rate of {queue}, {name}: {units} of {limit} in {period} us to {at}")
        return dict(highest)

    def check_limits(self):
        used = {kind: self.check_concurrency(kind, group) for kind, group in (
            ("queue", lambda lease: ""), ("worker", lambda lease: lease.worker), ("partition", lambda lease: lease.key))}
        for queue, limits in RATES.items():
            used["rate"] = self.check_rates(queue, limits, lambda lease: "")
        for queue, limits in PARTITION_RATES.items():
            used["partition rate"] = self.check_rates(queue, limits, lambda lease: lease.key)
        for task, leases in self.completed.items():
            if len(leases) > 1:
                self.wrong.append(f"task {task} was completed with leases {leases}")
        return used
