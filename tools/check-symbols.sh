#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# check-symbols.sh BUILD [archive|exports]: every global symbol of the archive begins with sr_; the shared library
# exports exactly what the public headers declare with SR_API.
set -u
cd "$(dirname "$0")/.." || exit 1
build=$1
bad=0

complain() { # complain TEXT < names
    while read -r name; do
        printf '%s: %s\n' "$name" "$1"
        bad=1
    done
}

archive() {
    local all
    all=$(nm -g --defined-only "$build/libsinkrouter.a" | awk 'NF == 3 { print $3 }' | sort -u)
    [ -n "$all" ] || { echo "$build/libsinkrouter.a: no symbols"; exit 1; }
    complain 'a global symbol must begin with sr_' < <(grep -v '^sr_' <<<"$all")
}

exports() {
    local declared exported
    # A declaration may go over several lines: join to the semicolon, then take the name before the first "(".
    declared=$(cat include/sinkrouter/*.h | sed -e 's|/\*.*\*/||' | tr '\n' ' ' | tr ';' '\n' |
        sed -nE 's/.*SR_API +[^(]*[ *](sr_[a-z0-9_]+) *\(.*/\1/p' | sort -u)
    exported=$(nm -D --defined-only "$build/libsinkrouter.so" | awk 'NF == 3 { print $3 }' | sort -u)
    [ -n "$declared" ] || { echo "include/: no SR_API declaration found"; exit 1; }
    complain 'exported, but no public header declares it' < <(comm -13 <(echo "$declared") <(echo "$exported"))
    complain 'declared SR_API, but not exported' < <(comm -23 <(echo "$declared") <(echo "$exported"))
}

case ${2:-all} in
archive) archive ;;
exports) exports ;;
*) archive; exports ;;
esac
exit $bad
