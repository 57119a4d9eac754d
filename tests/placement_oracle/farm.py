#!/usr/bin/env python3
"""The farm of `worlds.farm` for CP-SAT, as lean as it gets: a gang's share of a host is one 0-1 variable, and the
levels placed, link and weights of docs/placement.md come one after another (on the farm the others are 0).

  farm.py WORLD.json LEVELS SECONDS    LEVELS: an answer's, as JSON; CP-SAT need not look for anything worse

Prints one line of JSON: per priority what has no place, link, GiB of weights; what is proven; each level's bound.
"""

import json
import sys
import time

try:
    from ortools.sat.python import cp_model
except ImportError:  # Only HiGHS is asked.
    cp_model = None

from check import World


def take(m, use, link, rooms, mine, t, each, x):
    """`each` groups of `t` GPUs on one host, if `x`."""
    if len(mine) == 1:
        use[mine[0]].append(each * t * x)
        return
    # Whole groups in one of two islands, and groups over both. An island of the farm is a NUMA node.
    assert len(mine) == 2
    if each == 1:
        inside = [m.new_bool_var("") if rooms[k] >= t else None for k in mine]
        ways = [i for i in inside if i is not None]
        for key, i in zip(mine, inside):
            if i is not None:
                use[key].append(t * i)
        for left in range(1, t):
            if left <= rooms[mine[0]] and t - left <= rooms[mine[1]]:
                way = m.new_bool_var("")
                ways.append(way)
                use[mine[0]].append(left * way)
                use[mine[1]].append((t - left) * way)
                link.append(4 * way)
        m.add(sum(ways) == x)
        return
    inside = [m.new_int_var(0, min(each, rooms[k] // t), "") for k in mine]
    across = m.new_int_var(0, each, "")
    m.add(sum(inside) + across == each * x)
    left = m.new_int_var(0, each * t, "")
    m.add(left <= t * across)
    use[mine[0]] += [t * inside[0], left]
    use[mine[1]] += [t * inside[1], t * across, -left]
    link.append(4 * across)


def goals_of(w, m):
    """Adds the farm to a model; the terms of each level."""
    rooms, islands = {}, {}
    for (h, island, _), keys in w.pools().items():
        assert island is not None
        rooms[h, island] = len(keys)
        islands.setdefault(h, []).append((h, island))
    use = {key: [] for key in rooms}
    unplaced, link, weights = {}, [], []
    for name, s in w.services.items():
        shape = s["shapes"][0]
        t, units = shape["tensor"], shape["pipeline"] * shape["data"]
        ways = []
        for split in [x for x in range(1, units + 1) if units % x == 0]:
            each = units // split
            for model in sorted({w.model(key) for key in w.gpus}):
                fitting = []
                for h, mine in islands.items():
                    first = (h, w.hosts[h]["gpus"][0]["index"])
                    large = w.model(first) == model and sum(rooms[k] for k in mine) >= each * t
                    if large and any(w.suits(s, shape, key) for key in w.gpus if key[0] == h):
                        fitting.append(h)
                # A way for each rack that has so many, and one that goes over racks. On no host lies more than one
                # part: said of each host, it makes halves of two racks no cheaper than a whole (a cut).
                racks = {}
                for h in fitting:
                    racks.setdefault(w.rack(h), []).append(h)
                within = [hosts for hosts in racks.values() if len(hosts) >= split] if split > 1 else []
                for hosts in [*within, fitting]:
                    if len(hosts) < split:
                        continue
                    over = split > 1 and hosts is fitting
                    if over and len(racks) == 1:
                        continue
                    chosen = m.new_bool_var("")
                    ways.append(chosen)
                    parts, touched = [], {}
                    for h in hosts:
                        x = m.new_bool_var("")
                        parts.append(x)
                        if split > 1:
                            m.add(x <= chosen)
                        if over:
                            touched.setdefault(w.rack(h), []).append(x)
                        if h not in w.has[name]:
                            weights.append((s["weights_bytes"] >> 30) * x)
                        take(m, use, link, rooms, islands[h], t, each, x)
                    m.add(sum(parts) == split * chosen)
                    if over:
                        for rack, xs in touched.items():
                            touched[rack] = m.new_bool_var("")
                            for x in xs:
                                m.add(touched[rack] >= x)
                        link.append(2 * (sum(touched.values()) - chosen))
                    if split > 1:
                        link.append(6 * (split - 1) * chosen)
        m.add(sum(ways) <= 1)
        unplaced.setdefault(s["priority"], []).append(1 - sum(ways))
    for key, terms in use.items():
        m.add(sum(terms) <= rooms[key])
    return [sum(unplaced[p]) for p in sorted(unplaced, reverse=True)] + [sum(link), sum(weights)]


def optimum(world, levels, limit, workers=2):
    m = cp_model.CpModel()
    goals = goals_of(World(world), m)
    given = levels[: len(goals) - 2] + [levels[-4], levels[-2] >> 30]
    values, proven, bounds = [], [], []
    equal = True
    begun = time.monotonic()
    for goal, start in zip(goals, given):
        # Once a level is better than what was given, those after it may have to be worse.
        if equal:
            m.add(goal <= start)
        m.minimize(goal)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = workers
        solver.parameters.max_time_in_seconds = limit
        status = solver.solve(m)
        assert status != cp_model.INFEASIBLE, "what was given is better than the optimum"
        good = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        value = round(solver.objective_value) if good else start
        equal = equal and value == start
        values.append(value)
        proven.append(status == cp_model.OPTIMAL)
        bounds.append(solver.best_objective_bound)
        m.add(goal <= value)
    return {"levels": values, "proven": proven, "bounds": bounds, "seconds": time.monotonic() - begun}


def from_nothing(world, limit, cp=None, log=None, workers=2):
    """Level after level without anything given; `cp` may be highs.py. For comparing solvers."""
    cp = cp or cp_model
    begun, cpu = time.monotonic(), time.process_time()
    m = cp.CpModel()
    values, proven = [], []
    for goal in goals_of(World(world), m):
        m.minimize(goal)
        solver = cp.CpSolver()
        solver.parameters.num_workers = workers
        solver.parameters.max_time_in_seconds = limit
        status = solver.solve(m)
        if status not in (cp.OPTIMAL, cp.FEASIBLE):
            break
        values.append(round(solver.objective_value))
        proven.append(status == cp.OPTIMAL)
        m.add(goal <= values[-1])
        if log:
            log(f"{time.process_time() - cpu:6.1f} CPU s  {values[-1]} {solver.status_name(status)}")
    seconds = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - cpu}
    return {"levels": values, "proven": proven, **seconds}


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(json.dumps(optimum(json.load(file), json.loads(sys.argv[2]), float(sys.argv[3]))))
