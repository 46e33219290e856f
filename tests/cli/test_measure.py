#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench, perplexity, calibrate and inspect on the default model."""
import csv
import io
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import MODEL, PROGRAM, contains, environment, equal, main, one_line, path, run, test, write

# Varied enough to be a text, made here: 64 words in an order without a short period.
WORDS = ("the river was cold and a man with two dogs stood near its bank while rain fell on old stones he had seen "
         "boats pass here every spring but never one so large or silent its sails were black as coal under low "
         "clouds nobody spoke for long time then someone laughed first quietly").split()


def text(n_words, seed=7):
    out = []
    for i in range(n_words):
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(WORDS[(seed >> 33) % len(WORDS)] + (".\n" if i % 17 == 16 else ""))
    return " ".join(out)


TEXT = write("text.txt", text(6000))
LLAMA_BENCH = """build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch
    n_ubatch n_threads cpu_mask cpu_strict poll type_k type_v n_gpu_layers split_mode main_gpu no_kv_offload flash_attn devices
    tensor_split tensor_buft_overrides use_mmap embeddings n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts
    samples_ns samples_ts""".split()


def bench(*args, fmt="json", **kw):
    out, _ = run("bench", "-m", MODEL, "-o", fmt, *args, **kw)
    return json.loads(out) if fmt == "json" else out


@test
def bench_fields():
    rows = bench("-p", "16", "-n", "4", "-r", "3")
    equal([(r["n_prompt"], r["n_gen"], r["n_depth"], r["route"]) for r in rows], [(16, 0, 0, "exact"), (0, 4, 0, "dense")])
    for r in rows:
        equal([f for f in LLAMA_BENCH + ["route", "read", "kv_bytes_per_token"] if f not in r], [])
        equal((len(r["samples_ns"]), len(r["samples_ts"])), (3, 3))
        ns = r["samples_ns"]
        mean = sum(ns) / 3
        equal(abs(r["avg_ns"] - mean) <= 1, True)
        equal(abs(r["stddev_ns"] - math.sqrt(sum((x - mean) ** 2 for x in ns) / 2)) <= 2, True)
        rates = [(r["n_prompt"] + r["n_gen"]) * 1e9 / x for x in ns]
        equal(abs(r["avg_ts"] / (sum(rates) / 3) - 1) < 1e-6, True)
    equal((rows[0]["read"], rows[1]["read"]), (None, 1.0))
    equal((rows[0]["max_step_ns"], max(rows[1]["samples_ns"]) / 4 <= rows[1]["max_step_ns"] <= max(rows[1]["samples_ns"])), (None, True))


@test
def bench_lists_are_multiplied():
    rows = bench("-p", "8-16+8", "-n", "2,3", "-d", "0,32", "-r", "1", "-pg", "8,2", "-t", "1-2", "-ctk", "f16,q8_0", "-ub", "16")
    per_session = 2 * (2 + 2 + 1)
    equal(len(rows), 2 * 2 * per_session)
    equal(sorted({(r["n_threads"], r["type_k"], r["type_v"]) for r in rows}),
          [(1, "f16", "f16"), (1, "q8_0", "f16"), (2, "f16", "f16"), (2, "q8_0", "f16")])
    equal([(r["n_prompt"], r["n_gen"], r["n_depth"]) for r in rows[:per_session]],
          [(8, 0, 0), (16, 0, 0), (0, 2, 0), (0, 3, 0), (8, 2, 0), (8, 0, 32), (16, 0, 32), (0, 2, 32), (0, 3, 32), (8, 2, 32)])
    rows = bench("-p", "2-8*2", "-n", "0", "-r", "1", "--no-warmup", "-fa", "on,off", "-b", "4,8")
    equal([r["n_prompt"] for r in rows], [2, 4, 8] * 4)
    rows = bench("-p", "0", "-n", "1", "-n", "2", "-r", "1", "-mmp", "0")
    equal([(r["n_gen"], r["use_mmap"]) for r in rows], [(1, False), (2, False)])


