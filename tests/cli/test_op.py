#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench --op attention: no model, small stacks. Bytes are checked against sizes of rows, times against each other."""
import csv
import io
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cli import contains, equal, main, one_line, run, test

ROW = {"f16": lambda d: 2 * d, "q8_0": lambda d: d // 32 * 34, "q4_0": lambda d: d // 32 * 18, "fp8": lambda d: d}


def op(*args, fmt="json", rc=0, size="1"):
    out, err = run("bench", "--op", "attention", "--device", "none", "--op-size", size, "-o", fmt, "-r", "2", *args, rc=rc)
    return (json.loads(out) if fmt == "json" else out) if rc == 0 else err


@test
def rows_are_the_product_of_the_lists():
    rows = op("-d", "600,1100", "-ctk", "f16,q8_0", "-t", "1-2", "--heads", "6/2,4/4", "--head-dim", "64,32", "--route", "dense,window")
    equal([(r["n_threads"], r["n_heads"], r["n_kv_heads"], r["head_dim"], r["type_k"], r["type_v"], r["n_depth"], r["route"]) for r in rows],
          [(t, *s, k, k, d, m) for t in (1, 2) for s in ((6, 2, 64), (4, 4, 32)) for k in ("f16", "q8_0") for d in (600, 1100)
           for m in ("dense", "window")])
    rows = op("-d", "500", "-ctk", "f16,q4_0", "-ctv", "q8_0", "--heads", "3/1", "--head-dim", "64")
    equal([(r["type_k"], r["type_v"]) for r in rows], [("f16", "q8_0"), ("q4_0", "q8_0")])
    rows = op("-d", "300")
    equal([(r["n_heads"], r["n_kv_heads"], r["head_dim"], r["type_k"]) for r in rows],
          [(32, 8, 128, "f16"), (9, 3, 64, "f16"), (14, 2, 64, "f16"), (32, 32, 128, "f16")])


@test
def bytes_are_those_of_the_rows():
    for k in ROW:
        for r in op("-d", "3000", "-ctk", k, "--heads", "6/2", "--head-dim", "64", "--route", "dense,window,paper", "--skip-groups", "0,1,2"):
            row = 2 * ROW[k](64)
            want = {"dense": 2 * 3000 * row, "window": 2 * 260 * row}
            skipped = r["groups_skipped"]
            if r["route"] == "paper":
                want["paper"] = (2 - skipped) * 3000 * row
            equal(r["dense_bytes"], 2 * 3000 * row)
            first_keys = 2 * row if r["route"] == "paper" else 0  # the test may read row 0 of each group
            equal(want[r["route"]] <= r["bytes"] <= want[r["route"]] + first_keys, True, f"{k} {r['route']} {skipped} {r['bytes']}")
            equal((r["sketch_bytes"], r["single_bytes"]), (0, 0))


@test
def shares_by_lot():
    rows = op("-d", "6000", "--heads", "6/2", "--head-dim", "64", "--route-keep", "0,0.1,0.5,1")
    equal([(r["route"], r["route_keep"]) for r in rows], [("dense", None), ("mass", 0), ("mass", 0.1), ("mass", 0.5), ("mass", 1)])
    far = 2 * (6000 - 260) * 256
    for r in rows[1:]:
        equal(abs(r["single_bytes"] / far - r["route_keep"]) < 0.02, True, f"{r['route_keep']}: {r['single_bytes'] / far}")
        equal(r["sketch_bytes"], 2 * (6000 - 260) * 10)  # rank 20 of 4 bits
        equal(r["bytes"], r["sketch_bytes"] + r["single_bytes"] + 2 * 260 * 256)
    equal((rows[0]["gather_gbs"], rows[1]["gather_gbs"]), (None, None))
    equal(all(r["gather_gbs"] > 0 for r in rows[2:]), True)
    equal(rows[4]["single_bytes"], far)


@test
def the_router_chooses():
    dense, mass, tight = op("-d", "6000", "--heads", "6/2", "--head-dim", "64", "--route", "dense,mass") + op(
        "-d", "6000", "--heads", "6/2", "--head-dim", "64", "--route", "mass", "--route-eps", "0.001")
    equal(0 < mass["single_bytes"] < 0.5 * dense["bytes"], True, f"{mass}")
    equal(tight["single_bytes"] > mass["single_bytes"], True)


@test
def times_and_limits():
    for r in op("-d", "20000", "--heads", "8/2", "--head-dim", "64", "--route-keep", "0.2", size="64"):
        s = r["samples_ns"]
        equal((len(s), abs(r["layer_ns"] - sum(s) / 2) < 1e-6 * r["layer_ns"]), (2, True))
        equal(abs(r["gbs"] * r["layer_ns"] / r["bytes"] - 1) < 1e-6, True)
        equal(abs(r["limit_share"] * r["layer_ns"] / r["limit_ns"] - 1) < 1e-6, True)
        limit = (r["bytes"] - r["single_bytes"]) / r["read_gbs"] + (r["single_bytes"] / r["gather_gbs"] if r["single_bytes"] else 0)
        equal(abs(limit / r["limit_ns"] - 1) < 1e-6, True)
        # 10 MB in a layer: neither 10 TB/s nor a second
        equal(1e3 < r["limit_ns"] < 1e9 and 1e3 < r["layer_ns"] < 1e9, True)
        equal(r["n_layers"] * r["dense_bytes"] >= 64 << 20, True)


@test
def formats():
    args = ("-d", "400", "--heads", "6/2", "--head-dim", "64")
    table = op(*args, fmt="md").splitlines()
    equal((len(table), "us/layer" in table[0], "6/2" in table[2]), (3, True, True))
    table = op("-d", "400", "--heads", "6/2", "--head-dim", "64", "--route-keep", "0,0.1", "--skip-groups", "1", fmt="md").splitlines()
    equal(["400 random" in line for line in table[2:]], 4 * [True])  # what is in the cache, and who chose
    equal([line.split("|")[6].strip() for line in table[2:]], ["dense", "mass 0 % random", "mass 10 % random", "paper -1/2"])
    rows = list(csv.DictReader(io.StringIO(op(*args, fmt="csv"))))
    equal((len(rows), rows[0]["n_kv_heads"], rows[0]["op"]), (1, "2", "attention"))
    equal(json.loads(op(*args, fmt="jsonl"))["n_depth"], 400)


@test
def refusals():
    for args, part in ((["--heads", "9/2"], "--heads 9/2"), (["--heads", "8"], "--heads 8"), (["--heads", "8/2,"], "--heads"),
                       (["--heads", "0/1"], "--heads"), (["--heads", "8/2x"], "--heads"), (["--heads", "64/2"], "limit 16"),
                       (["--head-dim", "64"], "--heads"), (["--heads", "8/2", "--head-dim", "7"], "--head-dim"),
                       (["-m", "/absent"], "-m: not with --op"), (["-p", "4"], "-p: not with --op"), (["-f", "x"], "-f: not"),
                       (["-npl", "2"], "-npl"), (["-n", "2"], "-n: not"), (["--profile"], "--profile"), (["--fill", "random"], "--fill"),
                       (["--op", "matmul"], "attention"), (["--route-keep", "1.5"], "--route-keep"), (["-d", "0"], "-d 0"),
                       (["--route", "quest"], "--route"), (["--skip-groups", "-1"], "--skip-groups"),
                       (["--heads", "8/2,9/3", "--skip-groups", "1,4"], "--skip-groups 4: the shapes have at most 3 KV heads")):
        err = run("bench", "--op", "attention", "--op-size", "1", "--device", "none", "-d", "64", *args, rc=None)[1]
        one_line(err, part)
    for flag, mode in (("--route-keep", "mass"), ("--skip-groups", "paper")):
        err = run("bench", "--op", "attention", "--op-size", "1", "--device", "none", "-d", "64", "--heads", "8/2", "--route", "dense", flag, "1")[1]
        one_line(err, flag, mode, "not asked for")
    for args in (["--heads", "8/2"], ["--head-dim", "64"], ["--skip-groups", "1"], ["--op-size", "4"]):
        one_line(run("bench", "-m", "/absent", *args, rc=2)[1], args[0], "only with --op")
    one_line(run("bench", "-m", "/absent", "--route-keep", "0.1,0.2", rc=2)[1], "--route-keep", "--op")
    one_line(op("--device", "tpu", rc=2), "tpu")
    one_line(op("--heads", "8/2", "--head-dim", "72", "-ctk", "q8_0", rc=6), "blocks of 32")
    # asked before it is taken: the kernel would grant this and then end the program
    one_line(run("bench", "--op", "attention", "--device", "none", "-d", "1024", "--op-size", "1048576", "-r", "1", rc=5)[1], "bytes, ", "available")


main()
