#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Quality by bytes read: `mass`, the baselines and the bounds over texts, as a table and a chart.

  bench/pareto.py TEXT... [--json RUN.json] [--into docs/routing.md] [-o docs/pareto.svg]
  bench/pareto.py --draw RUN.json... [--into docs/routing.md] [-o docs/pareto.svg]

Each text is prefilled once and decoded token by token with every mode and setting (`sinkrouter perplexity`), with the
session's own moments. A .jsonl file of programming tasks (fields prompt and canonical_solution) is read as their code. The
second table sets every policy beside `mass`: how many times its KL at the bytes that `mass` reads, by straight lines
between the policy's own points in log KL. The third has the texts apart. Several runs are joined over the texts that all of them have.
"""
import argparse
import json
import math
import os
import sys
import tempfile

from chart import ceiling, text
from quality import name_of
from report import MODEL, default_program, machine, number, put_into, run_json, stop, table

NAMES = {"mass": "mass", "mass+": "mass, delta .05", "topp": "bound: true mass", "topk": "bound: exact top-k", "quest": "Quest",
         "pages": "pages, mean + std", "h2o": "H2O", "snapkv": "SnapKV", "fastgen": "FastGen", "window": "StreamingLLM",
         "paper": "SinkRouter as published"}
MODES = "mass,topp,topk,quest,pages,h2o,snapkv,fastgen,window,paper"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 486, 66, 640, 52, 412
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: currentColor }
svg { color: #737b84 } .title { font-size: 15px; font-weight: 600 } .note { font-size: 12px } .label { font-weight: 600 }
.grid { stroke: currentColor; stroke-opacity: .3 } circle { fill: currentColor }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round } .line.mass { stroke-width: 3.2 }
.line.topp, .line.topk { stroke-dasharray: 5 4 }
.mass { color: #d9485f } .mass2 { color: #e58a97 } .topp { color: #2f81d6 } .topk { color: #4a4fb0 } .quest { color: #a2772f }
.pages { color: #6f8f4f } .h2o { color: #8a63d2 } .snapkv { color: #1b9e9e } .fastgen { color: #b5651d } .window { color: #7d8590 }
@media (prefers-color-scheme: dark) { svg { color: #b1bac4 } .mass { color: #ff7b87 } .topp { color: #6cb6ff } .topk { color: #a5a8ff } }
"""


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("texts", nargs="*", metavar="TEXT")
    p.add_argument("--draw", nargs="+", metavar="RUN.json", help="measure nothing: tables and chart of these runs")
    p.add_argument("-m", "--model", default=MODEL)
    p.add_argument("--modes", default=MODES)
    p.add_argument("--offset", type=int, default=100000, help="of texts; code begins at its start")
    p.add_argument("-c", "--prefill", type=int, default=7680)
    p.add_argument("-n", "--decode", type=int, default=96)
    p.add_argument("--eps", default=".05,.1,.2")
    p.add_argument("--delta", default="0,.05")
    p.add_argument("--budget", default="384,768,1536")
    p.add_argument("--tau", default=".4,.5,.6")
    p.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    p.add_argument("--program", default=default_program())
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--into", metavar="FILE", help="put the table between the marks 'bench/pareto.py' of this document")
    p.add_argument("-o", "--output", metavar="FILE", help="the chart, SVG")
    a = p.parse_args()
    if bool(a.texts) == bool(a.draw):
        p.error("give texts, or --draw RUN.json")
    return a


def code_of(path, folder):
    to = os.path.join(folder, "code.txt")
    with open(path, encoding="utf8") as f, open(to, "w", encoding="utf8") as out:
        for line in f:
            task = json.loads(line)
            out.write(task["prompt"] + task["canonical_solution"] + "\n\n")
    return to


def measure(a):
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in a.texts:
            is_code = path.endswith(".jsonl")
            name = "Code" if is_code else name_of(path)
            print(name, file=sys.stderr, flush=True)
            found = run_json([a.program, "perplexity", "-m", a.model, "-f", code_of(path, folder) if is_code else path, "--offset",
                              0 if is_code else a.offset, "-c", a.prefill, "-n", a.decode, "-t", a.threads, "--modes", a.modes,
                              "--route-eps", a.eps, "--route-delta", a.delta, "--route-budget", a.budget, "--route-tau", a.tau, "--moments", "none",
                              "-o", "json", "--quiet"])
            rows += [{"text": name, **r} for r in found]
            run = {**machine(), "model": os.path.basename(a.model), "prefill": a.prefill, "decode": a.decode, "results": rows}
            if a.json:
                with open(a.json, "w", encoding="utf8") as f:
                    json.dump(run, f, indent=1)
    return run