@test
def bench_of_sessions_together():
    rows = bench("-p", "8", "-n", "3", "-pg", "4,2", "-r", "2", "-npl", "1,3", "-d", "16")
    equal([(r["n_prompt"], r["n_gen"], r["n_parallel"]) for r in rows], [(8, 0, 1), (0, 3, 1), (0, 3, 3), (4, 2, 1)])
    for r in rows:
        want = (r["n_prompt"] + r["n_gen"] * r["n_parallel"]) * 1e9 / r["samples_ns"][0]
        equal(abs(r["samples_ts"][0] / want - 1) < 1e-6, True)
    equal(rows[1]["kv_bytes_per_token"], rows[2]["kv_bytes_per_token"])  # of one session
    contains(bench("-p", "0", "-n", "1", "-r", "1", "-npl", "2", "-d", "4", fmt="md"), "tg1 x2 @ d4")
    one_line(run("bench", "-m", MODEL, "-npl", "0", rc=2)[1], "-npl")
    one_line(run("bench", "-m", MODEL, "-npl", "257", rc=2)[1], "-npl", "256")


@test
def bench_of_route_modes_on_a_text():
    rows = bench("-p", "0", "-n", "4", "-d", "2500", "-r", "1", "-f", TEXT, "--offset", "100", "--route", "dense,mass,window,paper",
                 "--route-tau", "0.5", "--route-audit", "0")
    equal([r["route"] for r in rows], ["dense", "mass", "window", "paper"])
    dense, mass, window, paper = rows
    equal((dense["read"], dense["ratio"], dense["kl"], dense["top1"]), (1.0, 1.0, 0.0, 1.0))
    equal(window["read"] < mass["read"] < 1, True, str((window["read"], mass["read"])))
    equal(all(r["ratio"] > 0 and r["audit_bytes_per_token"] == 0 for r in rows), True)
    equal(mass["kl"] >= 0 and 0 <= mass["contract_broken"] < 0.2, True)
    equal(window["contract_broken"] > mass["contract_broken"], True)
    # K and V of 30 layers, 3 groups, 64 values of 2 bytes, for 2,501 .. 2,504 tokens
    equal(dense["kv_bytes_per_token"], 30 * 3 * 64 * 2 * 2 * 2502.5)
    equal(window["kv_bytes_per_token"], 30 * 3 * 64 * 2 * 2 * 260)


@test
def tables_of_random_numbers_say_so():
    file = path("random.gguf")
    run("inspect", "--make-random", "tiny-llama3", "-o", file)
    args = ("bench", "-m", file, "-m", MODEL, "-p", "2", "-n", "2", "-r", "1", "-d", "0,2500", "--fill", "random", "--route", "dense,mass",
            "--route-keep", "0.1")
    want = [(w, fill, route, keep) for w in ("random", "file") for fill in ("prefill", "random")
            for route, keep in (("exact", None), ("dense", None), ("mass", 0.1))]
    pick = lambda r: (r["weights"], r["fill"], r["route"], r["route_keep"])
    equal([pick(r) for r in json.loads(run(*args, "-o", "json")[0])], want)
    equal([pick(json.loads(line)) for line in run(*args, "-o", "jsonl")[0].splitlines()], want)
    equal([pick(r) for r in csv.DictReader(io.StringIO(run(*args, "-o", "csv")[0]))], [(*w[:3], "" if w[3] is None else "0.1") for w in want])
    lines = [[c.strip() for c in line.split("|")] for line in run(*args)[0].splitlines()[2:]]
    equal([(line[1].endswith(", random"), line[5].endswith(" random"), line[6]) for line in lines],
          [(w == "random", fill == "random", route + (" 10 % random" if keep else "")) for w, fill, route, keep in want])


