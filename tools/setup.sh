#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# setup.sh [build|demo|test|fuzz]: makes sure that what `make` with this goal needs is there. Missing Debian
# packages are installed where that is allowed (root, or sudo without a password); elsewhere the list and the
# command are printed and the status is 5. Silent when nothing is missing.
set -u
goal=${1:-build}
missing=''

have() { command -v "$1" >/dev/null 2>&1; }
pkg() { pkg-config --exists "$1" 2>/dev/null; }
need() { # need PACKAGE PROBE...: the package is missing where the probe fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}
compiles() { # compiles 'COMPILER FLAGS' 'SOURCE'
    # shellcheck disable=SC2086 # the flags are several words
    printf '%s\n' "$2" | $1 -x c - -o "${TMPDIR:-/tmp}/sr-setup.$$" 2>/dev/null
    compiled=$?
    rm -f "${TMPDIR:-/tmp}/sr-setup.$$"
    return $compiled
}

probe_all() {
    missing=''
    need gcc have gcc
    need libc6-dev compiles gcc '#include <stdio.h>
int main(void) { return 0; }'
    need pkg-config have pkg-config
    need libopenblas-dev pkg openblas
    need liblapacke-dev pkg lapacke
    need libutf8proc-dev pkg libutf8proc
    need libjansson-dev pkg jansson
    need libxxhash-dev pkg libxxhash
    need libedit-dev pkg libedit
    case $goal in
    demo | test)
        need python3 have python3
        need python3-pip python3 -m pip --version
        ;;
    esac
    case $goal in
    test | fuzz)
        need clang have clang
        need libclang-rt-14-dev compiles 'clang -fsanitize=address,fuzzer-no-link' 'int main(void) { return 0; }'
        ;;
    esac
    [ "$goal" = test ] || return 0
    need libcmocka-dev pkg cmocka
    need qemu-user have qemu-aarch64
    need gcc-aarch64-linux-gnu have aarch64-linux-gnu-gcc
    need libc6-dev-arm64-cross compiles 'aarch64-linux-gnu-gcc -static' '#include <stdio.h>
int main(void) { return 0; }'
}

give_up() {
    printf 'setup: missing packages:%s\nsetup: %s\n' "$missing" "$1" >&2
    printf 'setup: install them with: apt-get install --no-install-recommends%s\n' "$missing" >&2
    exit 5
}

probe_all
[ -n "$missing" ] || exit 0
have apt-get || give_up 'no apt-get on this system'
as_root=''
if [ "$(id -u)" != 0 ]; then
    have sudo && sudo -n true 2>/dev/null || give_up 'not root, and sudo wants a password'
    as_root='sudo -n'
fi

printf 'setup: installing%s\n' "$missing"
log=$(mktemp) || exit 5
trap 'rm -f "$log"' EXIT
# shellcheck disable=SC2086 # a list of packages
if ! { $as_root apt-get -q update && $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y install --no-install-recommends $missing; } >"$log" 2>&1; then
    grep -E '^(E|W|Err)' "$log" | tail -5 >&2
    give_up 'apt-get failed'
fi
probe_all
[ -z "$missing" ] || give_up 'still missing after the installation'
