# SPDX-License-Identifier: Apache-2.0
"""What the tests of the program share: running it, and TAP. The plan comes last, so a script that dies has none."""
import os
import re
import subprocess
import sys
import tempfile
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.chdir(ROOT)
PROGRAM = os.path.abspath(os.path.join(os.environ.get("BUILD", "build"), "sinkrouter"))
MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
WORK = tempfile.TemporaryDirectory(prefix="sr-cli-")
tests = []


def test(fn):
    """Registers a function without arguments; it raises to fail."""
    tests.append(fn)
    return fn


class Skip(Exception):
    pass


def path(name):
    return os.path.join(WORK.name, name)


def write(name, data):
    with open(path(name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())
    return path(name)


def environment(extra=None):
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "SR_ISA")}
    env.update(extra or {})
    return env


def settled(err):
    """stderr without the lines of progress, which a slow or busy machine makes it print."""
    return re.sub(r"(?m)^sinkrouter: [a-z]+ \d+ %\n", "", err)


def run(*args, rc=0, stdin=b"", timeout=120, env=None, text=True, preexec_fn=None):
    """Runs the program; wants this exit status (None: any). Returns (stdout, stderr without progress)."""
    p = subprocess.run([PROGRAM, *args], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout,
                       env=environment(env), preexec_fn=preexec_fn)
    out, err = p.stdout, p.stderr
    if text:
        out, err = out.decode(), settled(err.decode())
    if rc is not None and p.returncode != rc:
        raise AssertionError(f"{args}: exit status {p.returncode}, want {rc}\nstdout: {out[-500:]}\nstderr: {err[-500:]}")
    return out, err


def equal(got, want, what=""):
    if got != want:
        raise AssertionError(f"{what}\n got: {got!r}\nwant: {want!r}")


def contains(text, part):
    if part not in text:
        raise AssertionError(f"no {part!r} in:\n{text[-800:]}")


def one_line(err, *parts):
    """stderr is a single line of printable text with these parts."""
    err = settled(err)
    equal(err.count("\n"), 1, "lines on stderr: " + err)
    equal(all(c.isprintable() for c in err[:-1]), True, repr(err))
    for p in parts:
        contains(err, p)


def main(needs_model=False):
    bad = n = 0
    if not os.path.exists(PROGRAM):
        print(f"# {PROGRAM} is not built")
        sys.exit(1)
    missing = needs_model and not os.path.exists(MODEL)
    wanted = sys.argv[1:]
    for fn in tests:
        if wanted and fn.__name__ not in wanted:
            continue
        n += 1
        try:
            if missing:
                raise Skip(f"{MODEL} is absent")
            fn()
            print(f"ok {n} - {fn.__name__}", flush=True)
        except Skip as e:
            print(f"ok {n} # SKIP {fn.__name__}: {e}", flush=True)
        except Exception as e:  # a test may fail in any way
            bad = 1
            print(f"not ok {n} - {fn.__name__}", flush=True)
            said = str(e) if isinstance(e, AssertionError) else traceback.format_exc()
            print("\n".join("# " + line for line in said.splitlines()), flush=True)
    print(f"1..{n}")
    WORK.cleanup()
    sys.exit(bad)