@test
def a_lot_takes_its_share_and_nothing_is_audited():
    args = ("-p", "0", "-n", "2", "-r", "1", "-d", "3000", "--fill", "random", "--route", "mass")
    none, half = bench(*args, "--route-keep", "0")[0], bench(*args, "--route-keep", "0.5")[0]
    equal((none["route_keep"], half["route_keep"], none["route_audit"], half["audit_bytes_per_token"]), (0.0, 0.5, 0.0, 0.0))
    far = 30 * 3 * (3001.5 - 260) * 64 * 2 * 2
    equal(abs((half["kv_bytes_per_token"] - none["kv_bytes_per_token"]) / far - 0.5) < 0.02, True, f"{none} {half}")
    equal(bench(*args, "--route-keep", "0.5", "--route-audit", "1")[0]["audit_bytes_per_token"] > 0, True)


@test
def bench_formats():
    table = bench("-p", "8", "-n", "2", "-d", "0,16", "-r", "1", fmt="md")
    lines = table.splitlines()
    equal(len(lines), 6)
    equal(len({line.count("|") for line in lines}), 1)
    contains(table, "tg2 @ d16")
    rows = list(csv.DictReader(io.StringIO(bench("-p", "8", "-n", "2", "-r", "1", fmt="csv"))))
    equal([r["n_prompt"] + "/" + r["n_gen"] for r in rows], ["8/0", "0/2"])
    lines = bench("-p", "8", "-n", "2", "-r", "1", fmt="jsonl").splitlines()
    equal([json.loads(line)["n_gen"] for line in lines], [0, 2])
    _, err = run("bench", "-m", MODEL, "-p", "8", "-n", "0", "-r", "1", "-oe", "jsonl", "--quiet")
    equal(json.loads(err)["n_prompt"], 8)
    _, err = run("bench", "-m", MODEL, "-p", "0", "-n", "2", "-r", "1", "--profile")
    contains(err, "profile ")


@test
def bench_refusals():
    out, err = run("bench", "-m", MODEL, "-d", "8192", rc=2)
    one_line(err, "-d", "8192")
    equal(out, "", "a table without rows")
    _, err = run("bench", "-m", MODEL, "-p", "0", "-n", "1", "-d", "9", "-r", "1", "--route", "dense,mass,window")
    one_line(err, "--route-min 2048: contexts of at most 10 tokens are read whole")
    one_line(run("bench", "-m", MODEL, "-d", "7000", "-f", write("short", "a few words"), rc=2)[1], "-f", "tokens")
    one_line(run("bench", "-m", MODEL, "--route", "paper", rc=2)[1], "--route-tau")


FIELDS = ["mode", "rank", "eps", "delta", "tau", "window", "budget", "prefill", "tile", "decoded", "read", "kl", "ppl", "ppl_ratio", "top1", "above_eps",
          "contract_broken", "audited", "threshold", "correction", "open", "sink_rate", "auprc_cosine", "auprc_estimate",
          "unread_at_eps"]


def perplexity(*args, f=TEXT):
    out, _ = run("perplexity", "-m", MODEL, "-f", f, *args)
    return [json.loads(line) for line in out.splitlines()]


