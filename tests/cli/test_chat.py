#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""chat, driven by a pipe and on a pseudo-terminal."""
import fcntl
import json
import os
import pty
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import MODEL, PROGRAM, contains, environment, equal, main, one_line, path, run, test, write


def chat(lines, *args, **kw):
    return run("chat", "-m", MODEL, "--greedy", *args, stdin="".join(line + "\n" for line in lines).encode(), **kw)


def stats(lines, *args, name="chat.json"):
    chat(lines, "--stats", path(name), *args)
    with open(path(name), encoding="utf8") as f:
        return json.load(f)


@test
def only_new_tokens_are_prefilled():
    turns = ["My name is Ann.", "What is my name?", "Thank you."]
    s = stats(turns, "-n", "60")
    a = s["answers"]
    equal(len(a), 3)
    equal(a[0]["reused"], 0)
    for before, now in zip(a, a[1:]):
        # all that the session held is kept: the last prompt and its answer
        equal(now["reused"], before["prompt_tokens"] + before["generated"])
        equal(now["prefilled"], now["prompt_tokens"] - now["reused"])
        equal(now["prefilled"] < 30, True, str(now))
    # the first turn is what run makes of it
    out, _ = run("run", "-m", MODEL, "--greedy", "-p", turns[0], "-n", "60")
    equal(chat(turns[:1], "-n", "60")[0].strip(), out.strip())


@test
def turns_are_those_of_the_template():
    # The tokens of a second turn are the session's tokens, the end of the answer and the new message.
    _, err = chat(["Say hi.", "Again."], "-n", "60", "--verbose-prompt")
    ids = [[]]
    for line in err.splitlines():
        if "prompt tokens 0..:" in line and ids[-1]:
            ids.append([])
        if "prompt tokens" in line:
            ids[-1] += [int(w) for w in line.split("..:")[1].split()]
    equal(len(ids), 2)
    equal(ids[1][:len(ids[0])], ids[0])
    equal(ids[1].count(1), 5)  # <|im_start|>: system, user, assistant, user, assistant
    equal(ids[1].count(2), 4)  # <|im_end|>: one less, the answer to come is open


@test
def an_answer_cut_by_the_limit_goes_on_the_same_way():
    a = stats(["Count from one to fifty.", "Go on."], "-n", "9")["answers"]
    equal((a[0]["stop"], a[0]["generated"]), ("limit", 9))
    equal(a[1]["reused"], a[0]["prompt_tokens"] + 9)


@test
def clear_frees():
    _, err = chat(["Hello.", "/stats", "/clear", "/stats", "Hello.", "/stats"], "-n", "8")
    lines = [line for line in err.splitlines() if "of context used" in line]
    contains(lines[1], " 0 of 8192 tokens of context used, K/V 0 B, sketch 0 B")
    equal(" 0 of 8192" in lines[0], False)
    equal(lines[2].split(", ", 1)[1], lines[0].split(", ", 1)[1])
    s = stats(["Hello.", "/clear", "Hello."], "-n", "8")
    equal([a["reused"] for a in s["answers"]], [0, 0])


@test
def commands():
    _, err = chat(["/help", "/route", "/route mass 0.2", "/route window", "/route nosuch", "/route mass 7", "/route paper",
                   "/route paper 0.5", "/route window 5", "/route dense", "/nosuch", "", "   ", "/quit", "never asked"], "-n", "4")
    for part in ("/clear", "route mass, eps 0.1", "route mass, eps 0.2", "route window", "nosuch", "/route paper TAU: ",
                 "route paper, tau 0.5, dense below", "/route window takes no number", "route dense\n", "/help lists them"):
        contains(err, part)
    equal("decode" in err, False)


@test
def messages_are_utf8():
    out, err = run("chat", "-m", MODEL, "--greedy", "-n", "6", "--no-show-timings", stdin=b"a\xffb\n/stats\n")
    contains(err, "byte 1 of the message (0xff) is not UTF-8")
    contains(err, "0 answers")
    equal(out, "")


@test
def end_of_input_and_single_turn():
    equal(chat([])[0], "")
    out, err = chat(["One.", "Two."], "-n", "6", "-st")
    equal(err.count("decode"), 1)
    for args in (["-p", "One."], []):  # an answer that there is not is no success
        _, err = run("chat", "-m", MODEL, "--quiet", "--greedy", "-c", "10", "-st", *args, stdin=b"One.\n", rc=2)
        one_line(err, "the context 10")
    out, err = run("chat", "-m", MODEL, "--greedy", "-n", "6", "-p", "One.", "-st")
    equal(err.count("decode"), 1)
    first = stats(["Two."], "-n", "6", "-p", "One.")["answers"]
    equal(len(first), 2)


@test
def system_message_document_and_long_lines():
    s = stats(["Hi.\\", "And bye."], "-n", "4", "-sys", "You are terse.", "-f", write("doc", "The cat is red. " * 20))
    equal(len(s["answers"]), 1)
    equal(s["answers"][0]["prompt_tokens"] > 100, True)


@test
def a_message_that_does_not_fit_is_said():
    _, err = chat(["word " * 300, "Hi."], "-n", "4", "-c", "128")
    contains(err, "/clear begins anew")
    equal(err.count("decode"), 1)


@test
def sessions_go_on():
    file = path("chat.session")
    a = stats(["My name is Ann."], "-n", "40", "--session", file)["answers"][0]
    b = stats(["What is my name?"], "-n", "40", "--session", file)["answers"][0]
    whole = stats(["My name is Ann.", "What is my name?"], "-n", "40")["answers"][1]
    equal(b["reused"], a["prompt_tokens"] + a["generated"])
    equal((b["prompt_tokens"], b["generated"]), (whole["prompt_tokens"], whole["generated"]))


