#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Thinking in run and chat, and templates from files. The model is the default one with two of its tokens renamed to
<think> and </think> and a template that opens the block: it says what it likes in there, and the budget ends it."""
import json
import os
import pty
import select
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import MODEL, PROGRAM, contains, environment, equal, main, one_line, path, run, test, write
from gguf import rewrite

SENTENCE = "Considering the limited time by the user, I have to give the solution based on the thinking directly now."
BODY = """{%- for m in messages -%}
{{- '<|im_start|>' ~ m.role ~ '\\n' ~ m.content.split('</think>')[-1] ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}SWITCH{%- endif -%}
"""
CHOICE = BODY.replace("SWITCH", "{{ '<think>\\n' if enable_thinking is not defined or enable_thinking else '<think>\\n\\n</think>\\n\\n' }}")
ALWAYS = BODY.replace("SWITCH", "{{ '<think>\\n' }}")
OPEN, CLOSE = 5, 6  # the ids of the tokens renamed
THINKER = path("thinker.gguf")


def thinker():
    if not os.path.exists(THINKER):
        rewrite(MODEL, THINKER, {b"<file_sep>": b"<think>", b"<filename>": b"</think>"}, CHOICE.encode())
    return THINKER


def answer(*args, **kw):
    """One answer: its stdout, stderr and entry of --stats."""
    out, err = run("run", "-m", thinker(), "--greedy", "-p", "What is 2+2?", "--stats", path("s.json"), *args, **kw)
    with open(path("s.json"), encoding="utf8") as f:
        return out, err, json.load(f)["answers"][0]


def chat(lines, *args):
    _, err = run("chat", "-m", thinker(), "--greedy", "--stats", path("c.json"), "--verbose-prompt", *args,
                 stdin="".join(line + "\n" for line in lines).encode())
    with open(path("c.json"), encoding="utf8") as f:
        answers = json.load(f)["answers"]
    ids = []
    for line in err.splitlines():
        if "prompt tokens 0..:" in line:
            ids.append([])
        if "prompt tokens" in line:
            ids[-1] += [int(w) for w in line.split("..:")[1].split()]
    return answers, ids, err


@test
def a_budget_ends_thinking():
    out, err, a = answer("--think-budget", "8", "-n", "60", "--ignore-eos")
    t = a["thinking"]
    equal((t["tokens"], t["ended_by_budget"], t["open"]), (8, True, False))
    equal(t["tokens"] + t["forced_tokens"] + t["answer_tokens"], a["generated"])
    equal(t["reasoning_content"].endswith("\n\n" + SENTENCE), True, t["reasoning_content"])
    equal(t["answer_tokens"] > 0 and len(out.strip()) > 0, True)
    equal(SENTENCE in out or "think>" in out, False, out)
    contains(err, f"thinking 8 tok, ended by the budget, answer {t['answer_tokens']} tok")
    # a longer one thinks the same and then goes on
    longer = answer("--think-budget", "12", "-n", "60", "--ignore-eos")[2]["thinking"]
    head = t["reasoning_content"][:-len(SENTENCE)].rstrip("\n")
    equal(longer["reasoning_content"].startswith(head), True)
    equal(longer["tokens"], 12)
    # llama.cpp's names
    equal(answer("--reasoning-budget", "8", "-n", "60", "--ignore-eos")[2]["thinking"], t)


@test
def budgets_at_the_edges():
    t = answer("--think-budget", "0", "-n", "20")[2]["thinking"]
    equal((t["tokens"], t["ended_by_budget"], t["reasoning_content"]), (0, True, ""))
    equal(t["answer_tokens"] > 0, True)
    t = answer("--think", "off", "-n", "20")[2]["thinking"]
    equal((t["tokens"], t["forced_tokens"], t["ended_by_budget"]), (0, 0, False))
    t = answer("--think-budget", "1", "-n", "40")[2]["thinking"]
    equal((t["tokens"], t["ended_by_budget"]), (1, True))
    # larger than the context: the context ends the answer
    _, err, a = answer("--think-budget", "1000000", "-c", "48", "--ignore-eos")
    equal((a["stop"], a["thinking"]["ended_by_budget"], a["thinking"]["open"]), ("context", False, True))
    contains(err, "not ended")
    # the end does not fit: what there is of it is fed, then the context is full
    _, _, a = answer("--think-budget", "10", "-c", "48", "--ignore-eos")
    equal((a["stop"], a["thinking"]["tokens"], a["thinking"]["open"]), ("context", 10, True))
    # without a budget nothing is forced, and -n counts thinking too
    _, _, a = answer("-n", "12", "--ignore-eos")
    equal((a["stop"], a["thinking"]["forced_tokens"], a["thinking"]["tokens"]), ("limit", 0, 12))


@test
def thinking_is_shown_where_asked():
    args = ("--think-budget", "6", "-n", "50")
    plain = answer(*args)[0]
    out, _, a = answer(*args, "--show-thinking", "on")
    equal(out, f"<think>\n{a['thinking']['reasoning_content']}\n</think>\n\n{plain}")
    dim = answer(*args, "--show-thinking", "on", "--color", "on")[0]
    equal(dim, f"\x1b[2m{a['thinking']['reasoning_content']}\x1b[0m\n\n{plain}")
    left = answer(*args, "--reasoning-format", "none")[0]
    contains(left, SENTENCE + "\n</think>\n\n")
    other = answer(*args, "--think-budget-message", "Stop.")[2]["thinking"]["reasoning_content"]
    equal(other.endswith("\n\nStop."), True, other)


@test
def the_prompt_says_the_mode():
    def prompt(*args):
        _, err, _ = answer("-n", "2", "--verbose-prompt", *args)
        return [int(w) for line in err.splitlines() if "prompt tokens" in line for w in line.split("..:")[1].split()]
    for args, marks in ((["--think", "on"], [OPEN]), (["--think", "auto"], [OPEN]), ([], [OPEN]), (["--think", "off"], [OPEN, CLOSE]),
                        (["-rea", "off"], [OPEN, CLOSE]), (["--chat-template-kwargs", '{"enable_thinking": false}'], [OPEN, CLOSE])):
        equal([i for i in prompt(*args) if i in (OPEN, CLOSE)], marks, str(args))


@test
def refusals():
    one_line(run("run", "-m", MODEL, "-p", "x", "--think", "on", "--greedy", rc=2)[1], "--think on: the model does not think")
    run("run", "-m", MODEL, "-p", "x", "--think", "off", "--greedy", "-n", "2")
    _, err = run("run", "-m", MODEL, "-p", "x", "--think-budget", "5", "--greedy", "-n", "2")
    contains(err, "--think-budget has no effect")
    args = ("run", "-m", thinker(), "-p", "x", "--greedy", "--chat-template-file", write("always", ALWAYS))
    one_line(run(*args, "--think", "off", rc=2)[1], "--think off: the template cannot turn thinking off")
    contains(run(*args, "--think-budget", "2", "-n", "40")[1], "ended by the budget")


@test
def history_has_no_thinking():
    answers, ids, _ = chat(["My name is Ann.", "What is my name?"], "--think-budget", "6", "-n", "60", "--ignore-eos")
    equal([a["thinking"]["tokens"] for a in answers], [6, 6])
    equal([ids[1].count(i) for i in (OPEN, CLOSE)], [1, 0])  # the block to come, and no other
    equal(answers[1]["reused"] < answers[0]["prompt_tokens"] + 6, True)
    equal(answers[1]["reused"] >= answers[0]["prompt_tokens"] - 3, True)  # all up to the block
    equal(answers[1]["prompt_tokens"], len(ids[1]))


@test
def switches_in_chat():
    answers, ids, err = chat(["/no_think", "Say hi.", "/think", "Say hi again.", "/think in a message", "/quit"], "--think-budget", "4", "-n", "40")
    equal([[i for i in p if i in (OPEN, CLOSE)][-2:] for p in ids], [[OPEN, CLOSE], [OPEN], [OPEN]])
    contains(err, "thinking off")
    contains(err, "thinking on")
    equal([a["thinking"]["tokens"] for a in answers], [0, 4, 4])
    _, err = run("chat", "-m", MODEL, "--greedy", "-n", "4", stdin=b"/think\n")
    contains(err, "cannot be switched")


@test
def dimmed_on_a_terminal():
    pid, fd = pty.fork()
    if pid == 0:
        os.execve(PROGRAM, [PROGRAM, "run", "-m", thinker(), "--greedy", "-p", "What is 2+2?", "--think-budget", "4", "-n", "40"],
                  environment({"TERM": "xterm", "LC_ALL": "C.UTF-8"}))
    seen, end = b"", time.time() + 60
    while time.time() < end:
        if not select.select([fd], [], [], 1)[0]:
            continue
        try:
            data = os.read(fd, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    equal(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
    dim = seen.split(b"\x1b[2m")[1].split(b"\x1b[0m")
    contains(dim[0].decode(), SENTENCE)
    equal(SENTENCE.encode() in dim[1], False)


# ---- templates from the command line

@test
def templates_from_files_and_arguments():
    def prompt(*args):
        _, err = run("run", "-m", MODEL, "--greedy", "-p", "Hi", "-n", "1", "--verbose-prompt", *args)
        return [line for line in err.splitlines() if "prompt tokens" in line]
    program = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}{{ extra }}"
    want = prompt("--chat-template", "chatml")
    equal(prompt("--chat-template-file", write("t.jinja", program)), want)
    equal(prompt("--chat-template", program, "--jinja"), want)
    equal(prompt("--chat-template", program, "--chat-template-kwargs", '{"extra": "Sure"}') != want, True)
    # control tokens of a variable stay text
    marked = prompt("--chat-template", program, "--chat-template-kwargs", '{"extra": "<|im_end|>"}')[0]
    equal(marked.split().count("2"), want[0].split().count("2"))


@test
def bad_templates_are_one_line():
    def refused(status, part, *args):
        one_line(run("run", "-m", MODEL, "-p", "Hi", "--greedy", "-n", "1", *args, rc=status)[1], part)
    refused(3, "chat template, line 2: ", "--chat-template-file", write("a", "\n{% if %}"))
    refused(6, 'line 1: filter "nosuch" is not known', "--chat-template", "{{ x | nosuch }}")
    refused(6, "{% import %} is not supported", "--chat-template", "{% import 'x' as y %}")
    refused(6, "attribute __class__", "--chat-template", "{{ x.__class__ }}")
    refused(3, "range: more than 100000", "--chat-template", "{% for i in range(10 ** 9) %}{% endfor %}")
    refused(3, "the limit", "--chat-template", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")
    refused(2, "it refuses the conversation: no thanks", "--chat-template", "{{ raise_exception('no thanks') }}")
    refused(2, "not JSON at byte", "--chat-template-kwargs", "{x")
    refused(2, '"messages" cannot be set', "--chat-template-kwargs", '{"messages": []}')
    refused(2, "--chat-template: not together", "--chat-template", "chatml", "--chat-template-file", write("b", "x"))
    refused(4, "--chat-template-file", "--chat-template-file", path("nosuch"))


main(needs_model=True)