@test
def perplexity_rows():
    rows = perplexity("-c", "2400", "-n", "6", "--modes", "dense,window,paper,mass", "--route-rank", "8,16", "--route-eps", "0.1,0.3",
                      "--route-tau", "0.4,0.5", "-o", "json")
    for r in rows:
        equal(list(r), FIELDS)
        equal((r["prefill"], r["decoded"]), (2400, 6))
    equal([(r["mode"], r["rank"], r["eps"], r["tau"], r["window"]) for r in rows],
          [("dense", None, None, None, None), ("window", None, 0.1, None, 256), ("paper", None, 0.1, 0.4, None),
           ("paper", None, 0.1, 0.5, None), ("mass", 8, 0.1, None, 256), ("mass", 8, 0.3, None, 256),
           ("mass", 16, 0.1, None, 256), ("mass", 16, 0.3, None, 256)])
    dense, window, _, _, mass = rows[:5]
    equal((dense["read"], dense["kl"], dense["ppl_ratio"], dense["top1"]), (1.0, 0.0, 1.0, 1.0))
    equal([r["audited"] for r in (window, mass)], [30 * 9 * 6] * 2)  # layers, query heads, steps
    equal(window["read"] < mass["read"] < 1, True)
    equal([r for r in rows[4:] if not 0 < r["auprc_cosine"] < r["auprc_estimate"] <= 1], [])
    equal((dense["auprc_estimate"], window["auprc_estimate"], window["threshold"], mass["threshold"]), (None, None, None, 0.121951))  # 1.25 times the odds of .1
    equal([r for r in rows[4:] if not 0.3 < r["unread_at_eps"] < 1.5] + [r["unread_at_eps"] for r in (dense, window)], [None, None])
    equal(rows[5]["read"] < mass["read"], True)  # a larger eps reads less
    equal(all(r["kl"] >= 0 and 0 <= r["contract_broken"] <= r["above_eps"] <= 1 for r in rows[1:]), True)
    equal(all(abs(r["ppl_ratio"] * dense["ppl"] / r["ppl"] - 1) < 1e-4 for r in rows), True)


@test
def perplexity_options():
    a = perplexity("-c", "40", "-n", "4", "--modes", "dense")
    equal(perplexity("-c", "40", "-n", "4", "--modes", "dense", "-t", "1"), a)
    equal(perplexity("-c", "40", "-n", "4", "--modes", "dense", "--offset", "10")[0]["ppl"] != a[0]["ppl"], True)
    equal(perplexity("-c", "40", "-n", "4", "--modes", "dense", "--bos", "on")[0]["ppl"] != a[0]["ppl"], True)
    equal(perplexity("-c", "40", "-n", "4", "--modes", "dense", "--bos", "off")[0]["ppl"], a[0]["ppl"])
    fast = perplexity("-c", "40", "-n", "4", "--modes", "dense", "--speed")[0]
    equal(list(fast), FIELDS + ["tokens_per_second", "kv_bytes_per_token"])
    auto = perplexity("-n", "4", "--modes", "dense", f=write("tiny", text(50)))[0]
    equal(20 < auto["prefill"] < 100, True)
    out, _ = run("perplexity", "-m", MODEL, "-f", "-", "-c", "40", "-n", "4", "--modes", "dense", "-o", "md", stdin=text(200).encode())
    equal(len(out.splitlines()), 3)
    out, _ = run("perplexity", "-m", MODEL, "-f", TEXT, "-c", "40", "-n", "4", "--modes", "dense,window", "-o", "csv")
    equal([r["mode"] for r in csv.DictReader(io.StringIO(out))], ["dense", "window"])
    one_line(run("perplexity", "-m", MODEL, "-f", path("tiny"), "-c", "4000", rc=2)[1], "-f", "tokens")
    one_line(run("perplexity", "-m", MODEL, "-f", TEXT, "-c", "4", "--offset", "9999999", rc=2)[1], "--offset")
    one_line(run("perplexity", "-m", MODEL, "-f", TEXT, "-c", "8190", "-n", "10", rc=2)[1], "8192")


@test
def tiles():
    args = ("-c", "40", "-n", "4", "--tile", "3", "--modes", "window", "--route-window", "16", "--route-sinks", "4", "--route-min", "16")
    row = perplexity(*args)[0]
    equal((row["prefill"], row["tile"]), (40, 3))
    equal(abs(row["read"] - 4 * 20 / (113 + 114 + 115 + 116)) < 1e-6, True)  # 4 + 3 * 36 rows, and the steps' own
    one_line(run("perplexity", "-m", MODEL, "-f", TEXT, *args[4:], rc=2)[1], "-c")
    one_line(run("perplexity", "-m", MODEL, "-f", TEXT, "-c", "4000", "--tile", "3", rc=2)[1], "--tile 3", "8192")
    one_line(run("perplexity", "-m", MODEL, "--task", "niah", "-c", "400", "--tile", "2", rc=2)[1], "--tile")


