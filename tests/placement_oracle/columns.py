#!/usr/bin/env python3
"""How little link cost, and how few bytes, the farm of `worlds.farm` can do with: column generation, whose bound is
far nearer than CP-SAT's.

  columns.py WORLD.json LEVELS SECONDS    LEVELS: an answer's, as JSON; SECONDS for each of the two

The bytes are bounded given that the levels before them are as in the answer, the link cost given what has a place.

A column is all that lies on one host; which of them are worth having, a knapsack says for each host at the prices that
the linear program (GLOP, of OR-tools) gives. The bound is Lagrange's at such prices, so it holds whenever it is stopped:
no placement that is as good on the levels before is better. Islands within a host are relaxed in the knapsack
(a group that cannot lie in one island there is counted), in the columns they are not. The program's value, once nothing
is left to add, is the bound; where its answer is whole it is the optimum.

Prints one line of JSON: for `link` and `bytes` (GiB) the `answer`'s, the `bound`, the `value` of the linear program, `seconds`.
"""

import json
import sys
import time

import numpy
from ortools.linear_solver import pywraplp

from check import World

EPSILON = 1e-6


class Part:
    """A way to have a part of a gang on a host: of so many parts, on one model, within a rack or over racks."""

    def __init__(self, gang, parts, size, tensor, groups, link, costs, across):
        self.gang, self.parts, self.size, self.tensor, self.groups = gang, parts, size, tensor, groups
        self.link, self.costs, self.across = link, costs, across


