"""What the logs of the actors say, compared with what is promised.

Nothing here can be a false alarm. A lease counts from its claim to a moment before its end was committed, or, if nobody
has ended it, to its time or the next stop of the server, whichever is first: it is known between which times that was.
A permit is held for longer than that.
"""
import bisect
import collections
import glob
import json

from actors import PARTITION_RATES, QUEUES, RATES


class Lease:
    def __init__(self, claim):
        self.__dict__.update(claim)
        self.end = self.until
        self.kept = self.undone = self.open_end = False


class Logs:
    def __init__(self, directory, stops):
        self.leases, self.wrong = {}, []
        self.enqueued, self.never, self.completed = set(), set(), collections.defaultdict(list)
        self.limits, self.errors = [], collections.Counter()
        for name in sorted(glob.glob(f"{directory}/*.log")):
            with open(name) as file:
                for line in file:
                    if line.endswith("\n"):     # who was killed may have left half a line
                        self.read(json.loads(line))
        if self.limits and self.limits[-1][1] is None:
            self.limits[-1][1] = float("inf")
        for lease in self.leases.values():
            if not lease.open_end:              # nobody has ended it: it was there until then at least
                lease.end = min([lease.until, *(max(begin, lease.at) for begin, end in stops if end > lease.at)])

    def read(self, line):
        event = line.pop("event")
        if event == "claim":
            if line["lease"] in self.leases:
                self.wrong.append(f"lease {line['lease']} was given twice")
            self.leases[line["lease"]] = Lease(line)
        elif event in ("kept", "undone"):
            for number in line["leases"]:
                lease = self.leases.get(number)
                if lease is not None:
                    setattr(lease, event, True)
                    if event == "undone":
                        lease.end, lease.open_end = line["at"], True
        elif event in ("ending", "not ended"):
            lease = self.leases[line["lease"]]
            lease.open_end = event == "ending"
            lease.end = line["at"] if event == "ending" else lease.until
        elif event == "ended":
            lease = self.leases[line["lease"]]
            if line["how"] == "complete" and line["did"]:
                self.completed[lease.task].append(lease.lease)
        elif event == "lost":
            self.leases[line["lease"]].open_end = False
        elif event == "enqueued":
            self.enqueued.update(line["tasks"])
        elif event == "never":
            self.never.update(line["tasks"])
        elif event == "limit":
            if self.limits and self.limits[-1][1] is None:
                self.limits[-1][1] = line["at"]     # nobody knows how that one ended
            self.limits.append([line["at"], None, (line["limit"], line["each"]), None])
        elif event == "limited":
            self.limits[-1][1], self.limits[-1][3] = line["at"], line["committed"]
        elif event == "error":
            self.errors[line["sqlstate"], line["text"].split("\n")[0]] += 1

    # -- concurrency

    def limits_of(self, queue, kind):
        """Times from which on a limit may be in force, and the highest such; None: no limit."""
        limit = QUEUES[queue].get({"queue": "concurrency", "worker": "worker_concurrency",
                                   "partition": "partition_concurrency"}[kind])
        times, possible = [(0, {limit})], {limit}
        if queue == "changing" and limit is not None:
            for begin, end, values, committed in self.limits:
                value = values[0 if kind == "queue" else 1]
                times.append((begin, possible | {value}))
                possible = {value} if committed else possible if committed is False else possible | {value}
                times.append((end, possible))
        return [time for time, _ in times], [None if limit is None else max(possible) for _, possible in times]

    def check_concurrency(self, kind, group):
        groups, highest = collections.defaultdict(list), collections.Counter()
        for lease in self.leases.values():
            if (lease.kept or lease.undone) and group(lease) is not None:
                groups[lease.queue, group(lease)].append(lease)
        for (queue, name), leases in groups.items():
            times, limits = self.limits_of(queue, kind)
            begins = sorted(lease.at for lease in leases)
            ends = sorted(max(lease.end, lease.at + 1) for lease in leases)
            for at in begins:
                running = bisect.bisect(begins, at) - bisect.bisect(ends, at)
                limit = limits[bisect.bisect(times, at) - 1]
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

    def check(self):
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
