"""Random worlds for `gpudeck place`, as docs/placement.md has them. The same seed makes the same world."""

import random

GIB = 1 << 30

# Requirements with their meaning, so that the check shares no code with the language under test.
REQUIREMENTS = {
    "gpu.memory >= 80GiB": lambda host, gpu: gpu["memory_total"] >= 80 * GIB,
    "host.zone == 'a'": lambda host, gpu: host.get("zone") == "a",
    "gpu.model in ['H200', 'B200']": lambda host, gpu: gpu["model"] in ("H200", "B200"),
    "!(host.rack == 'r1') || gpu.numa == 0": lambda host, gpu: host.get("rack") != "r1" or gpu.get("numa") == 0,
    "gpu.pcie_switch != 1": lambda host, gpu: gpu.get("pcie_switch") != 1,
    "host.gpus > 2 && gpu.free > 30GiB": lambda host, gpu: len(host["gpus"]) > 2 and gpu["_free"] > 30 * GIB,
}


def host(name, rack, zone, gpus, island, model, total):
    """A host whose GPUs lie in islands of `island` (0: without links) and NUMA nodes of half the GPUs."""
    out = []
    for i in range(gpus):
        gpu = {"index": i, "model": model, "memory_total": total, "numa": i * 2 // max(gpus, 1)}
        if island:
            gpu["island"] = i // island
        out.append(gpu)
    return {"name": name, "rack": rack, "zone": zone, "gpus": out}


def switched(world, rng):
    """PCIe switches on most hosts, of two to four GPUs that follow each other or not, some of them not known; and services
    that ask for one."""
    for h in world["hosts"]:
        size = rng.choice([0, 2, 2, 3, 4])
        order = list(range(len(h["gpus"])))
        if rng.random() < 0.3:
            rng.shuffle(order)
        # Mostly nothing nearer joins them, so that the switch is what counts.
        linked = rng.choice([0, 0, 0.5, 1])
        for at, gpu in zip(order, h["gpus"]):
            if size and rng.random() > 0.1:
                gpu["pcie_switch"] = at // size
            if rng.random() >= linked:
                gpu.pop("island", None)
    for service in world["services"]:
        if rng.random() < 0.25:
            service["link"] = "pcie_switch"


def mixed(world, rng):
    """On some hosts GPUs of another model, or of another size, beside the first, whatever joins them; some hosts are
    MIG instances throughout."""
    for h in world["hosts"]:
        draw = rng.random()
        if draw < 0.2:
            model, total = rng.choice([("H100", 94 * GIB), ("H200", 141 * GIB), ("L40S", 48 * GIB)])
            share = rng.choice([0.3, 0.5])
            for gpu in h["gpus"]:
                if rng.random() < share:
                    gpu.update(model=model, memory_total=total)
                    if "memory_free" in gpu:
                        gpu["memory_free"] = min(gpu["memory_free"], total)
        elif draw < 0.3:
            for gpu in h["gpus"]:
                gpu["mig"] = "3g.40gb"


def small(seed):
    """A few hosts and services with every feature; CP-SAT and an exact search can prove the optimum."""
    rng = random.Random(seed)
    hosts = []
    for h in range(rng.randint(1, 5)):
        gpus = rng.choice([1, 2, 4, 4, 8])
        model, total = rng.choice([("H100", 80 * GIB), ("H100", 80 * GIB), ("H200", 141 * GIB)])
        island = rng.choice([0, 2, 4, 8])
        new = host(f"h{h}", f"r{rng.randint(1, 2)}", rng.choice("ab"), gpus, island, model, total)
        if rng.random() < 0.15:
            del new["rack"]
        for gpu in new["gpus"]:
            if rng.random() < 0.08:
                gpu["health"] = "uncorrected errors"
            if rng.random() < 0.1:
                gpu["memory_free"] = rng.choice([0, 40 * GIB, total - GIB])
            if rng.random() < 0.03:
                gpu["mig"] = "3g.40gb"
        new["cordoned"] = rng.random() < 0.08
        new["draining"] = rng.random() < 0.08
        new["up"] = rng.random() > 0.05
        hosts.append(new)
    services = []
    for s in range(rng.randint(1, 5)):
        shapes = []
        for _ in range(rng.choice([1, 1, 2])):
            tensor = rng.choice([1, 1, 2, 2, 4, 8, 3])
            pipeline = rng.choice([1, 1, 1, 2])
            shapes.append({"tensor": tensor, "pipeline": pipeline, "data": rng.choice([1, 1, 1, 2]),
                           "memory": rng.choice([10, 38, 70, 78, 100]) * GIB})
        services.append({
            "name": f"s{s}",
            "replicas": rng.randint(0, 3),
            "shapes": shapes,
            "priority": rng.choice([0, 0, 10]),
            "spread": rng.choice(["none", "host", "rack", "zone"]),
            "link": rng.choice(["any", "any", "numa", "nvlink"]),
            "weights_bytes": rng.choice([0, 3, 7, 16]) * GIB,
            "weights_on": [h["name"] for h in hosts if rng.random() < 0.3],
        })
        if rng.random() < 0.35:
            services[-1]["require"] = rng.choice(sorted(REQUIREMENTS))
        if rng.random() < 0.2:
            services[-1].update(heads=16, kv_heads=rng.choice([1, 2, 4]), kv_bytes=rng.choice([8, 60]) * GIB)
        if rng.random() < 0.1:
            services[-1]["hosts"] = [rng.choice(hosts)["name"]]
        if rng.random() < 0.1:
            services[-1]["memory_share"] = 0.9
            services[-1]["within_share"] = len(services) % 2 == 0
    world = {"hosts": hosts, "services": services, "placements": [], "reservations": [], "cordons": []}
    taken = set()
    for s in services:
        fixed = 0
        for replica in range(rng.choice([0, 0, 1, 2, 3])):
            shape = rng.choice(s["shapes"])
            units = shape["pipeline"] * shape["data"]
            split = rng.choice([m for m in range(1, units + 1) if units % m == 0])
            each = units // split * shape["tensor"]
            ranks = []
            for h in rng.sample(hosts, len(hosts)):
                free = [g["index"] for g in h["gpus"] if (h["name"], g["index"]) not in taken]
                if len(free) >= each and len(ranks) < split:
                    ranks.append({"host": h["name"], "gpus": rng.sample(free, each)})
            if len(ranks) < split:
                continue
            for r in ranks:
                taken.update((r["host"], g) for g in r["gpus"])
            running = {"service": s["name"], "replica": replica, "shape": shape, "ranks": ranks}
            if fixed < s["replicas"] and rng.random() < 0.2:
                running["movable"] = False
                fixed += 1
            world["placements"].append(running)
    for h in hosts:
        for g in h["gpus"]:
            if (h["name"], g["index"]) in taken:
                continue
            if rng.random() < 0.05:
                world["reservations"].append({"host": h["name"], "gpus": [g["index"]], "by": "x"})
            elif rng.random() < 0.04:
                world["cordons"].append({"host": h["name"], "gpus": [g["index"]]})
    # With draws of their own: the rest of each seed's world stays as it was.
    spreads = random.Random(seed + 3_000_000)
    for s in services:
        if spreads.random() < 0.25:
            s["spread"] = "pack"
        elif s["spread"] in ("rack", "zone") and spreads.random() < 0.5:
            s["one_host"] = True
    if seed % 4:
        switched(world, random.Random(seed + 2_000_000))
    if seed % 3:
        mixed(world, random.Random(seed + 4_000_000))
    return world


def outgoing(seed):
    """Half of what runs is of an earlier release, and hosts are lost and GPUs sick under it; every second world is
    small and tight."""
    rng = random.Random(seed + 1_000_000)
    if seed % 2:
        hosts = [host(f"h{h}", f"r{h % 2}", "a", rng.randint(1, 3), rng.choice([0, 3]), *rng.choice(
            [("H100", 80 * GIB), ("A100", 40 * GIB)])) for h in range(rng.randint(3, 4))]
        services = [{
            "name": f"s{s}", "replicas": rng.randint(1, 2),
            "shapes": [{"tensor": t, "pipeline": p, "data": 1, "memory": rng.choice([30, 30, 75]) * GIB}],
        } for s, (t, p) in enumerate(rng.choices([(1, 1), (1, 2), (2, 1), (1, 3)], k=rng.randint(2, 4)))]
        hosts[0]["up"] = False
        ranks = [{"host": "h0", "gpus": [0]}]
        running = [{"service": "s0", "replica": 0, "shape": {"tensor": 1, "memory": 0}, "outgoing": True, "ranks": ranks}]
        return {"hosts": hosts, "services": services, "placements": running, "headroom_percent": 0}
    world = small(seed)
    for service in world["services"]:
        if service["spread"] in ("none", "host", "pack") and rng.random() < 0.4:
            service["one_host"] = True
    for h in world["hosts"]:
        h["up"] = h["up"] and rng.random() > 0.15
        for gpu in h["gpus"]:
            if rng.random() < 0.1:
                gpu["health"] = "Xid 79"
    for running in world["placements"]:
        if rng.random() < 0.5:
            running["outgoing"] = True
    return world


def farm(seed, hosts=128, gangs=200, load=None):
    """Gangs of 1-16 GPUs on hosts of 8: three in four with one island of 8, the others with two of 4; racks of 8
    hosts, two memory sizes, priorities, weights lying about, `load` of the free GPUs wanted."""
    rng = random.Random(seed)
    load = load or rng.uniform(0.85, 1.05)
    world = {"hosts": [], "services": [], "reservations": []}
    free = 0
    for h in range(hosts):
        model, total = ("H200", 141 * GIB) if rng.random() < 0.4 else ("H100", 80 * GIB)
        island = 4 if h % 4 == 3 else 8
        new = host(f"h{h:03}", f"r{h // 8:02}", "ab"[h * 2 // hosts], 8, island, model, total)
        held = rng.choice([0, 0, 0, 1, 2, 4]) if rng.random() < 0.3 else 0
        if held:
            world["reservations"].append({"host": new["name"], "gpus": rng.sample(range(8), held), "by": "others"})
        free += 8 - held
        world["hosts"].append(new)
    shapes = [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2), (2, 3), (4, 3), (3, 1), (6, 1)]
    weights = [18, 20, 24, 18, 8, 4, 3, 3, 2]
    chosen = [rng.choices(shapes, weights)[0] for _ in range(gangs)]
    # Until so many GPUs are wanted as the load says.
    for _ in range(100000):
        wanted = sum(t * p for t, p in chosen)
        if abs(wanted - load * free) <= 4:
            break
        i = rng.randrange(gangs)
        new = rng.choices(shapes, weights)[0]
        if abs(wanted - chosen[i][0] * chosen[i][1] + new[0] * new[1] - load * free) < abs(wanted - load * free):
            chosen[i] = new
    for i, (tensor, pipeline) in enumerate(chosen):
        need = rng.choice([40, 60, 70, 70, 76, 100]) * GIB
        size = rng.randint(4, 40) * tensor * pipeline * GIB
        world["services"].append({
            "name": f"g{i:03}", "replicas": 1, "priority": rng.choice([0, 0, 1, 2]),
            "shapes": [{"tensor": tensor, "pipeline": pipeline, "memory": need}],
            "weights_bytes": size,
            "weights_on": [f"h{h:03}" for h in rng.sample(range(hosts), rng.choice([0, 1, 2, 2, 3, 4]))],
        })
    return world


def lost(seed, hosts=1000, services=500, load=0.9):
    """A busy fleet of which one host is lost: everything runs, what ran on that host needs a new place."""
    rng = random.Random(seed)
    world = {"hosts": [], "services": [], "placements": []}
    for h in range(hosts):
        model, total = ("H200", 141 * GIB) if h % 3 == 0 else ("H100", 80 * GIB)
        world["hosts"].append(host(f"h{h:04}", f"r{h // 8:03}", "abc"[h % 3], 8, 4 if h % 4 == 3 else 8, model, total))
    room = {h: 8 for h in range(hosts)}
    used, wanted = 0, int(load * hosts * 8)
    for s in range(services):
        tensor = rng.choice([1, 2, 2, 4, 4, 8])
        count = max(1, round((wanted - used) / (services - s) / tensor))
        need = 100 * GIB if rng.random() < 0.25 else 70 * GIB
        name = f"s{s:03}"
        placed = 0
        on = []
        for h in rng.sample(range(hosts), hosts):
            fits = need < 80 * GIB or h % 3 == 0
            # In an island of 4 a group starts at a multiple of its size.
            if placed < count and fits and room[h] >= tensor:
                gpus = list(range(8 - room[h], 8 - room[h] + tensor))
                world["placements"].append({"service": name, "replica": placed,
                                            "ranks": [{"host": f"h{h:04}", "gpus": gpus}]})
                room[h] -= tensor
                placed += 1
                on.append(f"h{h:04}")
        used += placed * tensor
        world["services"].append({
            "name": name, "replicas": placed, "priority": rng.choice([0, 1, 2]), "spread": "host",
            "shapes": [{"tensor": tensor, "memory": need}], "weights_bytes": rng.randint(10, 140) * GIB,
            "weights_on": on[: rng.randint(0, len(on))],
        })
    world["hosts"][rng.randrange(hosts)]["up"] = False
    return world


KINDS = {"small": small, "outgoing": outgoing, "farm": farm, "lost": lost}
