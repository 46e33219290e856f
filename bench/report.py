# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share: running a program, naming the machine, tables, and putting a table into a
document between `<!-- NAME -->` and `<!-- end of NAME -->`."""
import json
import os
import platform
import statistics
import subprocess
import sys

MODEL = "models/SmolLM2-135M-Instruct.Q4_1.gguf"


def stop(text):
    sys.exit(f"{os.path.basename(sys.argv[0])}: {text}")


def default_program():
    return os.path.join(os.environ.get("BUILD", "build"), "sinkrouter")


def run_json(command, limit_s=3600):
    """The JSON objects that a program printed, one a line; RuntimeError with its last words if it failed."""
    name = os.path.basename(command[0])
    try:
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=limit_s)
    except OSError as e:
        raise RuntimeError(f"{name}: {e.strerror}") from e
    except subprocess.TimeoutExpired as e:
        raise RuntimeError(f"{name}: no end after {limit_s} s") from e
    if done.returncode:
        ended = f"status {done.returncode}" if done.returncode > 0 else f"killed by signal {-done.returncode}"
        said = (done.stderr.strip() or "nothing said").splitlines()[-1]
        raise RuntimeError(f"{name}: {ended}: {said}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def machine():
    cpu = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf8") as f:
            cpu = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), cpu)
    except OSError:
        pass
    return {"cpu": cpu, "cores": os.cpu_count()}


def load():
    """Of the last minute; other work on the machine spoils a measurement."""
    return round(os.getloadavg()[0], 2)


def middle(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def table(head, rows):
    """Markdown; columns whose head ends in ':' are aligned to the right. None is an empty cell."""
    lines = ["| " + " | ".join(h.rstrip(":") for h in head) + " |",
             "|" + "|".join("--:" if h.endswith(":") else "---" for h in head) + "|"]
    lines += ["| " + " | ".join("" if c is None else str(c) for c in row) + " |" for row in rows]
    return "\n".join(lines)


def put_into(path, name, text):
    """Replaces what stands between the two marks of `name`."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    with open(path, encoding="utf8") as f:
        whole = f.read()
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(end) < whole.index(begin):
        stop(f"{path}: wants one '{begin.strip()}' before one '{end}'")
    with open(path, "w", encoding="utf8") as f:
        f.write(whole[:whole.index(begin)] + begin + text.strip() + "\n" + whole[whole.index(end):])


def number(v, form="{:.1f}"):
    return None if v is None else form.format(v)