class Farm:
    def __init__(self, world):
        w = World(world)
        self.names = sorted(w.hosts)
        at = {name: n for n, name in enumerate(self.names)}
        self.islands = [[] for _ in self.names]
        for (host, island, _), keys in w.pools().items():
            assert island is not None
            self.islands[at[host]].append(len(keys))
        self.room = numpy.array([sum(i) for i in self.islands])
        racks = numpy.array([int(w.rack(name)[1:]) for name in self.names])
        kinds = [w.model((name, w.hosts[name]["gpus"][0]["index"])) for name in self.names]
        models = numpy.array([sorted(set(kinds)).index(kind) for kind in kinds])
        self.priorities = [s["priority"] for s in w.services.values()]
        self.parts = []
        for gang, (name, s) in enumerate(w.services.items()):
            shape = s["shapes"][0]
            tensor, units = shape["tensor"], shape["pipeline"] * shape["data"]
            suits = numpy.array([any(w.suits(s, shape, key) for key in w.gpus if key[0] == h) for h in self.names])
            copied = numpy.array([0.0 if h in w.has[name] else s["weights_bytes"] / 2**30 for h in self.names])
            for parts in [n for n in range(1, units + 1) if units % n == 0]:
                groups = units // parts
                whole = numpy.array([sum(i // tensor for i in islands) for islands in self.islands])
                across = 4.0 * numpy.maximum(0, groups - whole)
                for model in sorted(set(models)):
                    fits = suits & (models == model) & (self.room >= groups * tensor)
                    ways = [(fits, 6 * (parts - 1) + 2 * (parts > 1))]
                    if parts > 1:
                        ways += [(fits & (racks == rack), 6 * (parts - 1)) for rack in sorted(set(racks))]
                    for hosts, link in ways:
                        if hosts.sum() >= parts:
                            costs = numpy.where(hosts, copied, numpy.inf)
                            self.parts.append(Part(gang, parts, groups * tensor, tensor, groups, link, costs, across))

    def link_on(self, host, chosen):
        """The least link cost of these parts on a host."""
        groups = sorted((self.parts[k].tensor for k in chosen for _ in range(self.parts[k].groups)), reverse=True)

        def least(free, at):
            if at == len(groups):
                return 0
            tensor = groups[at]
            found = [least((*free[:i], f - tensor, *free[i + 1:]), at + 1) for i, f in enumerate(free) if f >= tensor]
            if len(free) == 2 and tensor > 1:
                for left in range(max(1, tensor - free[1]), min(tensor - 1, free[0]) + 1):
                    found.append(4 + least((free[0] - left, free[1] - tensor + left), at + 1))
            return min(found, default=numpy.inf)

        return least(tuple(self.islands[host]), 0)


class Prices:
    """What a part earns (`part`), what it costs more on a host (`cut`), and what a step of link costs."""

    def __init__(self, part, cut, link):
        self.part, self.cut, self.link = part, cut, link

    def towards(self, other, share):
        keys = set(self.cut) | set(other.cut)
        cut = {k: (1 - share) * self.cut.get(k, 0.0) + share * other.cut.get(k, 0.0) for k in keys}
        part = (1 - share) * self.part + share * other.part
        return Prices(part, cut, (1 - share) * self.link + share * other.link)


def pack(farm, prices):
    """The best of each host at these prices: what it is worth, and which parts."""
    hosts, most = len(farm.names), int(farm.room.max())
    by_part = {}
    for (k, host), price in prices.cut.items():
        by_part.setdefault(k, numpy.zeros(hosts))[host] = price
    worth = numpy.zeros((hosts, most + 1))
    taken = []
    for k, part in enumerate(farm.parts):
        cost = part.costs + prices.link * part.across - prices.part[k]
        if k in by_part:
            cost = cost + by_part[k]
        if not (cost < -EPSILON).any():
            continue
        new = worth[:, : most + 1 - part.size] + cost[:, None]
        better = numpy.zeros((hosts, most + 1), bool)
        better[:, part.size:] = new < worth[:, part.size:] - 1e-9
        worth[:, part.size:] = numpy.minimum(new, worth[:, part.size:])
        taken.append((k, better))
    left = farm.room.copy()
    chosen = [[] for _ in range(hosts)]
    every = numpy.arange(hosts)
    for k, better in reversed(taken):
        here = better[every, left]
        for host in numpy.nonzero(here)[0]:
            chosen[host].append(k)
        left = left - numpy.where(here, farm.parts[k].size, 0)
    return worth[every, farm.room], [tuple(sorted(c)) for c in chosen]


class Master:
    """The linear program over the columns there are."""

    def __init__(self, farm, placed, link):
        """`link`: how much there may be; without it, there shall be little of it and bytes do not count."""
        self.farm, self.bytes = farm, link is not None
        self.lp = pywraplp.Solver.CreateSolver("GLOP")
        infinity = self.lp.infinity()
        self.goal = self.lp.Objective()
        self.goal.SetMinimization()
        self.link = self.lp.Constraint(-infinity, link if self.bytes else infinity)
        self.part = [self.lp.Constraint(0, 0) for _ in farm.parts]
        gangs = [self.lp.Constraint(-infinity, 1) for _ in farm.priorities]
        classes = {p: self.lp.Constraint(n, infinity) for p, n in placed.items()}
        self.host = [self.lp.Constraint(-infinity, 1) for _ in farm.names]
        self.cut = {}
        self.chosen = []
        for k, part in enumerate(farm.parts):
            y = self.lp.NumVar(0, infinity, "")
            self.part[k].SetCoefficient(y, -part.parts)
            gangs[part.gang].SetCoefficient(y, 1)
            classes[farm.priorities[part.gang]].SetCoefficient(y, 1)
            self.link.SetCoefficient(y, part.link)
            if not self.bytes:
                self.goal.SetCoefficient(y, part.link)
            self.chosen.append(y)
        # Prices for what cannot be yet.
        for row, sign, price in [(self.link, -1, 5e3), *[(c, 1, 1e5) for c in classes.values()]]:
            lacking = self.lp.NumVar(0, infinity, "")
            row.SetCoefficient(lacking, sign)
            self.goal.SetCoefficient(lacking, price)
        self.columns = {}

    def add(self, host, chosen):
        if not chosen or (host, chosen) in self.columns:
            return False
        link = self.farm.link_on(host, chosen)
        if link == numpy.inf:
            return False
        x = self.lp.NumVar(0, self.lp.infinity(), "")
        self.host[host].SetCoefficient(x, 1)
        self.link.SetCoefficient(x, link)
        self.goal.SetCoefficient(x, float(sum(self.farm.parts[k].costs[host] for k in chosen)) if self.bytes else link)
        for k in chosen:
            self.part[k].SetCoefficient(x, 1)
            if (k, host) in self.cut:
                self.cut[k, host].SetCoefficient(x, 1)
        self.columns[host, chosen] = x
        return True

    def solve(self):
        assert self.lp.Solve() == pywraplp.Solver.OPTIMAL
        return self.goal.Value()

    def cut_off(self):
        """On no host lies more of a gang than one part: halves of two racks are not one whole. Rows that are broken."""
        lies = {}
        for (host, chosen), x in self.columns.items():
            for k in chosen:
                if self.farm.parts[k].parts > 1:
                    lies.setdefault((k, host), []).append(x)
        broken = []
        for (k, host), xs in lies.items():
            if (k, host) not in self.cut:
                over = sum(x.solution_value() for x in xs) - self.chosen[k].solution_value()
                if over > 1e-4:
                    broken.append((k, host, xs))
        for k, host, xs in broken:
            row = self.lp.Constraint(-self.lp.infinity(), 0)
            row.SetCoefficient(self.chosen[k], -1)
            for x in xs:
                row.SetCoefficient(x, 1)
            self.cut[k, host] = row
        return len(broken)

    def prices(self):
        cut = {key: max(0.0, -row.dual_value()) for key, row in self.cut.items()}
        part = numpy.array([row.dual_value() for row in self.part])
        return Prices(part, cut, max(0.0, -self.link.dual_value()) if self.bytes else 1.0)


def bound_at(farm, prices, worth, placed, link):
    """Lagrange's bound (hosts take what earns most, of each priority the cheapest gangs are placed), and how many of
    each part those gangs want."""
    best = {}
    share = numpy.zeros(len(farm.parts))
    for (k, _), price in prices.cut.items():
        share[k] += price
    for k, part in enumerate(farm.parts):
        cost = part.parts * prices.part[k] + prices.link * part.link - share[k]
        best[part.gang] = min(best.get(part.gang, (numpy.inf, 0)), (cost, k))
    total = worth.sum() - prices.link * (link or 0)
    wanted = numpy.zeros(len(farm.parts))
    for priority, count in placed.items():
        for cost, k in sorted(way for gang, way in best.items() if farm.priorities[gang] == priority)[:count]:
            total += cost
            wanted[k] = farm.parts[k].parts
    return total, wanted


def ascend(farm, placed, link, above, add, rounds):
    """Good prices to begin with: where more of a part is wanted than hosts take it earns more, elsewhere less."""
    prices = Prices(numpy.array([p.costs.min() for p in farm.parts]), {}, 1.0 if link is None else 100.0)
    best, at, pace, idle = -numpy.inf, prices, 1.0, 0
    for turn in range(rounds):
        worth, chosen = pack(farm, prices)
        found, wanted = bound_at(farm, prices, worth, placed, link)
        if turn % 4 == 0 or turn > rounds - 60:
            for host, c in enumerate(chosen):
                add(host, c)
        if found > best:
            best, at, idle = found, prices, 0
        else:
            idle += 1
            if idle == 15:
                pace, idle = pace * 0.85, 0
        lacking, over = wanted.copy(), -float(link or 0)
        over += sum(wanted[k] / p.parts * p.link for k, p in enumerate(farm.parts) if wanted[k])
        for host, c in enumerate(chosen):
            for k in c:
                lacking[k] -= 1
                over += farm.parts[k].across[host]
        over = 0.0 if link is None else over
        length = (lacking**2).sum() + 0.05 * over**2
        if length == 0:
            break
        step = pace * max(1.0, above - found) / length
        prices = Prices(prices.part + step * lacking, {}, max(0.0, prices.link + 0.05 * step * over))
    return at, best


def bound(farm, placed, link, answer, seconds, log, step=1):
    """`step`: what answers differ by at least."""
    begun = time.monotonic()
    master = Master(farm, placed, link)
    centre, best = ascend(farm, placed, link, answer, master.add, 800)
    value, turn = numpy.inf, 0
    while time.monotonic() - begun < seconds:
        value = master.solve()
        if master.cut_off():
            continue
        new = 0
        current = master.prices()
        # Prices of the program leap; what is between them and the best so far leads there sooner.
        for prices in [centre.towards(current, 0.4), current]:
            worth, chosen = pack(farm, prices)
            new += sum(master.add(host, c) for host, c in enumerate(chosen))
            found, _ = bound_at(farm, prices, worth, placed, link)
            if found > best:
                best, centre = found, prices
        turn += 1
        if turn % 10 == 0:
            log(f"{time.monotonic() - begun:4.0f} s  value {value:.0f}, bound {best:.1f}, {len(master.columns)} columns")
        if new == 0 or best > answer - step + EPSILON:
            break
    return {"answer": answer, "bound": best, "value": value, "seconds": time.monotonic() - begun}


def bounds(world, levels, seconds, log=lambda text: None):
    """`levels`: what has no place, by priority from the highest; domains, moves, link, headroom, bytes, hole."""
    farm = Farm(world)
    unplaced, (_, _, link, _, bytes_, _) = levels[:-6], levels[-6:]
    classes = sorted(set(farm.priorities), reverse=True)
    placed = {p: farm.priorities.count(p) - n for p, n in zip(classes, unplaced)}
    of_bytes = bound(farm, placed, link, bytes_ >> 30, seconds, log)
    for part in farm.parts:
        part.costs = numpy.where(numpy.isfinite(part.costs), 0.0, numpy.inf)
    # Without switches every link cost is even.
    return {"link": bound(farm, placed, None, link, seconds, log, 2), "bytes": of_bytes}


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        farm_world = json.load(file)
    tell = lambda text: print(text, file=sys.stderr, flush=True)
    print(json.dumps(bounds(farm_world, json.loads(sys.argv[2]), float(sys.argv[3]), tell)))