@test
def a_sweep_whose_rows_go_nowhere_ends():
    tau = write("short.json", '{"tau":[0.5,0.001,0,0],"scale":1,"min_len":1,"max_len":20}')  # paper, when it begins, says that 40 is more
    args = [PROGRAM, "perplexity", "-m", MODEL, "-f", TEXT, "-c", "40", "-n", "4", "--modes", "dense,paper", "--route-min", "16",
            "--route-tau-file", tau]
    for out, rc in ((os.devnull, 0), ("/dev/full", 4)):
        with open(out, "wb") as f:
            p = subprocess.run(args, stdout=f, stderr=subprocess.PIPE, env=environment(), timeout=60, check=False)
        equal((p.returncode, "--route-tau-file" in p.stderr.decode()), (rc, rc == 0), p.stderr.decode())
    one_line(p.stderr.decode(), "standard output: No space left on device")


@test
def needles():
    for f in ([], ["-f", TEXT]):
        out, _ = run("perplexity", "-m", MODEL, *f, "--task", "niah", "-c", "400", "-n", "12", "--needles", "3", "--modes", "dense,window",
                     "--route-min", "16")
        rows = [json.loads(line) for line in out.splitlines()]
        equal([list(r) for r in rows], [FIELDS + ["hits", "asked", "each"]] * 2)
        equal([[len(r["each"]), sum(r["each"])] for r in rows], [[r["asked"], r["hits"]] for r in rows])
        equal([r["asked"] for r in rows], [3, 3])
        equal(0 <= rows[1]["hits"] <= rows[0]["hits"] <= 3, True)
    out, _ = run("perplexity", "-m", MODEL, "--task", "niah", "-c", "600", "-n", "12", "--needles", "3", "--values", "4", "--modes", "dense", "-o", "json")
    row = json.loads(out)
    equal([list(row)[-5:], row["asked"], row["values_asked"]], [["hits", "asked", "each", "value_hits", "values_asked"], 2, 4])
    equal(0 <= row["value_hits"] <= 4, True)
    # the needle is in the window that is read: it must be found in a short context
    out, _ = run("perplexity", "-m", MODEL, "--task", "niah", "-c", "64", "-n", "12", "--needles", "1", "--modes", "dense")
    equal(json.loads(out)["hits"], 1)
    one_line(run("perplexity", "-m", MODEL, "--task", "niah", "-c", "60", "--needles", "8", rc=2)[1], "-c 60")
    # a question takes 40 tokens of a vocabulary of bytes
    run("inspect", "--make-random", "tiny-llama2", "--type", "q8_0", "-o", path("bytes.gguf"))
    out, _ = run("perplexity", "-m", path("bytes.gguf"), "--task", "niah", "-c", "400", "-n", "4", "--needles", "2", "--modes", "dense")
    equal(json.loads(out)["decoded"], 2 * (40 + 4))
    for n, values in ((2147483647, 1), (1147483640, 8)):  # products beyond 2^31
        for c in ([], ["-c", "3000"]):
            one_line(run("perplexity", "-m", MODEL, "--task", "niah", *c, "-n", str(n), "--values", str(values), "--allow-extrapolation",
                         rc=2)[1], f"-n {n}", str(n * values + 32))


