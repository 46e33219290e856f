#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""check-docs.py: every link of the documents leads to a file and a heading that are there, every page of docs/ stands in its
index, and every document that the source names is there."""
import os
import re
import sys

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
SOURCES = ("src", "include", "apps", "examples", "bench", "tests", "tools", "Makefile")
bad = []


def read(path):
    with open(path, encoding="utf8", errors="replace") as f:
        return f.read()


def files_of(root):
    if os.path.isfile(root):
        return [root]
    return [os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names]


def anchors(text):
    """As GitHub makes them from headings: small letters, digits, hyphens; a space is a hyphen; a second one of a name gets -1."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        found.append(name if name not in found else f"{name}-{found.count(name)}")
    return found


def check_links(path, text):
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", file):
            continue
        target = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
        if not os.path.exists(target):
            bad.append(f"{path}: {link}: no such file")
        elif anchor and target.endswith(".md") and anchor not in anchors(read(target)):
            bad.append(f"{path}: {link}: no such heading")


os.chdir(HERE)
pages = sorted(p for p in files_of("docs") if p.endswith(".md"))
for page in [p for p in os.listdir(".") if p.endswith(".md")] + pages:
    check_links(page, read(page))
index = read("docs/README.md")
bad += [f"{p}: not in docs/README.md" for p in pages if p != "docs/README.md" and f"({os.path.relpath(p, 'docs')})" not in index]
for source in (s for root in SOURCES for s in files_of(root)):
    if source.endswith((".c", ".h", ".cu", ".cuh", ".cpp", ".py", ".sh", ".def", "Makefile")):
        bad += [f"{source}: {name}: no such file" for name in re.findall(r"\bdocs/[\w/.-]+\.(?:md|svg)", read(source)) if not os.path.exists(name)]
print("\n".join(bad), end="\n" if bad else "")
sys.exit(bool(bad))