@test
def a_turn_without_memory_leaves_the_turns_before_it():
    file, report = path("rescued"), path("rescued.json")
    p = subprocess.Popen([PROGRAM, "chat", "-m", MODEL, "--greedy", "-n", "12", "--session", file, "--stats", report],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    p.stdin.write(b"My name is Ann.\n")
    p.stdin.flush()
    err = b""
    while b"decode" not in err:
        err += os.read(p.stderr.fileno(), 4096)
    with open(f"/proc/{p.pid}/statm", encoding="ascii") as f:
        most = int(f.read().split()[0]) * resource.getpagesize() + (8 << 20)
    resource.prlimit(p.pid, resource.RLIMIT_AS, (most, most))
    _, err = p.communicate(b"word " * 1500 + b"\n", timeout=60)
    equal(p.returncode, 5, err.decode())
    contains(err.decode(), "KV cache: ")
    with open(report, encoding="utf8") as f:
        first = json.load(f)["answers"]
    equal(len(first), 1)
    again = stats(["What is my name?"], "-n", "4", "--session", file)["answers"][0]
    equal(again["reused"], first[0]["prompt_tokens"] + first[0]["generated"])


@test
def signals_on_a_pipe():
    for sig, status in ((signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        p = subprocess.Popen([PROGRAM, "chat", "-m", MODEL, "--greedy", "--ignore-eos", "-n", "4000", "--session", path("term")],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
        p.stdin.write(b"Hello.\n")
        p.stdin.flush()
        os.read(p.stdout.fileno(), 1)
        p.send_signal(sig)
        p.communicate(timeout=30)
        equal(p.returncode, status)
        equal(os.path.exists(path("term")), True)
        os.unlink(path("term"))


class Terminal:
    """The program on a pseudo-terminal."""

    def __init__(self, *args, env=None):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, "chat", "-m", MODEL, "--greedy", *args], 
                      environment({"TERM": "xterm", "LC_ALL": "C.UTF-8", **(env or {})}))
        self.seen = b""

    def wait_for(self, text, seconds=30):
        """What came before it."""
        end = time.time() + seconds
        while text not in self.seen:
            if time.time() > end or not self.more(end - time.time()):
                raise AssertionError(f"{text!r} did not come; the terminal has {self.seen[-600:]!r}")
        before, self.seen = self.seen.split(text, 1)
        return before

    def more(self, seconds):
        if not select.select([self.fd], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self.fd, 4096)
        except OSError:
            return False
        self.seen += data
        return bool(data)

    def type(self, data):
        os.write(self.fd, data)

    def status(self, seconds=30):
        end = time.time() + seconds
        while time.time() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            self.more(0.1)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("the program did not end")


@test
def on_a_terminal():
    t = Terminal("-n", "8")
    t.wait_for(b"> ")
    t.type("Grüße\r".encode())
    t.wait_for(b"decode 8 tok")
    t.wait_for(b"> ")
    t.type(b"/quiz\x7ft\r")  # edited before it is sent
    equal(t.status(), 0)


@test
def lines_break_between_words():
    t = Terminal("-n", "2", "--color", "off")
    fcntl.ioctl(t.fd, termios.TIOCSWINSZ, struct.pack("4H", 24, 60, 0, 0))
    t.wait_for(b"> ")
    t.type(b"Hello\r")
    t.wait_for(b"sinkrouter: prefill")
    summary = t.wait_for(b"> ").decode()  # up to the prompt: what is typed sooner is echoed into it
    t.type(b"/quit\r")
    equal(t.status(), 0)
    lines = ("sinkrouter: prefill" + summary).replace("\r", "").splitlines()
    equal(max(map(len, lines)) <= 60 and len(lines) > 1, True, str(lines))
    equal([line[:2] for line in lines[1:] if line], ["  "] * len([line for line in lines[1:] if line]), str(lines))
    contains(" ".join(line.strip() for line in lines), "100.0 % of dense | near-only 0 % | audits 0, broken 0 of 0")


@test
def interrupting_an_answer_and_the_prompt():
    t = Terminal("--ignore-eos")
    t.wait_for(b"> ")
    t.type(b"Tell me a very long story.\r")
    t.wait_for(b"\n")
    time.sleep(2)
    t.type(b"\x03")
    t.wait_for(b"decode")
    t.wait_for(b"> ")
    t.type(b"/route\r")
    t.wait_for(b"route mass")
    t.wait_for(b"> ")
    t.type(b"half a line\x03")
    t.wait_for(b"Ctrl-C again")
    t.type(b"\x03")
    equal(t.status(), 0)


@test
def end_of_file_on_a_terminal():
    t = Terminal()
    t.wait_for(b"> ")
    t.type(b"\x04")
    equal(t.status(), 0)


@test
def colors():
    for args, env, is_green in (([], {}, True), (["--color", "off"], {}, False), ([], {"NO_COLOR": "1"}, False),
                                (["--color", "on"], {"NO_COLOR": "1"}, True)):
        t = Terminal(*args, env=env)
        t.wait_for(b"lists commands")
        t.wait_for(b"\x1b[32m" if is_green else b"> ")
        equal(b"\x1b[32m" in t.seen, False)
        t.type(b"\x04")
        t.status()


main(needs_model=True)
