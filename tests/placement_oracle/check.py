"""What a placement is worth and whether it is allowed, from docs/placement.md alone."""

import math
from collections import Counter

from worlds import REQUIREMENTS

# The levels between `placed` and `fragmentation`; `in_place` only in a world with replicas of earlier releases.
LEVELS = ("domains", "moves", "link", "in_place", "headroom", "weights")


def shape_need(service, shape):
    kv = service.get("kv_heads")
    divided = min(kv, shape["tensor"]) if kv else shape["tensor"]
    over = divided * shape["pipeline"] * shape["data"]
    return shape["memory"] + -(-service.get("kv_bytes", 0) // over)


def full(shape):
    return {"tensor": 1, "pipeline": 1, "data": 1, "memory": 0, **shape}


def gpus_of(shape):
    return shape["tensor"] * shape["pipeline"] * shape["data"]


def shape_allowed(service, shape):
    t = shape["tensor"]
    if service.get("heads") and service["heads"] % t:
        return False
    kv = service.get("kv_heads")
    return not kv or (kv % t == 0 if t <= kv else t % kv == 0)


class World:
    """A world with what follows from it."""

    def __init__(self, world):
        self.world = world
        self.hosts = {h["name"]: h for h in world["hosts"]}
        self.services = {s["name"]: dict(s, shapes=[full(x) for x in s["shapes"]]) for s in world["services"]}
        self.headroom = world.get("headroom_percent", 5)
        self.gpus = {(h["name"], g["index"]): g for h in world["hosts"] for g in h["gpus"]}
        self.running = []
        own = {}
        for r in world.get("placements", []):
            service = self.services[r["service"]]
            count = sum(len(x["gpus"]) for x in r["ranks"])
            shape = r.get("shape")
            if shape:
                shape = full(shape)
                same = [x for x in service["shapes"] if all(x[k] == shape[k] for k in ("tensor", "pipeline", "data"))]
                shape = same[0] if same and shape not in service["shapes"] else shape
            else:
                shape = next((x for x in service["shapes"] if gpus_of(x) == count), None)
            memory = r.get("memory", shape_need(service, shape) if shape else 0)
            movable = r.get("movable", service.get("movable", True))
            self.running.append(dict(r, shape=shape, movable=movable))
            for rank in r["ranks"]:
                for g in rank["gpus"]:
                    own[rank["host"], g] = memory
        for key, gpu in self.gpus.items():
            free = gpu.get("memory_free")
            total = gpu["memory_total"]
            gpu["_free"] = total if free is None else min(total, free + own.get(key, 0))
        self.blocked = set()
        for h in world["hosts"]:
            if not h.get("up", True) or h.get("cordoned") or h.get("draining"):
                self.block(h["name"])
            self.blocked.update((h["name"], g["index"]) for g in h["gpus"] if g.get("health", "ok") != "ok")
        for x in world.get("reservations", []) + world.get("cordons", []):
            self.block(x["host"], x.get("gpus"))
        for r in self.running:
            if not r["movable"]:
                for rank in r["ranks"]:
                    self.block(rank["host"], rank["gpus"])
            r["alive"] = all(
                self.hosts[x["host"]].get("up", True)
                and all(self.gpus[x["host"], g].get("health", "ok") == "ok" for g in x["gpus"])
                for x in r["ranks"])
            r["ranks_count"] = len(r["ranks"]) if r["alive"] else 0
            # What goes anyway is asked nothing but whether it still runs.
            r["can_stay"] = not r["movable"] or (r["alive"] if r.get("outgoing") else self.may_stay(r))
        self.outgoing = [r for r in self.running if r.get("outgoing")]
        self.running = [r for r in self.running if not r.get("outgoing")]
        self.has = {}
        for name, s in self.services.items():
            self.has[name] = set(s.get("weights_on", []))
            self.has[name].update(x["host"] for r in self.running if r["service"] == name for x in r["ranks"]
                                  if self.hosts[x["host"]].get("up", True))
        self.quota = {}
        for name, s in self.services.items():
            usable = {h for h in self.hosts for shape in s["shapes"]
                      if shape_allowed(s, shape) and self.part_fits(s, shape, h)}
            for kind, _ in self.spreads(s):
                domains = {self.domain(kind, h) for h in usable}
                self.quota[name, kind] = -(-s["replicas"] // max(1, len(domains)))

    def block(self, host, gpus=None):
        for g in self.hosts[host]["gpus"]:
            if gpus is None or g["index"] in gpus:
                self.blocked.add((host, g["index"]))

    def model(self, key):
        return self.gpus[key].get("model", ""), self.gpus[key]["memory_total"]

    def needed(self, service, shape, key):
        share = int(self.gpus[key]["memory_total"] * service.get("memory_share", 0))
        need = shape_need(service, shape)
        if service.get("within_share") and 0 < share < need:
            return self.gpus[key]["memory_total"] + 1
        return max(need, share)

    def meets(self, service, key):
        require = service.get("require")
        ok = require is None or REQUIREMENTS[require](self.hosts[key[0]], self.gpus[key])
        return ok and (not service.get("hosts") or key[0] in service["hosts"])

    def suits(self, service, shape, key):
        """A GPU that a new rank may use, once what may move is gone."""
        return (key not in self.blocked and self.meets(service, key)
                and self.gpus[key]["_free"] >= self.needed(service, shape, key)
                and not (self.gpus[key].get("mig") and gpus_of(shape) > 1))

    def part_fits(self, service, shape, host):
        counts = {}
        for g in self.hosts[host]["gpus"]:
            key = host, g["index"]
            if self.suits(service, shape, key):
                counts[self.model(key)] = counts.get(self.model(key), 0) + 1
        part = gpus_of(shape) if service.get("one_host") else shape["tensor"]
        return any(n >= part for n in counts.values())

    def tight(self, service, shape, key):
        left = self.gpus[key]["_free"] - self.needed(service, shape, key)
        return max(left, 0) * 100 < self.gpus[key]["memory_total"] * self.headroom

    def link(self, keys):
        if len(keys) == 1:
            return 0
        for cost, of in ((0, "island"), (1, "pcie_switch"), (2, "numa")):
            values = {None if of == "island" and self.gpus[k].get("mig") else self.gpus[k].get(of) for k in keys}
            if len(values) == 1 and None not in values:
                return cost
        return 4

    def spreads(self, service):
        """By which domains its replicas are spread, and how much one too many there counts."""
        spread = service.get("spread", "none")
        if spread in ("none", "pack"):
            return []
        if spread in ("rack", "zone") and service.get("one_host"):
            return [(spread, 2), ("host", 1)]
        return [(spread, 1)]

    def domain(self, kind, host):
        return host if kind == "host" else self.hosts[host].get(kind, "")

    def rack(self, host):
        return self.hosts[host].get("rack", "")

    def groups(self, ranks, tensor):
        flat = [(r["host"], g) for r in ranks for g in r["gpus"]]
        return [flat[i:i + tensor] for i in range(0, len(flat), tensor)]

    def span(self, ranks):
        return 6 * (len(ranks) - 1) + 2 * (len({self.rack(r["host"]) for r in ranks}) - 1)

    def worst_link(self, service):
        return {"nvlink": 0, "pcie_switch": 1, "numa": 2, "any": 4}[service.get("link", "any")]

    def may_stay(self, r):
        service, shape = self.services[r["service"]], r["shape"]
        if not r["alive"] or shape is None or shape not in service["shapes"] or not shape_allowed(service, shape):
            return False
        keys = [(x["host"], g) for x in r["ranks"] for g in x["gpus"]]
        return (all(self.meets(service, k) for k in keys)
                and not any(self.hosts[x["host"]].get("draining") for x in r["ranks"])
                and len({self.model(k) for k in keys}) == 1
                and len({len(x["gpus"]) for x in r["ranks"]}) == 1
                and all(len(x["gpus"]) % shape["tensor"] == 0 for x in r["ranks"])
                and all(self.link(g) <= self.worst_link(service) for g in self.groups(r["ranks"], shape["tensor"])))

    def pools(self):
        """GPUs that new ranks may use, by island and, as a replica's are alike, by model and memory; those of a host in no
        island together, a MIG instance alone."""
        out = {}
        for (host, index), gpu in self.gpus.items():
            if (host, index) not in self.blocked:
                mig = gpu.get("mig")
                island = None if mig else gpu.get("island")
                alike = index if mig else self.model((host, index))
                out.setdefault((host, island, alike), set()).add((host, index))
        return out


def check(world, answer):
    """The levels of an answer; AssertionError if it breaks a rule or says what is not so."""
    w = World(world)
    taken, stay, on = {}, set(), {}
    unplaced, crowded, link, tight = {}, {}, 0, 0
    assert [s["name"] for s in answer["services"]] == [s["name"] for s in world["services"]]
    for s in answer["services"]:
        service = w.services[s["name"]]
        assert s["wanted"] == service["replicas"] and s["placed"] == len(s["replicas"]) <= s["wanted"], s["name"]
        priority = service.get("priority", 0)
        unplaced[priority] = unplaced.get(priority, 0) + s["wanted"] - s["placed"]
        assert len({r["replica"] for r in s["replicas"]}) == s["placed"], "numbers twice"
        for r in s["replicas"]:
            shape, ranks = r["shape"], r["ranks"]
            name = f"{s['name']}/{r['replica']}"
            assert r["state"] in ("stays", "moves", "starts")
            old = [x for x in w.running if x["service"] == s["name"] and x["replica"] == r["replica"]]
            assert bool(old) == (r["state"] != "starts"), f"{name}: {r['state']}"
            same = [{"host": x["host"], "gpus": x["gpus"]} for x in ranks]
            if r["state"] == "stays":
                assert old[0]["can_stay"] and same == [{"host": x["host"], "gpus": x["gpus"]} for x in old[0]["ranks"]]
                stay.add((s["name"], r["replica"]))
            else:
                assert shape in service["shapes"] and shape_allowed(service, shape), name
                assert len({len(x["gpus"]) for x in ranks}) == 1, f"{name}: ranks are not equal"
                assert len({x["host"] for x in ranks}) == len(ranks)
                assert len(ranks) == 1 or not service.get("one_host"), f"{name}: divided over hosts"
                assert sum(len(x["gpus"]) for x in ranks) == gpus_of(shape), name
                keys = [(x["host"], g) for x in ranks for g in x["gpus"]]
                for key in keys:
                    assert w.suits(service, shape, key), f"{name}: GPU {key} may not be used"
                assert len({w.model(k) for k in keys}) == 1, f"{name}: different GPUs"
            for x in ranks:
                assert [g for group in x["groups"] for g in group] == x["gpus"]
                for group in x["groups"]:
                    assert len(group) == shape["tensor"], f"{name}: a group is not whole"
                    cost = w.link([(x["host"], g) for g in group])
                    assert r["state"] == "stays" or cost <= w.worst_link(service), f"{name}: link"
                    link += cost
                for g in x["gpus"]:
                    key = x["host"], g
                    assert key not in taken, f"{name} and {taken[key]} both on {key}"
                    taken[key] = name
                    tight += w.tight(service, shape, key)
                on.setdefault(s["name"], set()).add(x["host"])
            link += w.span(ranks)
            for kind, factor in w.spreads(service):
                for d in {w.domain(kind, x["host"]) for x in ranks}:
                    crowded.setdefault((s["name"], kind, factor), Counter())[d] += 1
    for r in w.running:
        assert r["movable"] or (r["service"], r["replica"]) in stay, f"{r['service']} was moved"
    moves = sum(r["ranks_count"] for r in w.running if (r["service"], r["replica"]) not in stay)
    copies = {(s, h) for s, hosts in on.items() for h in hosts - w.has[s] if w.services[s].get("weights_bytes", 0)}
    assert copies == {(c["service"], c["host"]) for c in answer["copies"]}
    # Replicas of earlier releases stay where nothing took their GPUs.
    in_place = 0
    free_of = set(taken)
    for r in w.outgoing:
        keys = {(x["host"], g) for x in r["ranks"] for g in x["gpus"]}
        if r["can_stay"] and (not r["movable"] or not keys & set(taken)):
            assert not keys & set(taken), f"{r['service']}/{r['replica']} was moved"
            free_of |= keys
        elif r["can_stay"]:
            in_place += r["ranks_count"]
    hole = max([len(keys - free_of) for keys in w.pools().values()] or [0])
    levels = {
        "domains": sum(factor * max(0, n - w.quota[s, kind])
                       for (s, kind, factor), counts in crowded.items() for n in counts.values())
        + sum(max(0, len(hosts) - 1) for s, hosts in on.items() if w.services[s].get("spread") == "pack"),
        "moves": moves,
        "link": link,
        **({"in_place": in_place} if w.outgoing else {}),
        "headroom": tight,
        "weights": sum(w.services[s]["weights_bytes"] for s, _ in copies),
        "fragmentation": hole,
    }
    said = {x["name"]: x for x in answer["objective"]}
    assert said["placed"]["value"] == sum(s["placed"] for s in answer["services"])
    assert {p["priority"]: p["wanted"] - p["placed"] for p in said["placed"]["by_priority"]} == unplaced
    for name, value in levels.items():
        assert said[name]["value"] == value, f"{name} is {value}, said {said[name]['value']}"
    return [unplaced[p] for p in sorted(unplaced, reverse=True)] + [
        levels[x] for x in LEVELS if x in levels] + [-hole]
