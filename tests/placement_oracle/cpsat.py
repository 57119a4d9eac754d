"""The objective of docs/placement.md for OR-tools' CP-SAT, level after level."""

import itertools
import time

from ortools.sat.python import cp_model

from check import World, gpus_of, shape_allowed


def cells_of(w):
    """GPUs that nothing tells apart, by host."""
    out = {}
    for (host, index), gpu in w.gpus.items():
        if (host, index) in w.blocked:
            continue
        alone = index if gpu.get("mig") else None
        island = gpu.get("island") if alone is None else None
        suits = tuple(w.suits(s, x, (host, index)) for s in w.services.values() for x in s["shapes"])
        tight = tuple(w.tight(s, x, (host, index)) for s in w.services.values() for x in s["shapes"])
        key = island, alone, gpu.get("pcie_switch"), gpu.get("numa"), w.model((host, index)), suits, tight
        out.setdefault(host, {}).setdefault(key, []).append((host, index))
    return {h: list(cells.values()) for h, cells in out.items()}


def ways(cells, wanted):
    """Every way to take `wanted` GPUs from cells, as counts."""
    if not cells:
        return [()] if wanted == 0 else []
    return [(n, *rest) for n in range(min(wanted, len(cells[0])) + 1) for rest in ways(cells[1:], wanted - n)]


