#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The builds of `make test`, each in a folder of its own: gcc, clang, sanitizers, and the kernels for aarch64.
set -u
. tests/lib/tap.sh
: "${BUILD:=build}"
jobs=-j$(nproc)

build() { # build MAKE-ARGUMENTS...: only the lines that explain a failure
    local log
    log=$(mktemp)
    if env -u MAKEFLAGS -u MFLAGS make -k -s --no-print-directory "$jobs" "$@" >"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    grep -E 'error|warning|undefined reference|\*\*\*|No rule' "$log" | head -30
    rm -f "$log"
    return 1
}

check 'gcc, warnings are errors' build BUILD="$BUILD" CC=gcc all tests
check 'clang, warnings are errors' build BUILD="$BUILD-clang" CC=clang all tests
check 'address and undefined-behaviour sanitizers' build BUILD="$BUILD-san" CC=gcc OPT=-O1 \
    SAN='-fsanitize=address,undefined -fno-sanitize-recover=all' unit-tests fuzz-replay
if [ "$(uname -m)" = aarch64 ]; then
    tap_skip 'kernels for aarch64' 'this machine runs them itself'
else
    check 'kernels for aarch64' build BUILD="$BUILD-neon" CC=aarch64-linux-gnu-gcc PKGS= kernel-tests-alone
fi
tap_end
