#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# check-headers.sh: each header compiles alone; the public ones, and the plain structs that GPU code shares, also as
# C++17. A header named after an instruction set gets its flags, *_inline.h those of AVX-512. A *_body.h is not a header
# but the text of kernels that an ISA's file includes after its vector vocabulary (vec_*.h), and is left to that file.
set -u
cd "$(dirname "$0")/.." || exit 1
bad=0
flags='-Wall -Wextra -Wpedantic -Werror -D_GNU_SOURCE -Iinclude -Isrc -fsyntax-only'
arch=$(${CC:-cc} -dumpmachine | cut -d- -f1)

try() { # try LANGUAGE-FLAGS HEADER: through a source of one line, as a user would include it
    local out
    # shellcheck disable=SC2086 # flags are several words
    out=$(printf '#include "%s"\nint alone;\n' "$2" | $1 $flags $(pkg-config --cflags openblas lapacke) -I. - 2>&1) && return
    printf '%s does not compile alone: %s\n' "$2" "$(grep -m1 error <<<"$out")"
    bad=1
}

while read -r header; do
    isa=''
    case _$(basename "$header" .h)_ in
    *_neon_*) [ "$arch" = aarch64 ] || continue ;;
    *_avx2_*) isa='-mavx2 -mfma -mf16c' ;;
    *_body_*) continue ;;
    *_avx512_* | *_vnni_* | *_bf16_* | *_amx_* | *_inline_*)
        isa='-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mavx512bf16 -mfma -mf16c' ;;
    esac
    [ -z "$isa" ] || [ "$arch" = x86_64 ] || continue
    try "${CC:-cc} -std=c11 -x c $isa" "$header"
    case $header in
    include/* | src/backend/args.h | src/backend/backend.h) try 'clang -std=c++17 -x c++' "$header" ;;
    esac
done < <(find include src -name '*.h' ! -path 'src/cuda/*' | sort)
exit $bad
