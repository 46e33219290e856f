#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What routing costs in quality: `sinkrouter perplexity` over texts, settings and sources of the moments, as tables.

  bench/quality.py TEXT... [--apart TEXT]... [--moments-text TEXT]... [--own] [--json FILE] [--into DOCUMENT]

From character --offset of each text on, -c tokens are prefilled exactly and -n decoded one by one, dense and with every
mode. `mass` is measured with the moments of each --moments-text (`sinkrouter calibrate` reads it first), and with the
session's own first tokens (--own, or when no other text is given).
"""
import argparse
import json
import math
import os
import sys
import tempfile

from report import MODEL, default_program, machine, number, put_into, run_json, stop, table


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("texts", nargs="+", metavar="TEXT")
    p.add_argument("-m", "--model", default=MODEL)
    p.add_argument("--moments-text", action="append", default=[], metavar="TEXT")
    p.add_argument("--own", action="store_true")
    p.add_argument("--apart", action="append", default=[], metavar="TEXT",
                   help="a text of another kind, such as a language that the model hardly knows; has its own mean")
    p.add_argument("--offset", type=int, default=100000)
    p.add_argument("-c", "--prefill", type=int, default=7680)
    p.add_argument("-n", "--decode", type=int, default=96)
    p.add_argument("--tau", default=".4,.5,.6")
    p.add_argument("--rank", default="16,8")
    p.add_argument("--eps", default=".05,.1,.2,.3")
    p.add_argument("--kv", default="f16")
    p.add_argument("-t", "--threads", type=int, default=os.cpu_count())
    p.add_argument("--program", default=default_program())
    p.add_argument("--json", metavar="FILE")
    p.add_argument("--into", metavar="FILE", help="put the tables between the marks 'bench/quality.py' of this document")
    return p.parse_args()


def name_of(path):
    return os.path.splitext(os.path.basename(path))[0].replace("_", " ").title()


def perplexity(a, text, modes, moments):
    print(f"{name_of(text)}: {modes}, moments {os.path.basename(moments)}", file=sys.stderr, flush=True)
    return run_json([a.program, "perplexity", "-m", a.model, "-f", text, "--offset", a.offset, "-c", a.prefill,
                     "-n", a.decode, "-t", a.threads, "-ctk", a.kv, "-ctv", a.kv, "--modes", modes, "--route-tau", a.tau,
                     "--route-rank", a.rank, "--route-eps", a.eps, "--moments", moments, "-o", "json", "--quiet"])


def save(a, rows):
    """After every text, since a run is long."""
    if a.json:
        with open(a.json, "w", encoding="utf8") as f:
            json.dump({**machine(), "model": os.path.basename(a.model), "results": rows}, f, indent=1)


def measure(a, folder):
    """Every row of the program, with the text and the source of the moments added."""
    sources, rows = [], []
    for i, text in enumerate(a.moments_text):
        to = os.path.join(folder, f"{i}.moments")
        run_json([a.program, "calibrate", "-m", a.model, "-f", text, "-o", to, "-t", a.threads, "--quiet"])
        sources.append((f"of {name_of(text)}", to))
    if a.own or not sources:
        sources.append(("own", "none"))
    for text in a.texts + a.apart:
        modes = "window,paper,mass"
        for source, moments in sources:
            for row in perplexity(a, text, modes, moments):
                own = source if row["mode"] == "mass" else None
                rows.append({"text": name_of(text), "moments": own, **row})
            save(a, rows)
            modes = "mass"  # the others need no moments
    return rows


def policy(row):
    """Name of a setting, the same for every text."""
    if row["mode"] == "paper":
        return f"paper, cos > {row['tau']:g}"
    if row["mode"] == "window":
        return f"window, sinks + last {row['window']}"
    return f"mass, rank {row['rank']}, eps {row['eps']:g}, moments {row['moments']}"


def mean(rows, key):
    values = [r[key] for r in rows]
    return None if None in values else sum(values) / len(values)


def line(name, rows):
    """One row of a table: means over the rows; the geometric mean of perplexity ratios."""
    ratio = math.exp(sum(math.log(r["ppl_ratio"]) for r in rows) / len(rows))
    cells = [name, number(mean(rows, "read"), "{:.3f}"), number(mean(rows, "kl"), "{:.4f}"), f"x{ratio:.3f}",
             number(mean(rows, "top1"), "{:.3f}")]
    if rows[0]["mode"] == "mass":
        return cells + [f"{100 * mean(rows, 'above_eps'):.1f} %", f"{100 * mean(rows, 'contract_broken'):.2f} %"]
    return cells + [None, None]  # the other modes promise no eps


HEAD = ["read:", "KL:", "perplexity:", "same top-1:", "> eps:", "> 2 eps:"]


def means(rows):
    """One line per setting, in the order of measuring."""
    settings = {}
    for r in rows:
        settings.setdefault(policy(r), []).append(r)
    return table(["policy"] + HEAD, [line(name, found) for name, found in settings.items()])


def by_text(rows, apart):
    """One line per setting, one column per text."""
    names = list(dict.fromkeys(r["text"] for r in rows))
    settings = {}
    for r in rows:
        settings.setdefault(policy(r), {})[r["text"]] = f"{number(r['read'], '{:.3f}')}, {number(r['kl'], '{:.4f}')}"
    head = ["policy"] + [f"{name}{' (apart)' if name in apart else ''}:" for name in names]
    return table(head, [[what] + [of.get(name) for name in names] for what, of in settings.items()])


def report(a, rows):
    parts = [f"{os.path.basename(a.model)}, {a.kv} K/V, {a.prefill} tokens prefilled from character {a.offset}, "
             f"{a.decode} decoded, on {machine()['cpu']}. Means of perplexity ratios are geometric."]
    for title, texts in (("Mean over", a.texts), ("Apart, mean over", a.apart)):
        names = [name_of(text) for text in texts]
        if names:
            parts += [f"**{title} {', '.join(names)}**", means([r for r in rows if r["text"] in names])]
    parts += ["**By text: read, KL**", by_text(rows, {name_of(text) for text in a.apart})]
    return "\n\n".join(parts)


def main():
    a = arguments()
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows = measure(a, folder)
        except RuntimeError as e:
            stop(str(e))
    text = report(a, rows)
    print(text)
    if a.into:
        put_into(a.into, "bench/quality.py", text)


if __name__ == "__main__":
    main()
