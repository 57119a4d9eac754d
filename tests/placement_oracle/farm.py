"""The farm of `worlds.farm` for CP-SAT and HiGHS, as lean as it gets: a gang or a host's share of it is one 0-1 variable,
and the levels placed, link and weights of docs/placement.md, one after another. What is given as `levels` (an
answer's) is a start: CP-SAT is told that it need not look for anything worse."""

import time

from ortools.sat.python import cp_model

from check import World


def variables(w):
    """Per gang the hosts that it may use, with the GPUs it takes there and what that costs."""
    out = []
    for name, s in w.services.items():
        shape = s["shapes"][0]
        t, p = shape["tensor"], shape["pipeline"]
        hosts = {}
        for h, host in w.hosts.items():
            keys = [(h, g["index"]) for g in host["gpus"] if w.suits(s, shape, (h, g["index"]))]
            if len(keys) >= t:
                hosts[h] = keys
        out.append((name, s, t, p, hosts))
    return out


def cpsat(world, levels, limit, workers=2, log=print):
    w = World(world)
    m = cp_model.CpModel()
    rooms = {}
    for (h, island, _), keys in w.islands().items():
        rooms[h, island] = len(keys)
    use = {key: [] for key in rooms}
    unplaced, link, weights = {}, [], []
    for name, s, t, p, hosts in variables(w):
        z = []
        for m_hosts in [x for x in range(1, p + 1) if p % x == 0]:
            each = p // m_hosts
            parts, by_rack = [], {}
            chosen = m.new_bool_var("")
            for h in hosts:
                islands = [key for key in rooms if key[0] == h] if False else ISLANDS(rooms, h)
                if sum(rooms[k] for k in islands) < each * t:
                    continue
                x = m.new_bool_var("")
                parts.append(x)
                by_rack.setdefault(w.rack(h), []).append(x)
                if len(islands) == 1:
                    use[islands[0]].append(each * t * x)
                else:
                    # Whole groups in an island, and groups that cross (NUMA nodes are the islands here).
                    inside = []
                    for k in islands:
                        n = m.new_int_var(0, min(each, rooms[k] // t), "")
                        inside.append(n)
                        use[k].append(t * n)
                    across = m.new_int_var(0, each, "")
                    m.add(sum(inside) + across == each * x)
                    left = m.new_int_var(0, each * t, "")
                    use[islands[0]].append(left)
                    use[islands[1]].append(t * across - left)
                    m.add(left <= t * across)
                    link.append(2 * across)
                if h not in w.has[name]:
                    weights.append((s["weights_bytes"] >> 30) * x)
            m.add(sum(parts) == m_hosts * chosen)
            z.append(chosen)
            if m_hosts > 1:
                touched = []
                for xs in by_rack.values():
                    r = m.new_bool_var("")
                    for x in xs:
                        m.add(r >= x)
                    touched.append(r)
                link.append(3 * (m_hosts - 1) * chosen + sum(touched) - chosen)
        m.add(sum(z) <= 1)
        unplaced.setdefault(s["priority"], []).append(1 - sum(z))
    for key, terms in use.items():
        m.add(sum(terms) <= rooms[key])
    goals = [sum(unplaced[p]) for p in sorted(unplaced, reverse=True)] + [sum(link), sum(weights)]
    given = levels[: len(unplaced)] + [levels[-4], levels[-2] >> 30]
    values, proven = [], []
    for goal, start in zip(goals, given):
        m.add(goal <= start)
        m.minimize(goal)
        solver = cp_model.CpSolver()
        solver.parameters.num_workers = workers
        solver.parameters.max_time_in_seconds = limit
        begun = time.monotonic()
        status = solver.solve(m)
        good = status in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        value = round(solver.objective_value) if good else start
        bound = solver.best_objective_bound
        log(f"  ours {start} CP-SAT {value if good else '-'} bound {bound:.0f} {solver.status_name(status)} {time.monotonic() - begun:.1f} s")
        values.append(value)
        proven.append(status == cp_model.OPTIMAL)
        m.add(goal <= value)
    return values, proven, bound


def ISLANDS(rooms, h):
    return [key for key in rooms if key[0] == h]
