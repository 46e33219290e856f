#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""run on the default model: answers, stops, sessions, signals, broken outputs."""
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import MODEL, PROGRAM, contains, environment, equal, main, one_line, path, run, settled, test, write

QUESTION = "Name the capital of France, of Italy and of Spain."
KEPT = {}


def answer(*args, **kw):
    return run("run", "-m", MODEL, *args, **kw)


def greedy(*args, **kw):
    return answer("--greedy", "-p", QUESTION, *args, **kw)


def plain():
    """The greedy answer of 24 tokens, made once."""
    if "plain" not in KEPT:
        KEPT["plain"] = greedy("-n", "24")[0]
    return KEPT["plain"]


def stats_of(*args, name="stats.json", **kw):
    run(*args, "--stats", path(name), **kw)
    with open(path(name), encoding="utf8") as f:
        return json.load(f)


def prompt_ids(*args):
    _, err = answer("--greedy", "-n", "0", "--verbose-prompt", *args)
    return [int(w) for line in err.splitlines() if "prompt tokens" in line for w in line.split("..:")[1].split()]


@test
def answer_only_on_stdout():
    out, err = greedy("-n", "24")
    equal(out.endswith("\n") and len(out) > 10, True, out)
    contains(err, "prefill")
    contains(err, "KV read")
    out2, err = greedy("-n", "24", "--quiet")
    equal((out2, err), (out, ""))


@test
def same_answer_for_any_threads_and_again():
    for args in ([], ["-t", "1"], ["-t", "2"], ["-t", "2", "-tb", "1"], ["-t", "1", "-tb", "2"]):
        equal(greedy("-n", "24", *args)[0], plain(), str(args))


@test
def loading_flags_do_not_change_the_answer():
    for args in (["--no-mmap"], ["--mlock"], ["-lm", "none"], ["-lm", "mmap+mlock"], ["--check"], ["-fa"], ["-fa", "off"],
                 ["-ngl", "99"], ["--route", "dense"], ["--route-audit", "1"]):
        equal(greedy("-n", "24", *args)[0], plain(), str(args))


@test
def seeds():
    out, err = answer("-p", "Tell me a story.", "-n", "16")
    seed = [line for line in err.splitlines() if "seed " in line][0].split()[-1]
    equal(answer("-p", "Tell me a story.", "-n", "16", "-s", seed)[0], out)
    _, err = answer("-p", "Tell me a story.", "-n", "16", "-s", "7")
    equal("seed " in err, False)
    others = {answer("-p", "Tell me a story.", "-n", "16", "-s", str(s), "--temp", "1.5")[0] for s in range(4)}
    equal(len(others) > 1, True)


@test
def samplers():
    equal(answer("-p", QUESTION, "-n", "24", "--top-k", "1")[0], plain())
    equal(answer("-p", QUESTION, "-n", "24", "--temp", "0")[0], plain())
    equal(answer("-p", QUESTION, "-n", "24", "--samplers", "top-k;temp", "--top-k", "1", "--temp", "5")[0], plain())
    equal(answer("-p", QUESTION, "-n", "24", "--top-p", "0", "--top-k", "0")[0], plain())
    equal(answer("-p", QUESTION, "-n", "24", "--min-p", "1", "--top-k", "0", "--top-p", "1")[0], plain())
    equal(greedy("-n", "24", "--repeat-penalty", "5", "--repeat-last-n", "-1")[0] != plain(), True)
    equal(greedy("-n", "24", "--presence-penalty", "50")[0] != plain(), True)
    equal(greedy("-n", "24", "--frequency-penalty", "50")[0] != plain(), True)
    equal(greedy("-n", "24", "--frequency-penalty", "50", "--repeat-last-n", "0")[0], plain())
    one_line(answer("-p", "x", "-s", "1", "--samplers", "top_k;xyz", rc=2)[1], "xyz")


@test
def stop_texts_are_not_printed():
    text = plain().rstrip("\n")
    for at in (3, 9, 17, 30):
        stop = text[at:at + 7]
        want = text[:text.find(stop)]
        equal(greedy("-n", "24", "-r", stop)[0].rstrip("\n"), want.rstrip("\n"), stop)
    equal(greedy("-n", "24", "-r", "@@nothing@@", "-r", text[9:12])[0].rstrip("\n"), text[:text.find(text[9:12])].rstrip("\n"))
    # the beginning of a stop text that never comes is printed
    equal(greedy("-n", "24", "-r", text[-3:] + "@@")[0], plain())


