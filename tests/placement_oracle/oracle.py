#!/usr/bin/env python3
"""Compares `gpudeck place` with CP-SAT on random worlds.

  oracle.py PROGRAM small|outgoing FROM TO     every answer is allowed and says what is so; where both prove the
                                      optimum they agree (outgoing: half of what runs is of an earlier release)
  oracle.py PROGRAM farm|lost FROM TO --limit MS     the figures: how far from CP-SAT's optimum, and how fast
  oracle.py PROGRAM farm FROM TO --limit MS --columns S    how far from what columns.py proves in S seconds a level
  oracle.py PROGRAM columns FROM TO   on small farms the bounds of columns.py are never beyond CP-SAT's optimum
  oracle.py - small|outgoing|farm|lost SEED    print the world
  oracle.py highs|cpsat farm FROM TO --cpsat S    how long HiGHS or CP-SAT takes, S seconds a level at most

Ends with one line of JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

import check
import worlds


def place(program, world, *options):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(world, file)
        file.flush()
        command = [program, "place", file.name, "--output", "json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def small(args):
    import cpsat

    both = ours = 0
    for seed in range(args.first, args.last):
        world = worlds.KINDS[args.kind](seed)
        try:
            answer = place(args.program, world, "--time-limit", "20s", "--steps", "20000")
            levels = check.check(world, answer)
            best, proven = cpsat.solve(world, limit=10, workers=2)
            ours += answer["proven_optimal"]
            if answer["proven_optimal"] and all(proven):
                both += 1
                assert levels == best, f"levels {levels}, CP-SAT {best}"
            assert levels >= best or not all(proven), f"better than the optimum: {levels}, CP-SAT {best}"
            bounds = {x["name"]: x["bound"] for x in answer["objective"]}
            if all(proven):
                said = [p["wanted"] - p["bound"] for p in answer["objective"][0]["by_priority"]]
                said += [bounds[n] for n in check.LEVELS if n in bounds]
                said.append(-bounds["fragmentation"])
                assert said <= best, f"bounds {said} beyond the optimum {best}"
        except AssertionError as error:
            print(f"seed {seed}: {error}", file=sys.stderr)
            raise
    return {"worlds": args.last - args.first, "proven": ours, "proven_by_both": both}


def figures(args):
    import cpsat

    rows = []
    for seed in range(args.first, args.last):
        world = worlds.KINDS[args.kind](seed)
        answer = place(args.program, world, "--time-limit", f"{args.limit}ms")
        levels = check.check(world, answer)
        search = answer["search"]
        row = {"seed": seed, "levels": levels, "first_ms": search["first_feasible_ms"], "ms": search["elapsed_ms"]}
        if args.kind == "farm":
            best, proven = cpsat.solve(world, limit=args.cpsat, workers=2, log=lambda t: print(t, file=sys.stderr))
            row.update(cpsat=best, proven=proven)
            row["placed_lost"] = sum(levels[:-6]) - sum(best[:-6])
            row["bytes_ratio"] = levels[-2] / best[-2] if best[-2] else 1.0
        else:
            moved = sum(m["serving"] for m in answer["moves"])
            row.update(moves=len(answer["moves"]), serving_moved=moved)
        print(json.dumps(row), file=sys.stderr)
        rows.append(row)
    out = {"worlds": len(rows), "first_ms": statistics.median(r["first_ms"] for r in rows),
           "ms": statistics.median(r["ms"] for r in rows)}
    if args.kind == "farm":
        out["bytes_ratio_median"] = statistics.median(r["bytes_ratio"] for r in rows)
        out["bytes_ratio_worst"] = max(r["bytes_ratio"] for r in rows)
        out["placed_lost"] = sum(r["placed_lost"] for r in rows)
    return out


def columns_small(args):
    """On farms that CP-SAT proves, the bounds of columns.py are never beyond the optimum."""
    import columns
    import farm

    rows = []
    for seed in range(args.first, args.last):
        world = worlds.farm(seed, hosts=16, gangs=24)
        levels = check.check(world, place(args.program, world, "--time-limit", "20s", "--steps", "60000"))
        best = farm.optimum(world, levels, 10)
        values, proven = best["levels"], best["proven"]
        # The bound of the bytes holds for placements that are as good as the answer on all levels before.
        assert not all(proven[:-2]) or values[:-2] == levels[:-6], f"seed {seed}: {levels}, CP-SAT {values}"
        found = columns.bounds(world, levels, 60)
        slack = 1e-3
        if all(proven[:-1]):
            assert found["link"]["bound"] <= values[-2] + slack, f"seed {seed}: {found}, CP-SAT {values}"
        if values[-2] == levels[-4]:
            assert found["bytes"]["bound"] <= values[-1] + slack, f"seed {seed}: {found}, CP-SAT {values}"
        if all(proven):
            rows.append(found["bytes"]["bound"] / max(1, values[-1]))
    return {"worlds": args.last - args.first, "proven": len(rows), "nearest": min(rows, default=None)}


def bounded(args):
    """How far an answer is from what columns.py proves."""
    import columns

    rows = []
    for seed in range(args.first, args.last):
        world = worlds.farm(seed)
        answer = place(args.program, world, "--time-limit", f"{args.limit}ms")
        log = lambda text: print(f"seed {seed}: {text}", file=sys.stderr, flush=True)
        row = {"seed": seed, "ms": answer["search"]["elapsed_ms"], "first_ms": answer["search"]["first_feasible_ms"]}
        row.update(columns.bounds(world, check.check(world, answer), args.columns, log))
        row["bytes_ratio"] = row["bytes"]["answer"] / max(1, row["bytes"]["bound"])
        print(json.dumps(row), file=sys.stderr)
        rows.append(row)
    ratios = [row["bytes_ratio"] for row in rows]
    return {"worlds": rows, "bytes_ratio_median": statistics.median(ratios), "bytes_ratio_worst": max(ratios)}


def compare(args):
    import farm

    cp = __import__("highs") if args.program == "highs" else None
    rows = []
    for seed in range(args.first, args.last):
        log = lambda text: print(f"seed {seed}: {text}", file=sys.stderr)
        rows.append({"seed": seed, **farm.from_nothing(worlds.KINDS["farm"](seed), args.cpsat, cp, log)})
    return {"solver": args.program, "worlds": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("kind", choices=[*sorted(worlds.KINDS), "columns"])
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int, nargs="?")
    parser.add_argument("--limit", type=int, default=100, help="milliseconds for gpudeck")
    parser.add_argument("--cpsat", type=float, default=60, help="seconds for CP-SAT")
    parser.add_argument("--columns", type=float, help="seconds a level for columns.py")
    args = parser.parse_args()
    if args.last is None:
        args.last = args.first + 1
    if args.program in ("highs", "cpsat"):
        print(json.dumps(compare(args)))
        return
    if args.kind == "columns" or args.columns:
        print(json.dumps(columns_small(args) if args.kind == "columns" else bounded(args)))
        return
    if args.program == "-":
        print(json.dumps(worlds.KINDS[args.kind](args.first)))
        return
    print(json.dumps(small(args) if args.kind in ("small", "outgoing") else figures(args)))


if __name__ == "__main__":
    main()