@test
def moments():
    file = path("model.moments")
    _, err = run("calibrate", "-m", MODEL, "-f", TEXT, "-c", "2100", "-o", file)
    contains(err, "moments of 2100 tokens")
    with open(file, "rb") as f:
        first = f.read()
    run("calibrate", "-m", MODEL, "-f", TEXT, "-c", "2100", "-o", file, "-t", "1")
    with open(file, "rb") as f:
        equal(f.read() == first, True, "moments depend on the number of threads")
    rows = perplexity("-c", "2400", "-n", "4", "--modes", "mass", "--moments", file)
    equal(rows[0]["read"] < 1, True)
    # with a file, mass routes below 2,048 tokens too
    args = ("-c", "600", "-n", "4", "--modes", "mass", "--route-min", "300")
    equal(perplexity(*args, "--moments", file)[0]["read"] < perplexity(*args, "--moments", "none")[0]["read"], True)
    few = write("few", "few words")
    one_line(run("calibrate", "-m", MODEL, "-f", few, "-o", file, rc=2)[1], "-f", "2048")
    one_line(run("calibrate", "-m", MODEL, "-f", few, "-f", few, "-o", file, rc=2)[1], "-f", "2048")
    other = path("other.txt")  # the same text from elsewhere on: an equal share of each
    with open(TEXT, encoding="utf8") as f:
        write("other.txt", f.read()[20000:])
    _, err = run("calibrate", "-m", MODEL, "-f", TEXT, "-f", other, "-c", "2200", "-o", file)
    contains(err, "moments of 2200 tokens")
    with open(file, "rb") as f:
        equal(f.read() == first, False, "the second text says nothing")
    run("calibrate", "-m", MODEL, "-f", TEXT, "-f", other, "-f", few, "-c", "3300", "-o", file)
    one_line(run("calibrate", "-m", MODEL, "-f", TEXT, "-c", "300", "-o", file, rc=2)[1], "-c", "2048")
    one_line(run("calibrate", "-m", MODEL, "-f", TEXT, "-c", "2048", "-o", "/absent/m", "--quiet", rc=4)[1], "-o /absent/m")
    os.symlink("/dev/null", path("null"))
    for more in ([], ["--paper"]):  # before the work, so without a progress line
        one_line(run("calibrate", "-m", MODEL, "-f", TEXT, "-o", path(""), *more, rc=4)[1], "Is a directory")
    one_line(run("calibrate", "-m", MODEL, "-f", TEXT, "-o", path("null"), rc=4)[1], "not a regular file")
    one_line(run("run", "-m", MODEL, "-p", "x", "--greedy", "--moments", "/absent", rc=4)[1], "/absent")
    one_line(run("run", "-m", MODEL, "-p", "x", "--greedy", "--moments", write("cut", first[:999]), rc=3)[1], "cut")


@test
def calibrate_paper():
    file = path("tau.json")
    args = ("calibrate", "--paper", "-m", MODEL, "-f", TEXT, "-n", "6", "-o", file)
    out, err = run(*args, "--lengths", "64,128,192,256,2200", "--skip", "0.5")
    contains(err, "50 %")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()[2:]]
    equal([r[0] for r in rows], ["64", "128", "192", "256", "2200"])
    with open(file, encoding="utf8") as f:
        j = json.load(f)
    equal((j["scale"], j["min_len"], j["max_len"], j["skip"], len(j["tau"])), (2200, 64, 2200, 0.5, 4))
    for r in j["lengths"]:  # five points, four coefficients: the cubic comes near, and what it skips is near what was asked for
        x = r["length"] / 2200
        equal(abs(sum(c * x ** i for i, c in enumerate(j["tau"])) - r["fitted"]) < 1e-6, True)
        equal(abs(r["skip"] - 0.5) < 0.1, True)
        equal((r["auprc_estimate"] is None), r["length"] < 2048)
    equal(j["lengths"][4]["auprc_estimate"] > j["lengths"][4]["auprc_cosine"], True)
    rows = perplexity("-c", "2180", "-n", "4", "--modes", "paper", "--route-tau-file", file)
    equal(0.3 < rows[0]["read"] < 0.8, True)
    _, err = run("perplexity", "-m", MODEL, "-f", TEXT, "-c", "2300", "-n", "2", "--modes", "paper", "--route-tau-file", file)
    contains(err, "fitted on 64 to 2200 tokens, the context has 2300")
    for flag, value in (("--lengths", "64,128,192,256"), ("--skip", ".5"), ("-n", "6")):
        one_line(run("calibrate", "-m", "/absent", flag, value, rc=2)[1], flag, "only with --paper")
    one_line(run(*args, "--lengths", "64,128,192", rc=2)[1], "--lengths", "at least 4")
    one_line(run(*args, "--lengths", "64,128,128,192", rc=2)[1], "--lengths 128", "rising")
    one_line(run(*args, "--lengths", "64,128,192,9000", rc=2)[1], "--lengths 9000")
    short = write("short.txt", b"A text of a few words is too short for six lengths.")
    one_line(run("calibrate", "--paper", "-m", MODEL, "-f", short, "-n", "6", "-o", file, rc=2)[1], "-f has ", "6 samples need 134")


