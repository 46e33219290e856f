#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# `make install` into an empty place, and the examples built from there alone: shared, static, and run.
set -u
. tests/lib/tap.sh
: "${BUILD:=build}"
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
root=$stage/opt/sr

install_there() { env -u MAKEFLAGS make -s --no-print-directory BUILD="$BUILD" DESTDIR="$stage" PREFIX=/opt/sr install; }
flags() { PKG_CONFIG_PATH=$root/lib/pkgconfig pkg-config --define-variable=prefix="$root" "$@" sinkrouter; }
present() {
    local f
    for f in bin/sinkrouter lib/libsinkrouter.a lib/libsinkrouter.so lib/pkgconfig/sinkrouter.pc \
        include/sinkrouter/base.h include/sinkrouter/attention.h include/sinkrouter/engine.h include/sinkrouter/measure.h; do
        [ -e "$root/$f" ] || { echo "$f is not installed"; return 1; }
    done
}
# shellcheck disable=SC2046 # pkg-config prints words
build_shared() { cc -std=c11 -Wall -Wextra -Werror "$1" -o "$2" $(flags --cflags --libs); }
build_static() {
    # shellcheck disable=SC2046
    cc -std=c11 -Wall -Wextra -Werror "$1" -o "$2" $(flags --cflags) "$root/lib/libsinkrouter.a" \
        $(flags --static --libs | sed 's/-lsinkrouter//')
}

check 'make install' install_there
check 'all parts are there' present
check 'the installed program starts' "$root/bin/sinkrouter" --help
for source in examples/*.c; do
    [ -f "$source" ] || continue
    name=$(basename "$source" .c)
    check "$name, shared" build_shared "$source" "$stage/$name"
    check "$name, static" build_static "$source" "$stage/$name-static"
    args=()
    if grep -q 'sinkrouter/engine.h' "$source"; then
        [ -f $model ] || { tap_skip "$name runs" "no $model"; continue; }
        args=("$model" 'Name three colours.' 8)
    fi
    check "$name runs, shared" env LD_LIBRARY_PATH="$root/lib" "$stage/$name" "${args[@]}"
    check "$name runs, static" "$stage/$name-static" "${args[@]}"
done
tap_end
