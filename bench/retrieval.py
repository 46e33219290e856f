#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Hidden numbers asked for after the prefill, by every mode: `sinkrouter perplexity --task niah`, as a table.

  bench/retrieval.py TEXT[@CHARS]... [-m MODEL] [-c 7600,16000,30000] [--seeds 1,2] [--json FILE] [--into docs/routing.md]
  bench/retrieval.py --draw FILE... [--into docs/routing.md]

Sentences with numbers of seven digits, each for a word of its own, lie at even depths of a text (RULER's tasks of hidden
numbers, arXiv 2404.06654): --needles words with one number, which are each other's distractors (multi-key), and one word
with --values numbers in as many sentences (multi-value). --single hides one number alone, at another place for every seed. One prefill serves all modes of
a length and seed; every question is decoded from the same cache and answered greedily, so each is a retrieval that the
prefill could not prepare. Every further TEXT, or place in one, has other words and numbers: its seed is one higher.
"""
import argparse
import json
import math
import os
import sys

from report import MODEL, default_program, machine, put_into, run_json, stop, table

NAMES = {"dense": "dense", "mass": "mass", "quest": "Quest", "window": "StreamingLLM", "paper": "paper", "topp": "bound: true mass",
         "topk": "bound: exact top-k", "snapkv": "SnapKV", "h2o": "H2O", "pages": "pages, mean + std", "fastgen": "FastGen"}


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("places", nargs="*", metavar="TEXT[@CHARS]", help="the text from its character CHARS on")
    p.add_argument("--draw", nargs="+", metavar="FILE", help="measure nothing: the table of these runs")
    p.add_argument("-m", "--model", default=MODEL)
    p.add_argument("--modes", default="dense,mass,window,quest,paper")
    p.add_argument("-c", "--lengths", default="7600")
    p.add_argument("--seeds", default="1")
    p.add_argument("--needles", type=int, default=8)
    p.add_argument("--values", type=int, default=4, help="1: no word has more than one number")
    p.add_argument("--single", action="store_true", help="one number alone")
    p.add_argument("--eps", default=".1,.2")
    p.add_argument("--tau", default=".5")
    p.add_argument("--budget", default="1024")
    p.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    p.add_argument("--program", default=default_program())
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--into", metavar="FILE", help="put the table between the marks 'bench/retrieval.py' of this document")
    a = p.parse_args()
    if bool(a.places) == bool(a.draw):
        p.error("give a TEXT, or --draw FILE")
    return a


def task(a):
    if a.single:
        return ["--needles", 1]
    return ["--needles", a.needles + (a.values > 1), "--values", a.values]


def tries(a):
    """(text, character, seed) of every prefill of one length."""
    for i, place in enumerate(a.places):
        path, at, chars = place.rpartition("@")
        if not (at and chars.isdigit()):
            path, chars = place, 0
        for seed in a.seeds.split(","):
            yield path, chars, int(seed) + i


def measure(a):
    run = {**machine(), "model": os.path.basename(a.model), "results": []}
    for length in a.lengths.split(","):
        for path, chars, seed in tries(a):
            rows = run_json([a.program, "perplexity", "-m", a.model, "-f", path, "--offset", chars, "--task", "niah", "-c", length,
                             "-n", 16, "--seed", seed, *task(a), "--modes", a.modes, "--route-eps", a.eps, "--route-tau", a.tau,
                             "--route-budget", a.budget, "--moments", "none", "-t", a.threads, "-o", "json", "--quiet"])
            for r in rows:
                run["results"].append({"seed": seed, "single": a.single, **r})
                print(json.dumps(run["results"][-1]), file=sys.stderr, flush=True)
            if a.json:
                with open(a.json, "w", encoding="utf8") as f:
                    json.dump(run, f, indent=1)
    return run


def setting(r):
    if r["mode"] in ("mass", "topp"):
        return f"eps {r['eps']:g}"
    if r["mode"] == "paper":
        return f"cos > {r['tau']:g}"
    if r["mode"] == "window":
        return f"{r['window'] + 4} rows"
    return f"{r['budget']} rows" if r["budget"] else ""


def found(rows, hits, asked):
    n = sum(r.get(asked, 0) for r in rows)
    return f"{sum(r.get(hits, 0) for r in rows)} of {n}" if n else None


def by_chance(lost, gained):
    """McNemar's exact p: how often a fair coin splits the answers that differ as unevenly."""
    n, least = lost + gained, min(lost, gained)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n)


def pairs(rows, dense):
    """Beside dense, question by question: found by dense alone, by the policy alone, and p."""
    if rows is dense:
        return None
    lost = gained = 0
    for r in rows:
        for d in dense:
            if (r["seed"], r["single"]) == (d["seed"], d["single"]):
                lost += sum(x > y for x, y in zip(d.get("each", []), r.get("each", [])))
                gained += sum(x < y for x, y in zip(d.get("each", []), r.get("each", [])))
    return f"{lost}, {gained}; {by_chance(lost, gained):.3f}"


def report(runs):
    groups = {}
    for run in runs:
        for r in run["results"]:
            groups.setdefault((run["model"], r["prefill"], NAMES[r["mode"]], setting(r)), []).append(r)
    lines = []
    for (model, prefill, mode, what), rows in groups.items():
        alone, many = [r for r in rows if r["single"]], [r for r in rows if not r["single"]]
        lines.append([model.removesuffix(".gguf"), f"{prefill:,}", mode, what, f"{sum(r['read'] for r in rows) / len(rows):.3f}",
                      pairs(rows, groups.get((model, prefill, "dense", ""), [])), found(alone, "hits", "asked"), found(many, "hits", "asked"), found(many, "value_hits", "values_asked")])
    head = ["model", "tokens:", "policy", "setting", "read:", "lost, gained; p:", "single:", "multi-key:", "multi-value:"]
    keep = [i for i in range(len(head)) if any(line[i] for line in lines)]
    return table([head[i] for i in keep], [[line[i] for i in keep] for line in lines])


def main():
    a = arguments()
    runs = []
    try:
        for path in a.draw or []:
            with open(path, encoding="utf8") as f:
                runs.append(json.load(f))
        if a.places:
            runs.append(measure(a))
    except RuntimeError as e:
        stop(str(e))
    body = report(runs)
    print(body)
    if a.into:
        put_into(a.into, "bench/retrieval.py", body)


if __name__ == "__main__":
    main()
