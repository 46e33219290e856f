#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every family through every command and route mode, on tiny models that the program makes itself."""
import json
import os
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import PROGRAM, contains, environment, equal, main, one_line, path, run, test, write

FAMILIES = ["tiny-llama2", "tiny-llama3", "tiny-yi", "tiny-smollm", "tiny-mixtral", "tiny-qwen2", "tiny-qwen3", "tiny-qwen3moe"]
WORDS = "the river ran cold under old stones where a man had once seen boats pass in the rain ".split()
TEXT = write("text.txt", " ".join(WORDS[i * i % len(WORDS)] for i in range(600)))
MODES = ["dense", "mass", "paper", "window"]


def model(name):
    file = path(name + ".gguf")
    if not os.path.exists(file):
        equal(run("inspect", "--make-random", name, "--type", "q8_0", "-o", file), ("", ""), name)
    return file


def family(fn):
    """One test per family: fn(name, file)."""
    for name in FAMILIES:
        def one(name=name):
            fn(name, model(name))
        one.__name__ = f"{fn.__name__}_{name}"
        test(one)
    return fn


@family
def inspect(name, file):
    j = json.loads(run("inspect", "-m", file, "-o", "json", "--check")[0])
    equal(j["architecture"], "llama" if name[5:] in ("llama2", "llama3", "yi", "smollm", "mixtral") else name[5:])
    equal((j["n_layers"], j["n_vocab"], j["n_experts"] > 0), (2, 512, name in ("tiny-mixtral", "tiny-qwen3moe")))
    equal(j["kv_bytes_per_token"], 2 * j["n_layers"] * j["n_kv_heads"] * j["head_dim"] * 2)
    equal([m["kv"] for m in j["memory"]][0], 4096 * j["kv_bytes_per_token"])
    text = run("inspect", "-m", file)[0]
    contains(text, f"{j['kv_bytes_per_token']} bytes per token")
    equal("experts " in text, j["n_experts"] > 0)


@family
def run_in_every_mode(name, file):
    answers = {}
    for mode in MODES:
        extra = ["--route-tau", "0.5"] if mode == "paper" else []
        out, err = run("run", "-m", file, "-f", TEXT, "-p", "and then", "-no-cnv", "-n", "12", "--greedy", "--route", mode, "--route-min",
                       "64", "--route-window", "64", "--route-audit", "0", "-c", "4096", *extra, text=False)
        contains(err.decode(), "decode 12 tok")
        share = re.search(r"([0-9.]+) % of dense", err.decode())
        answers[mode] = out, float(share.group(1))
    equal(answers["dense"][1], 100.0)
    equal(answers["window"][1] < 50, True, answers)
    again = run("run", "-m", file, "-f", TEXT, "-p", "and then", "-no-cnv", "-n", "12", "--greedy", "--route", "dense", "-t", "1", text=False)
    equal(again[0], answers["dense"][0])


@family
def chat(name, file):
    template = ["--chat-template", "vicuna"] if name in ("tiny-llama2", "tiny-mixtral") else []
    out, err = run("chat", "-m", file, "-n", "6", "--greedy", *template, stdin=b"the river\n/route window\nand the rain\n/stats\n",
                   text=False)
    equal(len(out) > 0, True)
    equal(b"decode 6 tok" in out + err or b"decode" in out + err, True)


@family
def bench_and_perplexity(name, file):
    rows = json.loads(run("bench", "-m", file, "-p", "24", "-n", "4", "-r", "1", "-o", "json", "-d", "0,300", "--route", ",".join(MODES),
                          "--route-tau", "0.5", "--route-min", "64")[0])
    equal(sorted({r["route"] for r in rows}), sorted(MODES + ["exact"]))
    equal(all(r["avg_ts"] > 0 for r in rows), True)
    out, _ = run("perplexity", "-m", file, "-f", TEXT, "-c", "300", "-n", "20", "--modes", "dense,window,mass", "--route-min", "64",
                 "--route-window", "64")
    lines = [json.loads(line) for line in out.splitlines()]
    kl = {r["mode"]: r["kl"] for r in lines if "mode" in r and "kl" in r}
    equal(kl["dense"], 0.0)
    equal(0 < kl["window"] < 5, True, kl)
    equal(kl["mass"] < 5, True, kl)