def joined(paths):
    """Runs of other policies over the same texts, as one."""
    runs = []
    for path in paths:
        with open(path, encoding="utf8") as f:
            runs.append(json.load(f))
    for path, r in zip(paths, runs):
        for key in ("model", "prefill", "decode"):
            if r[key] != runs[0][key]:
                stop(f"{path}: {key} {r[key]}, in {paths[0]} {runs[0][key]}")
    texts = set.intersection(*({r["text"] for r in run["results"]} for run in runs))
    order = [t for t in dict.fromkeys(r["text"] for r in runs[0]["results"]) if t in texts]
    return {**runs[0], "results": [r for t in order for run in runs for r in run["results"] if r["text"] == t]}


# ---- what the rows say ----

def setting(row):
    kind = "mass+" if row["mode"] == "mass" and row["delta"] else row["mode"]
    if kind in ("mass", "mass+", "topp"):
        return kind, f"eps {row['eps']:g}"
    if kind == "paper":
        return kind, f"cos > {row['tau']:g}"
    return kind, f"{row['budget'] or row['window'] + 4} rows"


def averages(run):
    """{policy: [(setting, means)]}, by bytes read; perplexity ratios by the geometric mean."""
    groups = {}
    for r in run["results"]:
        groups.setdefault(setting(r), []).append(r)
    out = {}
    for (kind, name), rows in groups.items():
        means = {k: sum(r[k] for r in rows) / len(rows) for k in ("read", "kl", "top1", "above_eps", "contract_broken")}
        means["ppl_ratio"] = math.exp(sum(math.log(r["ppl_ratio"]) for r in rows) / len(rows))
        out.setdefault(kind, []).append((name, means))
    return {kind: sorted(v, key=lambda x: x[1]["read"]) for kind, v in out.items()}


def kl_at(points, read):
    """KL at these bytes, between a policy's own points; None outside of them."""
    for (_, a), (_, b) in zip(points, points[1:]):
        if a["read"] <= read <= b["read"] and b["read"] > a["read"]:
            t = (read - a["read"]) / (b["read"] - a["read"])
            return math.exp((1 - t) * math.log(a["kl"]) + t * math.log(b["kl"]))
    return None


def by_text(run, kind, name):
    """The smallest and the largest multiple of one text."""
    times = []
    for t in dict.fromkeys(r["text"] for r in run["results"]):
        one = averages({"results": [r for r in run["results"] if r["text"] == t]})
        mine = dict(one["mass"])[name]
        other = kl_at(one.get(kind, []), mine["read"])
        if other is not None:
            times.append(other / mine["kl"])
    return f" ({min(times):.1f} to {max(times):.1f})" if len(times) > 1 else ""


def beside_mass(run, found):
    rows = []
    for kind in [k for k in NAMES if k in found and not k.startswith("mass")]:
        cells = []
        for name, m in found["mass"]:
            kl = kl_at(found[kind], m["read"])
            cells.append(None if kl is None else f"{kl / m['kl']:.1f}" + by_text(run, kind, name))
        if any(cells):
            rows.append([NAMES[kind]] + cells)
    head = [f"mass, {name}, read {m['read']:.3f}:" for name, m in found["mass"]]
    return table(["policy, mean (texts apart)"] + head, rows)


def cell(rows, names, forms):
    """Means over the rows, comma after comma; None if a row lacks one."""
    values = [[r[n] for r in rows] for n in names]
    if not rows or any(v is None for column in values for v in column):
        return None
    return ", ".join(form.format((100 if "%" in form else 1) * sum(v) / len(v)) for v, form in zip(values, forms))


def apart(run, eps):
    """One line per text and their means: `mass` and true mass at this eps, and how well the paper's label is found."""
    rows, all_of = [], {}
    for t in list(dict.fromkeys(r["text"] for r in run["results"])) + ["mean"]:
        of = {}
        for r in run["results"]:
            if r["text"] == t and r["eps"] is not None and abs(r["eps"] - eps) < 1e-6:
                of.setdefault(setting(r)[0], []).append(r)
                all_of.setdefault(setting(r)[0], []).append(r)
        of = of if t != "mean" else all_of
        promise = (("read", "kl", "above_eps", "contract_broken"), ("{:.3f}", "{:.4f}", "{:.1f} %", "{:.2f} %"))
        rows.append([t, cell(of.get("mass", []), *promise), cell(of.get("topp", []), ("read", "kl"), ("{:.3f}", "{:.4f}")),
                     cell(of.get("mass+", []), *promise),
                     cell(of.get("mass", []), ("sink_rate", "auprc_cosine", "auprc_estimate"), ("{:.3f}",) * 3)])
    head = ["text", "mass: read, KL, > eps, > 2 eps", "true mass: read, KL", "delta .05: read, KL, > eps, > 2 eps",
            "label: base rate, AUPRC of cosine, of the estimate"]
    keep = [i for i in range(len(head)) if any(row[i] for row in rows)]
    return table([head[i] for i in keep], [[row[i] for i in keep] for row in rows])


