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


def goals_of(w, m):
    """Adds the farm to a model; the terms of each level."""
    rooms, islands = {}, {}
    for (h, island, alone), keys in w.islands().items():
        assert alone is None
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
                parts, racks = [], {}
                chosen = m.new_bool_var("")
                for h, mine in islands.items():
                    first = (h, w.hosts[h]["gpus"][0]["index"])
                    if w.model(first) != model or sum(rooms[k] for k in mine) < each * t:
                        continue
                    if not any(w.suits(s, shape, key) for key in w.gpus if key[0] == h):
                        continue
                    x = m.new_bool_var("")
                    parts.append(x)
                    racks.setdefault(w.rack(h), []).append(x)
                    if h not in w.has[name]:
                        weights.append((s["weights_bytes"] >> 30) * x)
                    if len(mine) == 1:
                        use[mine[0]].append(each * t * x)
                        continue
                    # Whole groups in one of two islands, and groups over both. An island of the farm is a NUMA node.
                    assert len(mine) == 2
                    inside = [m.new_int_var(0, min(each, rooms[k] // t), "") for k in mine]
                    across = m.new_int_var(0, each, "")
                    m.add(sum(inside) + across == each * x)
                    left = m.new_int_var(0, each * t, "")
                    m.add(left <= t * across)
                    use[mine[0]] += [t * inside[0], left]
                    use[mine[1]] += [t * inside[1], t * across, -left]
                    link.append(2 * across)
                if len(parts) < split:
                    m.add(chosen == 0)
                    continue
                m.add(sum(parts) == split * chosen)
                ways.append(chosen)
                if split > 1:
                    touched = []
                    for xs in racks.values():
                        r = m.new_bool_var("")
                        for x in xs:
                            m.add(r >= x)
                        touched.append(r)
                    link.append(3 * (split - 1) * chosen + sum(touched) - chosen)
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