@family
def sessions(name, file):
    common = ["run", "-m", file, "-no-cnv", "-n", "8", "--greedy", "--route", "dense", "-c", "4096"]
    saved = path(name + ".session")
    whole = run(*common, "-f", TEXT, "-p", " and then", text=False)[0]
    run(*common, "-f", TEXT, "-p", " and", "--session", saved, text=False)
    out, err = run(*common, "-f", TEXT, "-p", " and then", "--session", saved, text=False)
    equal(out, whole)
    contains(err.decode(), "decode 8 tok")
    other = model("tiny-llama3" if name != "tiny-llama3" else "tiny-yi")
    _, err = run("run", "-m", other, "-no-cnv", "-n", "2", "--greedy", "-p", "x", "--session", saved, rc=6)
    contains(err, "this session's is")


@test
def longer_contexts():
    """What the file declares is the limit; scaling by flag moves it; --allow-extrapolation goes beyond."""
    file = model("tiny-qwen2")  # declares 32768
    def tokens(*flags, rc=0):
        return run("run", "-m", file, "-p", "the river", "-no-cnv", "-n", "6", "--greedy", *flags, rc=rc, text=False)[0 if rc == 0 else 1]
    plain = tokens()
    contains(tokens("-c", "40000", rc=2).decode(), "32768")
    equal(tokens("-c", "40000", "--allow-extrapolation"), plain)
    yarn = ["--rope-scaling", "yarn", "--rope-scale", "4"]
    stretched = tokens("-c", "131072", *yarn)
    contains(tokens("-c", "131073", *yarn, rc=2).decode(), "131072")
    equal(tokens("-c", "100", *yarn, "--rope-scaling", "none"), plain)
    equal(tokens("-c", "65536", "--rope-scaling", "yarn", "--rope-freq-scale", "0.25", "--yarn-orig-ctx", "32768"), stretched)
    contains(tokens("--rope-scale", "4", "--rope-freq-scale", "0.25", rc=2).decode(), "--rope-freq-scale")
    equal(len({tokens("--rope-freq-base", b, "-n", "20") for b in ("1e4", "1e6", "1e8")}) > 1, True)
    own = file.replace("tiny-qwen2", "calibrated")  # moments beside the model are for the file's own scaling
    os.link(file, own)
    run("calibrate", "-m", own, "-f", write("long.txt", " ".join(WORDS * 60)), "--quiet")
    out, err = run("run", "-m", own, "-p", "the river", "-no-cnv", "-n", "6", "--greedy", "-c", "131072", *yarn, text=False)
    equal(out, stretched)
    contains(err.decode(), "moments is not used with this rope scaling")
    run("run", "-m", own, "-p", "x", "-no-cnv", "-n", "1", "--moments", own + ".moments", *yarn, rc=6)
    j = json.loads(run("inspect", "-m", file, "-o", "json", *yarn)[0])
    equal((j["n_ctx_train"], j["memory"][-1]["context"]), (131072, 131072))


@test
def make_random_refuses():
    names = run("inspect", "--make-random", "list")[0].split()
    equal([n for n in ("llama-3.1-8b", "llama-3.1-70b", "yi-9b-200k", "qwen3-235b-a22b", "llava-1.5-7b") if n not in names], [])
    one_line(run("inspect", "--make-random", "gpt-9", "-o", path("x"), rc=2)[1], "--make-random", "list has the names")
    one_line(run("inspect", "--make-random", "yi-6b", rc=2)[1], "-o: missing")
    one_line(run("inspect", "--make-random", "tiny-yi", "--type", "q9", "-o", path("x"), rc=2)[1], "q9", "q4_k_m")
    one_line(run("inspect", "--make-random", "tiny-yi", "-o", "/absent/x", rc=4)[1], "/absent/x")
    one_line(run("inspect", "-m", "/absent", "-o", "xml", rc=2)[1], "-o", "text json")
    equal(os.path.exists(path("x")), False)


@test
def a_killed_run_leaves_no_half_file():
    for sig, rc in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        file = path(f"killed{rc}.gguf")
        p = subprocess.Popen([PROGRAM, "inspect", "--make-random", "llama-3.2-3b", "--type", "q8_0", "-o", file], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        for _ in range(2000):
            if os.path.exists(file + ".part") and os.path.getsize(file + ".part") > 8 << 20 or p.poll() is not None:
                break
            time.sleep(0.005)
        p.send_signal(sig)
        p.communicate(timeout=30)
        equal(p.returncode, rc)
        equal(os.path.exists(file), False)
        if sig == signal.SIGKILL:
            os.unlink(file + ".part")
        equal(os.path.exists(file + ".part"), False)


main()