def report(run):
    found = averages(run)
    texts = list(dict.fromkeys(r["text"] for r in run["results"]))
    rows = []
    for kind in [k for k in NAMES if k in found]:
        for name, m in found[kind]:
            has_eps = kind in ("mass", "mass+", "topp")
            rows.append([NAMES[kind], name, f"{m['read']:.3f}", f"{m['kl']:.4f}", f"x{m['ppl_ratio']:.3f}", f"{m['top1']:.3f}",
                         number(100 * m["above_eps"], "{:.1f} %") if has_eps else None,
                         number(100 * m["contract_broken"], "{:.2f} %") if has_eps else None])
    note = (f"{run['model']}, f16 K/V, {run['prefill']} tokens prefilled, {run['decode']} decoded, own moments; means over "
            f"{', '.join(texts)}. Means of perplexity ratios are geometric.")
    whole = table(["policy", "setting", "read:", "KL:", "perplexity:", "same top-1:", "> eps:", "> 2 eps:"], rows)
    parts = [note, whole]
    if "mass" in found:
        parts += ["KL at the bytes that `mass` reads, as a multiple of its KL:", beside_mass(run, found)]
        parts += ["By text, eps .1; the label is the paper's, a mean share of the first row above .65 over the heads of a group:", apart(run, .1)]
    return "\n\n".join(parts)


# ---- the chart ----

def log_ticks(lo, hi):
    return [m * 10.0 ** e for e in range(math.floor(math.log10(lo)), math.ceil(math.log10(hi)) + 1) for m in (1, 3)
            if lo <= m * 10.0 ** e <= hi]


def draw(run):
    """All but `paper`, which reads nearly everything and would leave the others a corner of the chart."""
    found = {kind: v for kind, v in averages(run).items() if kind != "paper"}
    points = [m for v in found.values() for _, m in v if m["kl"] > 0]
    end, step = ceiling(max(m["read"] for m in points))
    lo, hi = min(m["kl"] for m in points) / 1.4, max(m["kl"] for m in points) * 1.4
    x = lambda r: LEFT + (RIGHT - LEFT) * r / end
    y = lambda k: BOTTOM - (BOTTOM - TOP) * math.log(k / lo) / math.log(hi / lo)
    body = [text(LEFT, 24, "KL against dense by bytes read", "title"),
            text(LEFT, BOTTOM + 40, "K/V and sketch bytes read, share of dense decoding", "note"),
            text(LEFT, HEIGHT - 8, f"{run['model'].removesuffix('.gguf')}, {run['prefill']:,} tokens, mean over "
                 f"{len({r['text'] for r in run['results']})} texts; nats per token", "note")]
    for k in log_ticks(lo, hi):
        body.append(f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{y(k):.1f}" y2="{y(k):.1f}"/>')
        body.append(text(LEFT - 8, y(k) + 4.5, f"{k:g}", anchor="end"))
    for i in range(round(end / step) + 1):
        body.append(text(x(i * step), BOTTOM + 20, f"{i * step:g}", anchor="middle"))
    at = TOP + 8
    for kind in [k for k in NAMES if k in found]:
        css = "mass2" if kind == "mass+" else kind
        line = [m for _, m in found[kind] if m["kl"] > 0]
        path = " ".join(f"{'ML'[i > 0]}{x(m['read']):.1f} {y(m['kl']):.1f}" for i, m in enumerate(line))
        body.append(f'<path class="line {css}" d="{path}"/>')
        body += [f'<circle class="{css}" cx="{x(m["read"]):.1f}" cy="{y(m["kl"]):.1f}" r="3.2"/>' for m in line]
        body.append(f'<path class="line {css}" d="M{RIGHT + 18} {at} h26"/>')
        body.append(text(RIGHT + 52, at + 4.5, NAMES[kind], f"label {css}"))
        at += 24
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    head = "<title>KL against dense decoding by K/V bytes read, for all routing policies</title>"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', head, f"<style>{STYLE}</style>"] + body +
                     ["</svg>\n"])


def main():
    a = arguments()
    if a.draw:
        run = joined(a.draw)
    else:
        try:
            run = measure(a)
        except RuntimeError as e:
            stop(str(e))
    body = report(run)
    print(body)
    if a.into:
        put_into(a.into, "bench/pareto.py", body)
    if a.output:
        with open(a.output, "w", encoding="utf8") as f:
            f.write(draw(run))


if __name__ == "__main__":
    main()
