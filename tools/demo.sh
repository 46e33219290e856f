#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# demo.sh: the main job on a real model: a question about a long document, answered with routing; then what routing
# saves and costs on that document. DOC=FILE and QUESTION=TEXT choose others, MODEL=FILE another model.
# Needs $BUILD/sinkrouter and the model (make demo sees to both).
set -eu
cd "$(dirname "$0")/.."
program=${BUILD:-build}/sinkrouter
model=${MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
default=/usr/share/common-licenses/GPL-3
doc=${DOC:-$default}
if [ "$doc" = "$default" ]; then
    question=${QUESTION:-In one sentence, what is the purpose of the GNU General Public License?}
else
    question=${QUESTION:-In one sentence, what is this text about?}
fi
[ -r "$doc" ] || { printf 'demo: %s cannot be read; give a text with DOC=FILE\n' "$doc" >&2; exit 4; }

printf '\n== %s\n== %s\n\n' "$doc" "$question"
"$program" run -m "$model" -f "$doc" --file-tokens 7450 -p "$question" -n 120 --greedy --route mass

# KL, top-1 and bytes come from a pass in which every decision is audited; the speed from a second one without audits.
printf '\n== The same document, its end decoded token by token: everything read, the published router, this one\n\n'
"$program" perplexity -m "$model" -f "$doc" -n 192 --modes dense,paper,mass --route-tau .5 --speed -o md
cat <<'TEXT'

decode tok/s and KV read/token are of decode steps after an exact prefill; read is the share of the bytes that dense
reads. KL (nats per token) and top-1 agreement are against dense. > 2 eps: how often more than twice the promised
share of attention was left unread (paper promises none; the same eps is used to judge it).
TEXT