@test
def escapes():
    real = prompt_ids("-p", "a\nb\t\"c\"")
    equal(prompt_ids("-p", "a\\nb\\t\\x22c\\x22"), real)
    equal(prompt_ids("-p", "a\\nb\\t\\x22c\\x22", "-e"), real)
    equal(prompt_ids("-p", "a\\nb\\t\\x22c\\x22", "--no-escape") != real, True)
    one_line(answer("--greedy", "-p", "a\\xffb", rc=2)[1], "not UTF-8")


@test
def templates():
    with_template = prompt_ids("-p", "Hello")
    raw = prompt_ids("-p", "Hello", "-no-cnv")
    equal((len(raw), len(with_template) > 10), (1, True))
    equal(len(prompt_ids("-p", "Hello", "-no-cnv", "--bos", "on")), 2)
    equal(prompt_ids("-p", "Hello", "--chat-template", "smollm2", "-cnv", "-st"), with_template)
    equal(prompt_ids("-p", "Hello", "--chat-template", "chatml") != with_template, True)
    system = prompt_ids("-p", "Hello", "-sys", "You are terse.")
    equal(system != with_template, True)
    equal(prompt_ids("-p", "Hello", "-sysf", write("system", "You are terse.")), system)
    one_line(answer("-p", "x", "--chat-template", "nosuch", rc=2)[1], "nosuch")
    one_line(answer("-p", "x", "-no-cnv", "-cnv", rc=2)[1], "-no-cnv")


@test
def documents():
    doc = write("doc", "The cat is red.\n")
    joined = prompt_ids("-f", doc, "-p", "Which color?", "-no-cnv")
    equal(prompt_ids("-p", "The cat is red.\\n\\nWhich color?", "-no-cnv"), joined)
    out, _ = run("run", "-m", MODEL, "-f", "-", "-no-cnv", "--greedy", "-n", "4", stdin="The cat is".encode())
    equal(out, answer("-p", "The cat is", "-no-cnv", "--greedy", "-n", "4")[0])
    ids = prompt_ids("-p", "one two three four five six", "-no-cnv")
    equal(prompt_ids("-f", write("six", "one two three four five six"), "--file-tokens", "4", "-no-cnv"), ids[:4])
    one_line(answer("--greedy", "-f", write("bad", b"ab\xffcd"), rc=3)[1], "-f", "byte 2 (0xff) is not UTF-8")
    one_line(answer("--greedy", "-f", "/absent", rc=4)[1], "-f /absent")
    one_line(answer("--greedy", "-f", write("nothing", ""), rc=3)[1], "empty")
    out, _ = answer("-f", doc, "--greedy", "-n", "4", "--display-prompt")
    equal(out.startswith("The cat is red.\n"), True, out)
    contains(answer("-f", doc, "--greedy", "-n", "4", "--display-prompt", "--color", "on")[0], "\x1b[33m")


@test
def whole_characters_only():
    for seed in range(3):
        out, _ = run("run", "-m", MODEL, "-no-cnv", "-p", "日本語のテキスト: 東京", "-n", "24", "--temp", "1.5", "-s", str(seed), text=False)
        out.decode("utf8")


@test
def limits_of_length():
    s = stats_of("run", "-m", MODEL, "--greedy", "-p", QUESTION, "-n", "5")["answers"][0]
    equal((s["generated"], s["stop"]), (5, "limit"))
    s = stats_of("run", "-m", MODEL, "--greedy", "-p", QUESTION, "-n", "0")["answers"][0]
    equal((s["generated"], s["stop"], s["prefilled"] > 10), (0, "limit", True))
    s = stats_of("run", "-m", MODEL, "--greedy", "-p", "What is 1+1?", "-n", "200")["answers"][0]
    equal(s["stop"], "end")
    more = stats_of("run", "-m", MODEL, "--greedy", "-p", "What is 1+1?", "-n", str(s["generated"] + 5), "--ignore-eos")["answers"][0]
    equal((more["generated"], more["stop"]), (s["generated"] + 5, "limit"))


@test
def full_context_stops_with_a_line():
    out, err = greedy("-c", "64", "--ignore-eos")
    contains(err, "the context of 64 tokens is full")
    equal(len(out) > 10, True)
    _, err = greedy("-c", "16", rc=2)
    one_line(err.splitlines(True)[-1], "the context 16", "-c")
    one_line(greedy("-c", "9000", rc=2)[1], "8192")
    greedy("-c", "9000", "--allow-extrapolation", "-n", "2")


