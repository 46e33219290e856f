#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The runner and the checks themselves: each must see what it is there to see.
set -u
. tests/lib/tap.sh
top=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

program() { # program NAME < its body
    { echo '#!/bin/bash'; cat; } >"$work/$1"
    chmod +x "$work/$1"
}
wants() { # wants LAST-LINE STATUS PROGRAM...
    local last=$1 status=$2 said got
    shift 2
    said=$(BUILD=$work tests/run.sh "${@/#/$work/}" 2>&1)
    got=$?
    [ "$(tail -1 <<<"$said")" = "$last" ] && [ $got = "$status" ] && return
    printf 'wanted "%s" and status %d, got status %d and:\n%s\n' "$last" "$status" $got "$said"
    return 1
}

program good <<<'echo 1..2; echo "ok 1 - a"; echo "ok 2 - b"'
program bad <<<'echo 1..2; echo "ok 1 - a"; echo "not ok 2 - b"; exit 1'
program skips <<<'echo 1..2; echo "ok 1 # SKIP no GPU"; echo "ok 2 - b"'
program dies <<<'echo 1..3; echo "ok 1 - a"; kill -SEGV $$'
program stops <<<'echo 1..3; echo "ok 1 - a"'
program silent <<<'exit 0'
program leaks <<<'echo 1..1; echo "ok 1 - a"; exit 23'
program groups <<<'echo 1..1; echo "ok 1 - a"; echo 1..2; echo "ok 1 - b"; echo "ok 2 - c"'
program only_skips <<<'echo "1..0 # SKIP nothing here"'

check 'runner: adds up' wants '2 passed, 0 failed, 0 skipped' 0 good
check 'runner: several programs' wants '3 passed, 1 failed, 0 skipped' 1 good bad
check 'runner: skips count apart' wants '3 passed, 0 failed, 1 skipped' 0 good skips
check 'runner: a killed program fails' wants '1 passed, 1 failed, 0 skipped' 1 dies
check 'runner: an unfinished plan fails' wants '1 passed, 1 failed, 0 skipped' 1 stops
check 'runner: silence fails' wants '0 passed, 1 failed, 0 skipped' 1 silent
check 'runner: a bad status fails' wants '1 passed, 1 failed, 0 skipped' 1 leaks
check 'runner: an absent program fails' wants '0 passed, 1 failed, 0 skipped' 1 absent
check 'runner: several groups' wants '3 passed, 0 failed, 0 skipped' 0 groups
check 'runner: nothing but skips fails' wants '0 passed, 0 failed, 1 skipped' 1 only_skips

# The checks of the source, on a small tree with one fault each.
tree() {
    rm -rf "$work/t"
    mkdir -p "$work/t/src/base" "$work/t/src/cpu" "$work/t/src/attention" "$work/t/include/sinkrouter" \
        "$work/t/apps/sinkrouter" "$work/t/tests" "$work/t/examples" "$work/t/tools"
    cp "$top"/tools/check-*.sh "$work/t/tools"
    printf '#include "base/b.h"\nint f(void)\n{\n    return 0;\n}\n' >"$work/t/src/attention/a.c"
    printf 'int f(void);\n' >"$work/t/src/base/b.h"
}
plant() { printf "$2" >"$work/t/$1"; }
tree
check 'layers: a clean tree passes' "$work/t/tools/check-layers.sh"
check 'sizes: a clean tree passes' "$work/t/tools/check-sizes.sh"
check 'headers: a clean tree passes' "$work/t/tools/check-headers.sh"
plant src/base/up.c '#include "attention/a.h"\n'
check_fails 'layers: base includes attention' "$work/t/tools/check-layers.sh"
tree
plant src/attention/policy_x.c '#include "cpu/kernels.h"\n'
check_fails 'layers: a policy includes a kernel' "$work/t/tools/check-layers.sh"
tree
plant apps/sinkrouter/m.c '#include "base/b.h"\n'
check_fails 'layers: the program includes a private header' "$work/t/tools/check-layers.sh"
tree
plant src/attention/m.c '#include "sinkrouter/engine.h"\n'
check_fails 'layers: attention includes the engine' "$work/t/tools/check-layers.sh"
tree
plant src/attention/m.c '#include "formats/quant.h"\n'
check 'layers: attention includes the element types' "$work/t/tools/check-layers.sh"
tree
plant src/attention/m.c '#include "formats/gguf.h"\n'
check_fails 'layers: attention includes a file format' "$work/t/tools/check-layers.sh"
tree
yes 'int x;' | head -601 >"$work/t/src/base/long.c"
check_fails 'sizes: 601 lines' "$work/t/tools/check-sizes.sh"
tree
{ printf 'int g(void)\n{\n'; yes '    g();' | head -101; echo '}'; } >"$work/t/src/base/long.c"
check_fails 'sizes: a function of 101 lines' "$work/t/tools/check-sizes.sh"
tree
plant src/base/b.h 'size_t f(void);\n'
check_fails 'headers: one that needs another first' "$work/t/tools/check-headers.sh"
tree
plant include/sinkrouter/c.h 'int class;\n'
check_fails 'headers: a public one that is no C++' "$work/t/tools/check-headers.sh"

# Symbols, on a library made here.
mkdir -p "$work/lib"
symbols() { # symbols NAMES...: a library that has them all, visible
    local n
    for n in "$@"; do echo "int $n(void) { return 0; }"; done >"$work/lib/l.c"
    gcc -fPIC -c "$work/lib/l.c" -o "$work/lib/l.o" && rm -f "$work/lib/libsinkrouter.a" &&
        ar rcs "$work/lib/libsinkrouter.a" "$work/lib/l.o" &&
        gcc -shared -o "$work/lib/libsinkrouter.so" "$work/lib/l.o"
}
tree
plant include/sinkrouter/d.h 'SR_API int sr_one(void);\nSR_API const char *sr_two(int a,\n    int b);\n'
symbols sr_one sr_two
check 'symbols: a clean library passes' "$work/t/tools/check-symbols.sh" "$work/lib"
symbols sr_one sr_two other
check_fails 'symbols: a name without the prefix' "$work/t/tools/check-symbols.sh" "$work/lib" archive
symbols sr_one sr_two sr_hidden
check_fails 'symbols: an export that no header declares' "$work/t/tools/check-symbols.sh" "$work/lib" exports
symbols sr_one
check_fails 'symbols: a declared one that is not exported' "$work/t/tools/check-symbols.sh" "$work/lib" exports
tap_end
