#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/chart.svg from a run of bench/peers.py:  bench/chart.py RUN.json [-o docs/chart.svg] [--kv f16]

Left: decode speed by depth, sinkrouter dense and routed and whoever was measured beside it. Right: K/V bytes that a
decode step reads. Colours follow the reader's light or dark theme; without one they are such that both work.
"""
import argparse
import html
import json
import math

from report import stop

WIDTH, HEIGHT, TOP, BOTTOM = 860, 372, 74, 318
PANELS = {"speed": (56, 322), "bytes": (540, 718)}  # x of the first and the last depth
NAMES = {"sinkrouter mass": ("mass", "sinkrouter mass"), "sinkrouter dense": ("dense", "sinkrouter dense"),
         "llama.cpp": ("peer1", "llama.cpp"), "ik_llama.cpp": ("peer2", "ik_llama.cpp"),
         "ik_llama.cpp -rtr": ("peer3", "ik_llama.cpp -rtr")}
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: currentColor }
svg { color: #737b84 } .title { font-size: 15px; font-weight: 600 } .note { font-size: 12px } .label { font-weight: 600 }
.grid { stroke: currentColor; stroke-opacity: .3 }
.line { fill: none; stroke: currentColor; stroke-width: 2.2; stroke-linejoin: round } .line.mass { stroke-width: 3 }
.line.peer1, .line.peer2, .line.peer3 { stroke-dasharray: 6 4 }
circle { fill: currentColor }
.mass { color: #d9485f } .dense { color: #2f81d6 }
.peer1 { color: #7d8590 } .peer2 { color: #a2772f } .peer3 { color: #6f8f4f }
@media (prefers-color-scheme: light) { svg { color: #57606a } }
@media (prefers-color-scheme: dark) {
  svg { color: #b1bac4 } .mass { color: #ff7b87 } .dense { color: #6cb6ff } .peer1 { color: #9198a1 }
  .peer2 { color: #d9a84e } .peer3 { color: #9fc476 }
}
"""


def ceiling(v):
    """The end of the axis and its step: round numbers, 4 to 6 steps."""
    step = 10 ** math.floor(math.log10(v / 4))
    step = next(step * k for k in (1, 2, 2.5, 5, 10) if v / (step * k) <= 5.5)
    return step * math.ceil(v / step), step


def text(x, y, what, kind="", anchor="start"):
    cls = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{cls}>{html.escape(what)}</text>'


def spread(wanted, gap):
    """Heights as near as possible to the wanted ones, at least `gap` apart, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    at = [wanted[i] for i in order]
    for _ in range(200):
        for i in range(1, len(at)):
            lack = gap - (at[i] - at[i - 1])
            if lack > 0:
                at[i - 1], at[i] = at[i - 1] - lack / 2, at[i] + lack / 2
    placed = [0.0] * len(wanted)
    for i, y in zip(order, at):
        placed[i] = y
    return placed


def panel(where, title, lines, depths):
    """lines: [(class, label, {depth: value})]"""
    left, right = PANELS[where]
    top, step = ceiling(max(v for _, _, points in lines for v in points.values()))
    x = lambda depth: left + (right - left) * depth / max(depths[-1], 1)
    y = lambda value: BOTTOM - (BOTTOM - TOP) * value / top
    out = [text(left - 38, TOP - 26, title, "title")]
    for i in range(round(top / step) + 1):
        out.append(f'<path class="grid" d="M{left} {y(i * step):.1f}H{right + 8}"/>')
        out.append(text(left - 8, y(i * step) + 4.5, f"{i * step:g}", anchor="end"))
    for depth in depths:
        out.append(text(x(depth), BOTTOM + 20, f"{depth:,}", anchor="middle"))
    out.append(text((left + right) / 2, BOTTOM + 41, "tokens in the context", anchor="middle"))
    for kind, _, points in lines:
        path = "L".join(f"{x(d):.1f} {y(v):.1f}" for d, v in sorted(points.items()))
        out.append(f'<path class="line {kind}" d="M{path}"/>')
        out += [f'<circle class="{kind}" cx="{x(d):.1f}" cy="{y(v):.1f}" r="3.2"/>' for d, v in points.items()]
    ends = spread([y(points[max(points)]) for _, _, points in lines], 19)
    for (kind, label, points), at in zip(lines, ends):
        last = points[max(points)]
        out.append(text(right + 14, at + 4.5, f"{label} {last:.{0 if last >= 20 else 1}f}", f"label {kind}"))
    return out


def draw(run, kv):
    decode = [r for r in run["results"] if r["test"] == "decode" and r["kv"] == kv]
    if not decode:
        stop(f"the run has no decode rows with {kv} K/V")
    depths = sorted({r["depth"] for r in decode})
    speed = [(kind, label, {r["depth"]: r["median"] for r in decode if r["engine"] == name})
             for name, (kind, label) in NAMES.items() if any(r["engine"] == name for r in decode)]
    read = [(kind, label, {r["depth"]: r["kv_bytes_per_token"] / 1e6 for r in decode if r["engine"] == name})
            for name, kind, label in (("sinkrouter mass", "mass", "mass"), ("sinkrouter dense", "dense", "everything"))]
    model = run["model"].removesuffix(".gguf")
    rounds = f"median of {run['rounds']} rounds" if run["rounds"] > 1 else "one round"
    about = f"{model}, {kv} K/V, {run['threads']} threads of {run['cpu']}; {rounds}"
    body = panel("speed", "Decode, tokens per second", speed, depths)
    body += panel("bytes", "K/V read per token, MB", read, depths)
    body.append(text(18, 22, about, "note"))
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    head = "<title>Decode speed and K/V bytes read by context depth</title>"
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">', head, f"<style>{STYLE}</style>"]
                     + body + ["</svg>\n"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", metavar="RUN.json")
    p.add_argument("-o", "--output", default="docs/chart.svg")
    p.add_argument("--kv", default="f16")
    a = p.parse_args()
    with open(a.run, encoding="utf8") as f:
        run = json.load(f)
    with open(a.output, "w", encoding="utf8") as f:
        f.write(draw(run, a.kv))


if __name__ == "__main__":
    main()
