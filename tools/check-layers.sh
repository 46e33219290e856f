#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check-layers.sh: every #include "..." points down the layers. The table says what a part may include; the public
# headers it may see stand beside it (all may see base.h).
cd "$(dirname "$0")/.." || exit 1

grep -rn --include='*.[ch]' --include='*.cu' --include='*.cuh' --include='*.def' -E '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' include src apps examples |
    sed -E 's/^([^:]*):([0-9]+):[^"]*"([^"]*)".*/\1 \2 \3/' |
    awk '
    BEGIN {
        may["base"]      = "base"
        may["formats"]   = "formats base"
        may["text"]      = "text formats base"
        may["backend"]   = "backend base"
        may["cpu"]       = "cpu backend formats base"
        may["cuda"]      = "cuda backend formats base"
        may["attention"] = "attention backend base"
        may["model"]     = "model attention formats backend base"
        may["vision"]    = "vision backend formats base"
        may["cluster"]   = "cluster backend base"
        may["engine"]    = "engine model text vision cluster attention formats backend base"
        sees["model"] = "attention.h"
        sees["attention"] = "attention.h measure.h"
        sees["engine"] = sees["apps"] = sees["examples"] = "attention.h engine.h measure.h"
    }
    function has(list, word) { return index(" " list " ", " " word " ") > 0 }
    function wrong(why) { printf "%s:%d: includes \"%s\": %s\n", $1, $2, $3, why; bad = 1 }
    {
        n = split($1, dir, "/")
        part = dir[1] == "src" ? dir[2] : dir[1]
        split($3, to, "/")
        if (part == "include") {
            if (to[1] != "sinkrouter") wrong("a public header includes public headers only")
        } else if (to[1] == "sinkrouter") {
            if (to[2] != "base.h" && !has(sees[part], to[2])) wrong(part " may not see this public header")
        } else if (part == "apps" || part == "examples") {
            here = $1
            sub(/[^\/]*$/, "", here)
            if (system("test -f \"" here $3 "\"") != 0) wrong("a program sees include/ and its own folder only")
        } else if (part == "attention" && $3 == "formats/quant.h") {
            # sizes of rows by element type: quant.h knows no file, which is what attention must not know
        } else if (!has(may[part], to[1])) {
            wrong(part " may include " may[part])
        } else if (dir[n] ~ /^policy_/ && (to[1] == "cpu" || to[1] == "cuda" || $3 ~ /kernel/)) {
            wrong("a policy never includes a kernel")
        }
    }
    END { exit bad }'