@test
def inspect():
    out, err = run("inspect", "-m", MODEL)
    equal(err, "")
    for part in ("llama", "30", "Q4_1".lower(), "smollm2", "8192", "general.architecture", "tokenizer.ggml.pre", "4096"):
        contains(out.lower(), part)
    equal(max(map(len, [line for line in out.splitlines() if "token" in line and "=" not in line])) <= 100, True)
    out, _ = run("inspect", "-m", MODEL, "--tensors")
    contains(out, "blk.29.ffn_down.weight")
    _, err = run("inspect", "-m", MODEL, "--check")
    contains(err, "no NaN")
    j = json.loads(run("inspect", "-m", MODEL, "-o", "json", "--tensors")[0])
    equal((j["n_layers"], j["n_kv_heads"], j["head_dim"], len(j["tensors"])), (30, 3, 64, j["n_tensors"]))
    equal([m["context"] for m in j["memory"]], [4096, 8192])
    equal(j["memory"][1]["kv"], 8192 * 30 * 3 * 64 * 2 * 2)
    half = json.loads(run("inspect", "-m", MODEL, "-o", "json", "-ctk", "q8_0", "-ctv", "q8_0")[0])
    equal(half["memory"][1]["kv"], 8192 * 30 * 3 * 68 * 2)


@test
def inspect_of_an_unknown_architecture():
    def string(s):
        return struct.pack("<Q", len(s)) + s.encode()
    with open(path("unknown.gguf"), "wb") as f:
        f.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("general.architecture") + struct.pack("<I", 8) + string("foo"))
    out, err = run("inspect", "-m", path("unknown.gguf"))
    contains(out, "general.architecture = foo")
    one_line(err, "foo", "not known here")


@test
def perplexity_on_a_terminal_is_a_table():
    def run_to(to):
        return subprocess.run([PROGRAM, "perplexity", "-m", MODEL, "-f", TEXT, "-c", "40", "-n", "2", "--modes", "window", "--quiet"], stdout=to,
                              stdin=subprocess.DEVNULL, env=environment(), timeout=60, check=True).stdout
    ours, theirs = os.openpty()
    run_to(theirs)
    os.close(theirs)
    contains(os.read(ours, 4096).decode(), "| mode")
    os.close(ours)
    equal(json.loads(run_to(subprocess.PIPE))["mode"], "window")


@test
def interrupted_measurements():
    for args in (["bench", "-p", "0", "-n", "100", "-r", "50"], ["perplexity", "-f", TEXT, "-c", "2000", "-n", "90"],
                 ["calibrate", "-f", TEXT, "-o", path("never")]):
        p = subprocess.Popen([PROGRAM, args[0], "-m", MODEL, *args[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             stdin=subprocess.DEVNULL, env=environment())
        time.sleep(1)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=30)
        equal(p.returncode, 130, str(args) + err.decode())
    equal(os.path.exists(path("never")), False)


main(needs_model=True)
