#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prefill and decode speed by depth: sinkrouter, dense and routed, beside llama.cpp and ik_llama.cpp, in one run.

  bench/peers.py [-f TEXT] [--llama-bench PROGRAM] [--ik-driver PROGRAM] [--json FILE] [--into docs/speed.md]

  --llama-bench  llama.cpp's own llama-bench                             (or LLAMA_BENCH in the environment)
  --ik-driver    bench/ik_driver.cpp linked against ik_llama.cpp, whose  (or IK_DRIVER in the environment)
                 llama-bench has no depths
Without them only our own rows are measured. Tokens come from TEXT where one is given, which the routed rows need to mean
anything: they then carry KL and broken contracts of the same steps. Peers decode random tokens; their speed does not
depend on which.

Fairness: the same file, threads, K/V type and counts of tokens; every program by itself, each in a fresh process; at each
depth the programs take turns, a different one first in each round, and the median over the rounds counts. Ratios are to
the faster peer of the row. Prefill = 512 tokens on top of the depth, decode = 64 tokens one by one.
"""
import argparse
import json
import os
import sys

from report import MODEL, default_program, load, machine, middle, number, put_into, run_json, stop, table

PREFILL, DECODE = 512, 64


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-m", "--model", default=MODEL)
    p.add_argument("-f", "--file", metavar="TEXT")
    p.add_argument("--offset", type=int, default=0, help="leave out the first characters of TEXT")
    p.add_argument("-d", "--depths", default="0,2048,4096,7900")
    p.add_argument("--kv", default="f16", help="K/V types, a list of f16, q8_0, q4_0")
    p.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    p.add_argument("-r", "--rounds", type=int, default=5)
    p.add_argument("--reps", type=int, default=3, help="timed runs of each test within a round")
    p.add_argument("--route-flags", default="", help="more flags of sinkrouter bench: '--route-eps .2'")
    p.add_argument("--moments", help="file of sinkrouter calibrate; default as sinkrouter bench has it")
    p.add_argument("--program", default=default_program())
    p.add_argument("--llama-bench", default=os.environ.get("LLAMA_BENCH"))
    p.add_argument("--ik-driver", default=os.environ.get("IK_DRIVER"))
    p.add_argument("--ik-repack", action="store_true", help="ik_llama.cpp once more with its weights interleaved (-rtr)")
    p.add_argument("--json", metavar="FILE", help="every sample, for bench/chart.py")
    p.add_argument("--into", metavar="FILE", help="put the table between the marks 'bench/peers.py' of this document")
    return p.parse_args()


def ours(a, kv, depth):
    command = [a.program, "bench", "-m", a.model, "-p", PREFILL, "-n", DECODE, "-d", depth, "-r", a.reps, "-t", a.threads,
               "-ctk", kv, "-ctv", kv, "--route", "dense,mass", "-o", "jsonl", "--quiet", "--allow-extrapolation"]
    command += ["-f", a.file, "--offset", a.offset] if a.file else []
    command += ["--moments", a.moments] if a.moments else []
    for row in run_json(command + a.route_flags.split()):
        yield ("sinkrouter " + row["route"] if row["n_gen"] else "sinkrouter"), row


def llama(a, kv, depth):
    for row in run_json([a.llama_bench, "-m", a.model, "-p", PREFILL, "-n", DECODE, "-d", depth, "-r", a.reps,
                         "-t", a.threads, "-ctk", kv, "-ctv", kv, "-fa", 1, "-ngl", 0, "-o", "jsonl"]):
        yield "llama.cpp", row


def ik(a, kv, depth, repack=0):
    for row in run_json([a.ik_driver, a.model, kv, a.threads, a.reps, repack, depth]):
        yield "ik_llama.cpp -rtr" if repack else "ik_llama.cpp", row


def engines(a):
    """Name and function of everything that is to be measured."""
    found = [("sinkrouter", ours)]
    if a.llama_bench:
        found.append(("llama.cpp", llama))
    if a.ik_driver:
        found.append(("ik_llama.cpp", ik))
        if a.ik_repack:
            found.append(("ik_llama.cpp -rtr", lambda *x: ik(*x, repack=1)))
    return found


def measure(a):
    """{(kv, depth, test, column): {"speeds", and what our rows say about routing}} and what failed."""
    cells, failed, todo = {}, {}, engines(a)
    for kv in a.kv.split(","):
        for depth in sorted(int(d) for d in a.depths.split(",")):
            for turn in range(a.rounds):
                for i in range(len(todo)):
                    name, function = todo[(i + turn) % len(todo)]
                    if name in failed:
                        continue
                    print(f"{kv}, depth {depth}, round {turn + 1} of {a.rounds}: {name}", file=sys.stderr, flush=True)
                    try:
                        for column, row in function(a, kv, depth):
                            test = "decode" if row["n_gen"] else "prefill"
                            cell = cells.setdefault((kv, depth, test, column), {"speeds": []})
                            cell["speeds"].append(row["avg_ts"])
                            for key in ("read", "kl", "top1", "contract_broken", "kv_bytes_per_token", "backends"):
                                if key in row and column.startswith("sinkrouter"):
                                    cell[key] = row[key]
                    except RuntimeError as e:
                        if name == "sinkrouter":
                            stop(str(e))
                        failed[name] = str(e)
                        print(f"{name} left out: {e}", file=sys.stderr, flush=True)
    return cells, failed


def rows_of(cells):
    """One record per kv, depth, test and column, with its median and its ratio to the faster peer."""
    records = []
    for (kv, depth, test, column), cell in sorted(cells.items(), key=lambda c: (c[0][0], c[0][1], c[0][2] == "decode")):
        peers = [middle(c["speeds"]) for (k, d, t, name), c in cells.items()
                 if (k, d, t) == (kv, depth, test) and not name.startswith("sinkrouter")]
        speed = middle(cell["speeds"])
        records.append({"kv": kv, "depth": depth, "test": test, "engine": column, "median": speed,
                        "ratio": speed / max(peers) if peers else None, **cell})
    return records


def report(records, peers, a, about):
    groups = {}
    for r in records:
        groups.setdefault((r["kv"], r["depth"], r["test"]), {})[r["engine"]] = r
    head = ["K/V", "depth:", "test", "dense:", "mass:"] + [p + ":" for p in peers]
    head += ["dense / faster peer:", "mass / faster peer:"] if peers else ["mass / dense:"]
    head += ["read:"] + (["KL:", "> 2 eps:"] if a.file else [])
    lines = []
    for (kv, depth, test), g in groups.items():
        dense, mass = g.get("sinkrouter dense") or g["sinkrouter"], g.get("sinkrouter mass")
        line = [kv, depth, test, number(dense["median"]), mass and number(mass["median"])]
        line += [p in g and number(g[p]["median"]) or None for p in peers]
        if peers:
            line += [number(dense["ratio"], "{:.2f}"), mass and number(mass["ratio"], "{:.2f}")]
        else:
            line.append(mass and number(mass["median"] / dense["median"], "{:.2f}"))
        line.append(mass and number(mass.get("read"), "{:.3f}"))
        if a.file:
            broken = mass and mass.get("contract_broken")
            line.append(mass and number(mass.get("kl"), "{:.4f}"))
            line.append(number(broken and 100 * broken, "{:.2f} %"))
        lines.append(line)
    spread = max((max(r["speeds"]) - min(r["speeds"])) / r["median"] for r in records)
    source = f"text {os.path.splitext(os.path.basename(a.file))[0]}" if a.file else "random tokens"
    how = (f"median of {a.rounds} rounds of {a.reps} runs; rounds differ by at most {100 * spread:.0f} %" if a.rounds > 1
           else f"mean of {a.reps} runs in one round")
    return (f"Tokens per second, {how}. {about['model']}, {source}, {about['cpu']} ({about['backend']}).\n\n" + table(head, lines))


def main():
    a = arguments()
    about = {**machine(), "threads": a.threads, "model": os.path.basename(a.model), "rounds": a.rounds, "reps": a.reps,
             "text": a.file and os.path.basename(a.file), "load_before": load()}
    if about["load_before"] > 0.5:
        print(f"the machine is not idle: load {about['load_before']}", file=sys.stderr)
    cells, failed = measure(a)
    records = rows_of(cells)
    about.update(failed=failed, backend=next(r["backends"] for r in records if "backends" in r))
    peers = [name for name, _ in engines(a)[1:] if any(r["engine"] == name for r in records)]
    text = report(records, peers, a, about)
    text += "".join(f"\n\n{name} could not be measured: {why}" for name, why in failed.items())
    print(text)
    if a.json:
        with open(a.json, "w", encoding="utf8") as f:
            json.dump({**about, "results": records}, f, indent=1)
    if a.into:
        put_into(a.into, "bench/peers.py", text)


if __name__ == "__main__":
    main()
