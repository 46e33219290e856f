#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every row of docs/cli.md, help, and wrong usage. Needs no model: flags are read before the model is, so a right
command line ends with status 4 (the model file is missing), a wrong one with 2."""
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import contains, equal, main, one_line, path, run, test, write

TEXT = write("text.txt", "some text\n")
TAU = write("tau.json", '{"tau":[0.5,0,0,0],"scale":131072,"min_len":2048,"max_len":131072}')
BASE = {"run": ["-p", "x"], "chat": [], "bench": [], "perplexity": ["-f", TEXT], "calibrate": ["-f", TEXT], "inspect": []}
SAMPLES = {"N": "2", "N,..": "1,2", "MODE": "window", "MODE,..": "dense,window", "TYPE": "q8_0", "TYPE,..": "f16,q8_0",
           "TEXT": "x", "WHEN": "on", "on|off": "off", "E": "0.2", "E,..": "0.1,0.2", "D": "0.1", "D,..": "0,0.1", "T": "0.5", "T,..": "0.4,0.5",
           "R": "8", "R,..": "8,16", "P": "0.5", "X": "1.5", "SHARE": "0.5", "SHARE,..": "0.5", "NAME": "chatml", "P,N": "16,8",
           "FORMAT": "md", "JSON": "{}", "SECONDS": "1", "CHARS": "1", "0|1": "1", "4|8": "8", "TASK": "text", "VALUE": "1", "SCALING": "yarn", "DEVICE": "none",
           "HOW": "none", "FILL": "random"}
BY_FLAG = {"--samplers": "top_k;temperature", "-fa": "on,off", "-lm": "mmap", "--load-mode": "mmap",
           "--route-tau-file": TAU, "-ngl": "all"}


def sample(flag, value, command=""):
    if value == "FORMAT" and command == "inspect":
        return "json"
    if value == "FILE" and flag not in BY_FLAG:
        return path("log") if flag == "--log-file" else TEXT
    if value == "LIST" or flag in ("--route-tau-file", "-lm", "--load-mode"):
        return BY_FLAG.get(flag, "on")
    return BY_FLAG.get(flag) if flag == "-ngl" else SAMPLES[value]


def sections():
    """{heading: [(flags, value, commands)]} of the tables of docs/cli.md."""
    out, rows = {}, None
    with open("docs/cli.md", encoding="utf8") as f:
        for line in f:
            if line.startswith("## "):
                rows = out.setdefault(line[3:].strip(), [])
            elif line.startswith("| `-") and rows is not None:
                cells = [c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]]
                rows.append((re.findall(r"`([^`]+)`", cells[0]), cells[1].strip("`"), cells[2].split()))
    return out


DOC = sections()
WORKS, OURS = DOC["Flags of llama.cpp that work"], DOC["Flags of our own"]
OP = DOC["Flags of `bench --op`"]  # test_op.py
IDLE, REFUSED = DOC["Accepted without effect, said once"], DOC["Refused by name"]


def arguments(command, flag, value):
    base = [] if flag in BASE[command][:1] else BASE[command]
    if command == "calibrate" and flag in ("--skip", "--lengths", "-n", "--samples"):
        base = [*base, "--paper"]
    return [command, "-m", "/absent", *base, flag, *([sample(flag, value, command)] if value else [])]


def rows(table):
    return [(c, f, value) for flags, value, commands in table for c in commands for f in flags]


def first_names(table):
    return [(c, flags[0], value) for flags, value, commands in table for c in commands]


@test
def tables_are_not_empty():
    equal([len(rows(t)) > 20 for t in (WORKS, OURS, IDLE, REFUSED)], [True] * 4)


@test
def flags_that_work():
    for command, flag, value in rows(WORKS) + rows(OURS):
        if flag in ("-m", "--model", "--list-devices", "--make-random"):
            continue
        _, err = run(*arguments(command, flag, value), rc=4)
        equal("not supported" in err or "has no effect: " in err, False, f"{command} {flag}: {err}")
        contains(err, "/absent" if flag != "-lv" else "")


@test
def devices():
    out, err = run("run", "--list-devices")
    equal((out.splitlines()[0], err), ("Available devices:", ""))
    model = path("tiny.gguf")
    run("inspect", "--make-random", "tiny-llama3", "-o", model)
    for command in ("run", "bench", "perplexity", "calibrate"):
        refused = lambda rc, *args: run(command, "-m", model, *BASE[command], *args, rc=rc)[1]
        for name in ("tpu", "cuda-1", "CUDA1x", "cudaa"):
            one_line(refused(2, "--device", name), f'device "{name}": want none, cuda, or a name')
        for n in ("-1", "12abc", "9223372036854775808", "some"):
            one_line(refused(2, "-ngl", n), f'-ngl "{n}": must be all, auto or 0 to 2147483647')
        for flag in ("--device", "-ngl"):
            one_line(refused(2, flag, ""), f"{flag}: empty value")
        if "(none)" in out:  # this build, or this machine
            for name in ("cuda", "CUDA0", "CUDA7"):
                one_line(refused(6, "--device", name), "device cuda: ")
        else:
            one_line(refused(2, "--device", "CUDA99"), "device CUDA99: the driver lists CUDA0 to")


@test
def flags_without_effect():
    for command, flag, value in rows(IDLE):
        _, err = run(*arguments(command, flag, value), rc=4)
        equal(err.count(f"{flag} has no effect: "), 1, f"{command} {flag}: {err}")
        one_line(run(*arguments(command, flag, value), "--quiet", rc=4)[1], "/absent")
        one_line(run(*arguments(command, flag, value), "--no-such", rc=2)[1], "--no-such")  # what is wrong, and nothing else


@test
def flags_refused_by_name():
    for command, flag, _ in rows(REFUSED):
        _, err = run(command, "-m", "/absent", flag, "1", rc=2)
        one_line(err, f"{flag} is not supported: ", f"see sinkrouter {command} --help")


@test
def help_fits_and_is_in_the_table():
    documented = {(c, f) for t in (WORKS, OURS, OP) for c, f, _ in rows(t)}
    shown = set()
    for command in BASE:
        out, err = run(command, "--help")
        equal(err, "")
        equal([line for line in out.splitlines() if len(line) > 80], [], command)
        for line in out.splitlines():
            found = re.match(r"^  (-[^ ].*)$", line)
            if found:
                shown |= {(command, flag) for flag in re.findall(r"(?:^|, )(-[-a-zA-Z]+)", found.group(1))}
    shown -= {(c, f) for c in BASE for f in ("-h", "--help", "--usage")}
    equal(sorted(shown - documented), [], "not in docs/cli.md")
    equal(sorted(documented - shown), [], "in docs/cli.md, not in help")
    out, _ = run("--help")
    equal([line for line in out.splitlines() if len(line) > 80], [])
    for command in BASE:
        contains(out, command)


@test
def version():
    equal(bool(re.fullmatch(r"sinkrouter \d+\.\d+\.\d+\n", run("--version")[0])), True)
    equal(run("run", "--version"), run("--version"))


@test
def wrong_values_name_the_flag():
    negative = {"-n", "--predict", "--n-predict", "-s", "--seed", "--repeat-last-n", "--presence-penalty",
                "--frequency-penalty", "--route-tau", "--yarn-ext-factor", "--think-budget"}
    numeric = {"N", "N,..", "E", "E,..", "T", "T,..", "R", "R,..", "P", "X", "SHARE", "SECONDS", "CHARS", "0|1", "4|8", "P,N"}
    n = 0
    for command, flag, value in first_names(WORKS + OURS):
        if value not in numeric:
            continue
        wrong = ["12abc", "", "9223372036854775808", "nan", "1e999", "0x10", " 1", "--"]
        wrong += [] if flag in negative else ["-1"]
        wrong += ["1,", ",1", "3-1", "1-5+0", "1-5*1"] if value == "N,.." else ["1,2"] if value in ("N", "R", "E") else []
        for w in wrong:
            _, err = run(command, "-m", "/absent", flag, w, rc=2)
            one_line(err, flag, f"see sinkrouter {command} --help")
            n += 1
    equal(n > 300, True)


@test
def missing_and_empty_values():
    for command, flag, value in first_names(WORKS + OURS):
        if not value or value == "WHEN":
            continue
        one_line(run(command, flag, rc=2)[1], flag, "missing value")
        one_line(run(command, flag, "", rc=2)[1], flag, "empty value")
        one_line(run(command, flag, "--quiet", rc=2)[1], flag, "missing value")


@test
def limits():
    for args, part in ((["-t", "0"], "-t"), (["-t", "1000000"], "-t"), (["-c", "1099511627776"], "-c"), (["-ub", "4097"], "-ub"),
                       (["-ctk", "q4_1"], "f32 f16 bf16 q8_0 q4_0"), (["--route", "quest"], "dense mass paper window"),
                       (["--route-bits", "5"], "4 or 8"), (["--route", "paper"], "--route-tau"),
                       (["--route-eps", "0"], "--route-eps"), (["--route-eps", "1"], "--route-eps"),
                       (["--route-tau", ".5", "--route-tau-file", TAU], "--route-tau")):
        one_line(run("run", "-m", "/absent", "-p", "x", *args, rc=2)[1], part)


@test
def unknown_flags_and_commands():
    one_line(run("run", "--tempp", "1", rc=2)[1], "--tempp", "did you mean --temp?")
    one_line(run("run", "--zzzzzz", rc=2)[1], "--zzzzzz: unknown flag")
    one_line(run("run", "--pg", rc=2)[1], "--pg")
    one_line(run("run", "--n-depth", "1", rc=2)[1], "not a flag of run (bench has it)")
    one_line(run("run", "word", rc=2)[1], '"word" is not a flag')
    one_line(run("bnech", rc=2)[1], "did you mean bench?")
    one_line(run(rc=2)[1], "--help")
    one_line(run("run", "--greedy=1", rc=2)[1], "--greedy takes no value")
    one_line(run("run", "a\nb\x1b[31m\x7f", rc=2)[1], "\\x0a", "\\x1b")


@test
def long_flags_with_equals():
    contains(run("run", "--model=/absent", "--prompt=x", "--temp=0.5", rc=4)[1], "/absent")


@test
def run_is_the_default():
    contains(run("-m", "/absent", "-p", "x", rc=4)[1], "/absent")


@test
def required_flags():
    one_line(run("run", "-p", "x", rc=2)[1], "-m: missing")
    one_line(run("run", "-m", "/absent", rc=2)[1], "-p: missing")
    one_line(run("run", "-m", "a", "-m", "b", "-p", "x", rc=2)[1], "-m: given 2 times")
    one_line(run("perplexity", "-m", "/absent", rc=2)[1], "-f: missing")
    one_line(run("bench", "-m", "/absent", "-p", "0", "-n", "0", rc=2)[1], "nothing to run")


@test
def model_paths():
    one_line(run("run", "-m", b"a\nb\xff\x01".decode("latin1").encode("latin1"), "-p", "x", rc=4)[1], "a\\x0ab\\xff\\x01")
    one_line(run("run", "-m", "a" * 5000, "-p", "x", rc=4)[1], "aaa...")
    one_line(run("run", "-m", "/", "-p", "x", rc=None)[1], "/")
    one_line(run("run", "-m", write("empty.gguf", ""), "-p", "x", rc=3)[1], "empty.gguf")
    one_line(run("run", "-m", TEXT, "-p", "x", rc=3)[1], "text.txt")


@test
def tau_files():
    for name, text, rc in (("bad1", "{", 3), ("bad2", '{"tau":[1,2,3],"scale":1,"min_len":1,"max_len":2}', 3),
                           ("bad3", '{"tau":[1,2,3,"4"],"scale":1,"min_len":1,"max_len":2}', 3),
                           ("bad4", '{"tau":[1,2,3,4],"scale":0,"min_len":1,"max_len":2}', 3),
                           ("bad5", '{"tau":[1,2,3,4],"scale":1,"min_len":3,"max_len":2}', 3)):
        _, err = run("run", "-m", "/absent", "-p", "x", "--route", "paper", "--route-tau-file", write(name, text), rc=rc)
        one_line(err, "--route-tau-file", name)
    one_line(run("run", "-m", "/absent", "-p", "x", "--route-tau-file", "/absent.json", rc=4)[1], "--route-tau-file /absent.json: No such file")
    for odd in ("/", "/dev/zero", path("tau.pipe")):
        if odd == path("tau.pipe"):
            os.mkfifo(odd)
        one_line(run("run", "-m", "/absent", "-p", "x", "--route-tau-file", odd, rc=4)[1], f"{odd}: not a regular file")


@test
def log_file():
    run("run", "-m", "/absent", "-p", "x", "--log-file", path("said"), rc=4)
    with open(path("said"), encoding="utf8") as f:
        contains(f.read(), "/absent: cannot open")
    one_line(run("run", "-m", "/absent", "-p", "x", "--log-file", "/absent/log", rc=4)[1], "--log-file /absent/log")
    model, full = path("log.gguf"), ("-p", "x", "-no-cnv", "-n", "2", "--greedy", "--quiet", "--log-file", "/dev/full")
    run("inspect", "--make-random", "tiny-smollm", "--type", "q8_0", "-o", model)
    out, err = run("run", "-m", model, *full, rc=4)  # the answer is there, the lines about it are not
    one_line(err, "--log-file /dev/full: No space left on device")
    equal(out, run("run", "-m", model, *full[:-2])[0])
    one_line(run("run", "-m", "/absent", *full, rc=4)[1], "/absent: cannot open")  # the error itself comes first


main()