def solve(world, limit=60.0, workers=2, log=None):
    """The best levels (as check.check gives them) and whether each was proven."""
    w = World(world)
    m = cp_model.CpModel()
    cells = cells_of(w)
    use = {(h, c): [] for h in cells for c in range(len(cells[h]))}
    unplaced, moves, link, tight, copies, crowded = {}, 0, [], [], [], []
    stays = {}
    for name, s in w.services.items():
        mine = [r for r in w.running if r["service"] == name and r["can_stay"]]
        placed, on, within = [], {}, {}
        for i, r in enumerate(mine):
            b = m.new_bool_var(f"stay {name} {i}")
            if not r["movable"]:
                m.add(b == 1)
            stays[id(r)] = b
            placed.append(b)
            for rank in r["ranks"]:
                on.setdefault(rank["host"], []).append(b)
                for c, cell in enumerate(cells.get(rank["host"], [])):
                    n = len({(rank["host"], g) for g in rank["gpus"]} & set(cell))
                    if n:
                        use[rank["host"], c].append(n * b)
            for kind, _ in w.spreads(s):
                for d in {w.domain(kind, x["host"]) for x in r["ranks"]}:
                    within.setdefault((kind, d), []).append(b)
            cost = sum(w.link(g) for g in w.groups(r["ranks"], r["shape"]["tensor"])) + w.span(r["ranks"])
            link.append(cost * b)
            tight.append(sum(w.tight(s, r["shape"], (x["host"], g)) for x in r["ranks"] for g in x["gpus"]) * b)
        previous = None
        for slot in range(s["replicas"]):
            z_all = []
            for (k, shape), model in itertools.product(
                    enumerate(s["shapes"]), sorted({w.model(key) for key in w.gpus})):
                if not shape_allowed(s, shape):
                    continue
                t, units = shape["tensor"], shape["pipeline"] * shape["data"]
                options = {}
                for h in cells:
                    good = [c for c, cell in enumerate(cells[h])
                            if w.model(cell[0]) == model and w.suits(s, shape, cell[0])]
                    found = []
                    for counts in ways([cells[h][c] for c in good], t):
                        keys = [key for n, c in zip(counts, good) for key in cells[h][c][:n]]
                        cost = w.link(keys)
                        if cost <= w.worst_link(s):
                            found.append((dict(zip(good, counts)), cost, sum(w.tight(s, shape, key) for key in keys)))
                    if found:
                        options[h] = found
                for split in [x for x in range(1, 1 + (1 if s.get("one_host") else units)) if units % x == 0]:
                    each = units // split
                    if len(options) < split:
                        continue
                    z = m.new_bool_var("")
                    z_all.append(z)
                    parts = {}
                    for h, found in options.items():
                        if sum(len(c) for c in cells[h]) < each * t:
                            continue
                        p = m.new_bool_var("")
                        parts[h] = p
                        on.setdefault(h, []).append(p)
                        counts = []
                        for way, cost, short in found:
                            o = p if len(found) == 1 and each == 1 else m.new_int_var(0, each, "")
                            counts.append(o)
                            for c, n in way.items():
                                if n:
                                    use[h, c].append(n * o)
                            link.append(cost * o)
                            tight.append(short * o)
                        if counts != [p] or each != 1:
                            m.add(sum(counts) == each * p)
                    m.add(sum(parts.values()) == split * z)
                    if split > 1:
                        racks = {}
                        for h, p in parts.items():
                            racks.setdefault(w.rack(h), []).append(p)
                        touched = [m.new_bool_var("") for _ in racks]
                        for r, ps in zip(touched, racks.values()):
                            for p in ps:
                                m.add(r >= p)
                        link.append(6 * (split - 1) * z + 2 * (sum(touched) - z))
                    domains = {}
                    for kind, _ in w.spreads(s):
                        for h, p in parts.items():
                            domains.setdefault((kind, w.domain(kind, h)), []).append(p)
                    for d, ps in domains.items():
                        if split == 1:
                            within.setdefault(d, []).extend(ps)
                        else:
                            b = m.new_bool_var("")
                            for p in ps:
                                m.add(b >= p)
                            m.add(b <= sum(ps))
                            within.setdefault(d, []).append(b)
            m.add(sum(z_all) <= 1)
            if previous is not None:
                m.add(sum(previous) >= sum(z_all))
            previous = z_all
            placed.extend(z_all)
        m.add(sum(placed) <= s["replicas"])
        priority = s.get("priority", 0)
        unplaced.setdefault(priority, []).append(s["replicas"] - sum(placed))
        factors = dict(w.spreads(s))
        for (kind, _), ps in within.items():
            over = m.new_int_var(0, s["replicas"], "")
            m.add(over >= sum(ps) - w.quota[name, kind])
            crowded.append(factors[kind] * over)
        if s.get("spread") == "pack" and on:
            more = m.new_int_var(0, len(on), "")
            used = []
            for ps in on.values():
                b = m.new_bool_var("")
                used.append(b)
                for p in ps:
                    m.add(b >= p)
            m.add(more >= sum(used) - 1)
            crowded.append(more)
        if s.get("weights_bytes", 0):
            for h, ps in on.items():
                if h not in w.has[name]:
                    c = m.new_bool_var("")
                    for p in ps:
                        m.add(c >= p)
                    # In GiB: numbers that the solver likes.
                    assert s["weights_bytes"] % (1 << 30) == 0
                    copies.append((s["weights_bytes"] >> 30) * c)
    in_place = []
    for i, r in enumerate(r for r in w.outgoing if r["can_stay"] and r["movable"]):
        b = m.new_bool_var(f"stay outgoing {i}")
        in_place.append(r["ranks_count"] * (1 - b))
        for rank in r["ranks"]:
            for c, cell in enumerate(cells.get(rank["host"], [])):
                n = len({(rank["host"], g) for g in rank["gpus"]} & set(cell))
                if n:
                    use[rank["host"], c].append(n * b)
    for (h, c), terms in use.items():
        m.add(sum(terms) <= len(cells[h][c]))
    moves = sum(r["ranks_count"] * (1 - stays.get(id(r), 0)) for r in w.running)
    hole = m.new_int_var(0, 64, "hole")
    chosen = []
    for (h, _, _), keys in w.pools().items():
        b = m.new_bool_var("")
        chosen.append(b)
        inside = [c for c, cell in enumerate(cells[h]) if cell[0] in keys]
        free = sum(len(cells[h][c]) for c in inside) - sum(sum(use[h, c]) for c in inside)
        m.add(hole <= free + 64 * (1 - b))
    if chosen:
        m.add(sum(chosen) == 1)
    else:
        m.add(hole == 0)
    goals = [sum(unplaced[p]) for p in sorted(unplaced, reverse=True)]
    goals += [sum(crowded), moves, sum(link)] + ([sum(in_place)] if w.outgoing else [])
    goals += [sum(tight), sum(copies), -hole]
    values, proven = [], []
    end = time.monotonic() + limit
    for i, goal in enumerate(goals):
        if isinstance(goal, int):
            values.append(goal)
            proven.append(True)
            continue
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = workers
        solver.parameters.max_time_in_seconds = max(1.0, end - time.monotonic())
        m.minimize(goal)
        status = solver.solve(m)
        assert status in (cp_model.OPTIMAL, cp_model.FEASIBLE, cp_model.UNKNOWN), solver.status_name(status)
        if status == cp_model.UNKNOWN:
            return values, proven
        value = round(solver.objective_value)
        if log:
            log(f"  level {i}: {value} bound {solver.best_objective_bound:.0f} {solver.status_name(status)} "
                f"{solver.wall_time:.1f} s")
        values.append(value)
        proven.append(status == cp_model.OPTIMAL)
        m.add(goal <= value)
        m.clear_hints()
        for v in range(len(m.proto.variables)):
            m.proto.solution_hint.vars.append(v)
            m.proto.solution_hint.values.append(solver._solution.solution[v] if hasattr(solver, "_solution") else solver.response_proto.solution[v])
    values[-2] = values[-2] << 30
    return values, proven