@test
def cache_types():
    size = {}
    for k, v in (("f32", "f32"), ("f16", "f16"), ("bf16", "bf16"), ("q8_0", "q8_0"), ("f16", "q8_0"), ("q4_0", "q4_0"),
                 ("q8_0", "q4_0"), ("fp8", "fp8"), ("f16", "f8_e4m3"), ("fp8_e4m3", "f8_e4m3")):
        out, _ = greedy("-n", "8", "-ctk", k, "-ctv", v, "--stats", path("s"))
        equal(len(out) > 5, True)
        with open(path("s"), encoding="utf8") as f:
            size[k, v] = json.load(f)["answers"][0]["routing"]["kv_bytes_per_token"]
    equal(size["f32", "f32"] / size["f16", "f16"], 2.0)
    equal(size["f16", "f16"], size["bf16", "bf16"])
    equal(size["q8_0", "q8_0"] / size["f16", "f16"], 34 / 64)
    equal(size["q4_0", "q4_0"] / size["f16", "f16"], 18 / 64)
    equal(size["q8_0", "q4_0"] / size["f16", "f16"], (34 + 18) / 128)
    equal(size["fp8", "fp8"] / size["f16", "f16"], 0.5)
    equal(size["f16", "f8_e4m3"] / size["f16", "f16"], 0.75)
    equal(size["fp8_e4m3", "f8_e4m3"], size["fp8", "fp8"])
    one_line(greedy("-n", "1", "--quiet", "-ctk", "fp9", rc=2)[1], "fp9")


@test
def batches():
    for args in (["-ub", "16"], ["-b", "8"], ["-b", "4096", "-ub", "4096"]):
        equal(len(greedy("-n", "8", *args)[0]) > 5, True)


@test
def stats_file():
    s = stats_of("run", "-m", MODEL, "--greedy", "-p", QUESTION, "-n", "4", "--route", "mass", "--route-eps", "0.2", "--route-window",
                 "100", "--route-sinks", "2", "--route-min", "16", "--route-rank", "8", "--route-bits", "8", "--route-audit", "1",
                 "--route-seed", "3", "-s", "5", "--route-delta", "0.05", "--route-breaker", "off", "--route-look", "off",
                 "--route-trail", "off")
    equal(s["route"], {"mode": "mass", "eps": 0.2, "delta": 0.05, "breaker": False, "look": False, "trail": False, "window": 100, "sinks": 2, "min": 16, "rank": 8, "bits": 8,
                       "audit": 1.0, "seed": 3, "keep": None, "tau": None})
    a = s["answers"][0]
    equal(a["prompt_tokens"], a["reused"] + a["prefilled"])
    equal(a["routing"]["steps"], a["decoded"])
    equal(a["routing"]["units_open"], 0)
    one_line(greedy("-n", "1", "--quiet", "--route-delta", "0.1", "--route-audit", "0", rc=2)[1], "--route-delta", "--route-audit")
    equal((s["seed"], len(s["heat"]), len(s["heat"][0])), (5, 30, 3))
    equal(s["tokens"], a["prompt_tokens"] + a["decoded"])
    r = stats_of("run", "-m", MODEL, "--greedy", "-p", QUESTION, "-n", "4", "--route", "window", "--route-window", "8",
                 "--route-min", "16", "--route-audit", "1")["answers"][0]["routing"]
    equal((r["audits"], r["units_near"], r["cases"]), (r["units"], r["units"], 3 * r["units"]))
    equal(0 < r["read"] < 1, True)
    equal([n for n in os.listdir(os.path.dirname(path("x"))) if ".tmp." in n], [])
    absent = greedy("-n", "1", "--quiet", "--stats", "/absent/s.json", rc=4)  # found before the work
    one_line(absent[1], "--stats /absent/s.json")
    equal(absent[0], "")
    os.symlink("/dev/null", path("null"))  # what is no file is written where it is: never replaced
    greedy("-n", "1", "--quiet", "--stats", path("null"))
    equal(os.path.islink(path("null")), True)
    one_line(greedy("-n", "1", "--quiet", "--stats", "/dev/full", rc=4)[1], "--stats /dev/full")


@test
def sessions():
    file = path("session")
    first, err = greedy("-n", "24", "--session", file)
    equal(first, plain())
    contains(err, "new")
    s = stats_of("run", "-m", MODEL, "--greedy", "-p", QUESTION, "-n", "24", "--session", file)
    equal(s["answers"][0]["reused"], s["answers"][0]["prompt_tokens"] - 1)
    second, err = greedy("-n", "24", "--session", file)
    equal(second, plain())
    contains(err, "restored")
    with open(file, "rb") as f:
        good = f.read()
    for name, data in (("cut", good[:len(good) // 2]), ("flip", good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]), ("none", b"")):
        one_line(greedy("-n", "2", "--quiet", "--session", write(name, data), rc=3)[1], name)
    one_line(greedy("-n", "2", "--quiet", "--session", file, "-ctk", "q8_0", rc=6)[1], file)
    absent = greedy("-n", "2", "--quiet", "--session", "/absent/s", rc=4)
    one_line(absent[1], "--session /absent/s")
    equal(absent[0], "", "an answer that no session could keep")
    with open(file, "rb") as f:
        equal(f.read() == good, True, "the same command saved other bytes")


@test
def two_writers_of_a_session():
    file = path("shared")
    with open(file + ".lock", "w", encoding="utf8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        one_line(greedy("-n", "1", "--quiet", "--session", file, rc=4)[1], "locked")
    equal(os.path.exists(file), False)


def start(*args, stdout=subprocess.PIPE):
    return subprocess.Popen([PROGRAM, "run", "-m", MODEL, "--greedy", *args], stdin=subprocess.DEVNULL, stdout=stdout,
                            stderr=subprocess.PIPE, env=environment())


@test
def signals_keep_text_and_session():
    for sig, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        file = path(f"signal{status}")
        p = start("-p", QUESTION, "-n", "4000", "--ignore-eos", "--session", file)
        began = os.read(p.stdout.fileno(), 1)
        p.send_signal(sig)
        out, err = p.communicate(timeout=30)
        equal(p.returncode, status, err.decode())
        equal(len(began + out) > 1, True)
        _, err = greedy("-n", "1", "--session", file)
        contains(err, "tokens restored")


@test
def signal_during_prefill():
    file, doc = path("prefill"), write("long", "All work and no play makes a dull day. " * 700)
    for seconds in (0.5, 1, 2, 4, 8, 16):  # until it comes in prefill, not while the model is loaded
        p = start("-f", doc, "-n", "1", "-ub", "64", "--session", file, "--device", "none")
        time.sleep(seconds)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        equal((p.returncode, out), (130, b""), err.decode())
        if os.path.exists(file):
            break
    equal(os.path.exists(file), True)


@test
def progress_where_it_takes_long():
    p = start("-f", write("slow", "All work and no play makes a dull day. " * 700), "-n", "1", "-ub", "64", "--device", "none")
    time.sleep(0.5)
    p.send_signal(signal.SIGSTOP)
    time.sleep(5.2)  # a line comes after 5 seconds
    p.send_signal(signal.SIGCONT)
    line = p.stderr.readline().decode()
    p.send_signal(signal.SIGINT)
    p.communicate(timeout=60)
    contains(line, " %")
    equal(settled(line), "", line)


@test
def signal_while_the_text_is_read():
    p = subprocess.Popen([PROGRAM, "run", "-m", MODEL, "-f", "-", "--greedy"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, env=environment())
    time.sleep(1.0)
    p.send_signal(signal.SIGINT)
    p.wait(timeout=60)  # standard input is still open
    equal((p.returncode, p.stderr.read(), p.stdout.read()), (130, b"", b""))
    p.stdin.close()


@test
def standard_output_that_fails():
    with open("/dev/full", "wb") as full:
        p = start("-p", QUESTION, "-n", "8", "--quiet", "--session", path("full"), stdout=full)
        _, err = p.communicate(timeout=60)
    equal(p.returncode, 4)
    one_line(err.decode(), "standard output: No space left on device")
    equal(os.path.exists(path("full")), True)
    p = start("-p", QUESTION, "-n", "500", "--ignore-eos", "--quiet", "--session", path("closed"))
    p.stdout.read(1)
    p.stdout.close()
    err = p.stderr.read()
    equal(p.wait(timeout=60), 4)
    one_line(err.decode(), "standard output: Broken pipe")
    equal(os.path.exists(path("closed")), True)
    for command in (["run", "-p", "x", "-n", "2", "--greedy"], ["inspect"], ["bench", "-p", "8", "-n", "0", "-r", "1"]):
        p = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", PROGRAM, command[0], "-m", MODEL, *command[1:]],
                           stderr=subprocess.PIPE, env=environment(), timeout=60, check=False)
        equal(p.returncode, 4, p.stderr.decode())
        p = subprocess.run(["sh", "-c", 'exec "$@" >/dev/full', "sh", PROGRAM, command[0], "-m", MODEL, *command[1:]],
                           stderr=subprocess.PIPE, env=environment(), timeout=60, check=False)
        equal(p.returncode, 4, p.stderr.decode())


@test
def files_that_may_not_grow():
    session = path("limited")
    one_line(greedy("-n", "1", "--quiet", "--session", session, rc=4, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)))[1],
             "limited", "File too large")
    equal([name for name in os.listdir(os.path.dirname(session)) if name.startswith("limited") and not name.endswith(".lock")], [])


@test
def little_address_space():
    seen = set()
    for mib in (96, 128, 160, 256):  # OpenBLAS has a thread of its own then, which looks for memory for ever
        limit = (mib << 20, mib << 20)
        p = subprocess.run([PROGRAM, "run", "-m", MODEL, "-p", "x", "-n", "1", "--quiet"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30,
                           env=environment({"OPENBLAS_NUM_THREADS": "2"}), check=False,
                           preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))  # pylint: disable=cell-var-from-loop
        seen.add(p.returncode)
        if p.returncode == 5:
            one_line(p.stderr.decode())
    equal(5 in seen and 0 not in seen, True, str(seen))


@test
def wrong_inputs_are_one_line():
    for args, rc, part in ((["-f", "/absent"], 4, "-f /absent: No such file"), (["-sysf", "/absent", "-p", "x"], 4, "-sysf /absent"),
                           (["-f", os.devnull], 3, "empty"), (["-p", "x", "--chat-template-kwargs", "{"], 2, "not JSON"),
                           (["-p", "x", "-c", "30"], 2, "the context 30")):
        one_line(answer(*args, rc=rc)[1], part)  # no seed was drawn for it


@test
def what_has_nothing_to_act_on_is_said():
    one_line(answer("-p", "x", "--greedy", "-n", "1", "--no-show-timings", "--route-keep", ".1")[1], "--route-keep 0.1", "drawn at random")
    for given, want in (([], (None, 0.01)), (["--route-keep", "0"], (0, 0)), (["--route-keep", ".1", "--route-audit", ".5"], (0.1, 0.5))):
        route = stats_of("run", "-m", MODEL, "--greedy", "-p", "x", "-n", "1", *given)["route"]
        equal((route["keep"], route["audit"]), want)
    for args, said in ((["--route-tau", ".5"], "--route-tau is for the mode paper"), (["--route", "dense", "--route-keep", ".1"], "--route-keep is for the mode mass"),
                       (["--route", "paper", "--route-tau", ".5"], ""), (["--route-rank", "8", "--route-look", "off"], "")):
        err = answer("-p", "x", "--greedy", "-n", "1", "--no-show-timings", *args)[1]
        one_line(err, said) if said else equal(err, "")
    if "(none)" in run("run", "--list-devices")[0]:
        one_line(answer("-p", "x", "--greedy", "-n", "1", "--no-show-timings", "-ngl", "99")[1], "-ngl: there is no GPU")
        for args in (["-ngl", "0"], ["-ngl", "auto"], ["-ngl", "99", "--device", "none"]):
            equal(answer("-p", "x", "--greedy", "-n", "1", "--no-show-timings", *args)[1], "")


@test
def cut_model_file():
    with open(MODEL, "rb") as f:
        head = f.read(1 << 21)
    for n in (3, 20, 4000, len(head)):
        one_line(run("run", "-m", write("cut.gguf", head[:n]), "-p", "x", "--quiet", rc=3)[1], "cut.gguf")


@test
def model_file_cut_during_an_answer():
    file, model = path("rescued"), path("shrinks.gguf")
    shutil.copy(MODEL, model)
    p = subprocess.Popen([PROGRAM, "run", "-m", model, "-lm", "mmap", "--greedy", "--quiet", "-p", QUESTION, "-n", "4000", "--ignore-eos",
                          "--session", file], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    began = os.read(p.stdout.fileno(), 1)
    os.truncate(model, 1 << 20)
    out, err = p.communicate(timeout=60)
    equal(p.returncode, 4)
    one_line(err.decode(), "shrinks.gguf", "became shorter")
    # what was answered until then is in the session
    os.unlink(model)
    shutil.copy(MODEL, model)
    again = stats_of("run", "-m", model, "--greedy", "-p", QUESTION, "-n", "1", "--session", file)["answers"][0]
    equal((again["prefilled"] <= 1, len(began + out) > 0), (True, True))


@test
def control_tokens_and_timings():
    contains(answer("--greedy", "-p", "What is 1+1?", "-n", "200", "--special")[0], "<|im_end|>")
    equal("prefill" in greedy("-n", "2", "--no-show-timings")[1], False)


main(needs_model=True)
