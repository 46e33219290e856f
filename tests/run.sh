#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# run.sh [PROGRAM...]: runs test programs and scripts that print TAP and adds them up. A PROGRAM may be preceded by
# VAR=value words and a launcher in one argument: "SR_ISA=scalar build/tests/golden/test_forward".
# run.sh --found: every test of $BUILD and every script of tests/cli and tests/checks; of a build with CUDA those of
# tests/cuda too.
# run.sh --all: the same and what `make test` adds: builds, sanitizers, scalar only, NEON under qemu.
#
# A program that dies, stops before its plan is done, fails without saying so or says nothing counts as a failure.
# The last line is "N passed, N failed, N skipped"; the status is 0 only if none failed and at least one passed.
set -u
cd "$(dirname "$0")/.." || exit 1
export BUILD=${BUILD:-build}
export SR_SHARED=${SR_SHARED:-../shared}
limit=${SR_TEST_SECONDS:-600} # of one program
n_passed=0 n_failed=0 n_skipped=0
logs=$BUILD/test-logs
mkdir -p "$logs"
trap 'printf "interrupted\n%d passed, %d failed, %d skipped\n" $n_passed $((n_failed + 1)) $n_skipped; exit 130' INT TERM

# Adds up one program's TAP: "passed failed skipped planned". Plans of several groups in one program add up too.
count_tap() {
    awk '
        /^1\.\.[0-9]+/ { sub(/^1\.\./, ""); planned += $1; plans++; if ($1 == 0) skipped++ }
        /^(not )?ok[ \t]/ && /# *[Ss][Kk][Ii][Pp]/ { skipped++; seen++; next }
        /^ok[ \t]/ { passed++; seen++ }
        /^not ok[ \t]/ { failed++; seen++ }
        END { print passed + 0, failed + 0, skipped + 0, plans ? planned - seen : -1 }' "$1"
}

died_because() { # died_because STATUS
    if [ "$1" = 124 ] || [ "$1" = 137 ]; then echo "stopped after $limit s"
    elif [ "$1" -gt 128 ]; then echo "killed by signal $(kill -l $(($1 - 128)))"
    else echo "exit status $1"; fi
}

run_one() { # run_one LABEL COMMAND...
    local label=$1 log status passed failed skipped missing note='' began=$EPOCHREALTIME
    shift
    log=$logs/$(tr -c 'A-Za-z0-9_.\n' _ <<<"$label").log
    timeout -k 10 "$limit" env "$@" >"$log" 2>&1 </dev/null
    status=$?
    read -r passed failed skipped missing < <(count_tap "$log")
    if [ "$missing" = -1 ]; then
        note="printed no plan ($(died_because $status))"
    elif [ "$missing" -gt 0 ]; then
        note="died with $missing tests to go ($(died_because $status))"
    elif [ "$missing" -lt 0 ]; then
        note="ran more tests than planned"
    elif [ "$failed" = 0 ] && [ $status != 0 ]; then
        note="$(died_because $status) though no test failed"
    fi
    [ -z "$note" ] || failed=$((failed + 1))
    n_passed=$((n_passed + passed)) n_failed=$((n_failed + failed)) n_skipped=$((n_skipped + skipped))
    began=$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
    if [ "$failed" = 0 ]; then
        printf 'ok    %-44s %5d passed %3d skipped %7s s\n' "$label" "$passed" "$skipped" "$began"
    else
        printf 'FAIL  %-44s %5d passed %3d failed  %7s s  %s\n' "$label" "$passed" "$failed" "$began" "$note"
        # The failing tests with what they said: comments may come before (stderr) or after the line.
        grep -vE '^(ok[ \t]|1\.\.|TAP version|# ok )' "$log" | tail -60 | sed 's/^/      | /'
    fi
    grep -E '^(not )?ok.*# *[Ss][Kk][Ii][Pp]|^1\.\.0' "$log" | head -8 | sed 's/^/      - /'
}

run_built() { # run_built SUFFIX KIND... : test programs of the sources, so that one which was not built is missed
    local build=$BUILD$1 source program
    shift
    for kind in "$@"; do
        for source in tests/"$kind"/test_*.c; do
            [ -f "$source" ] || continue
            program=$build/${source%.c}
            run_one "$prefix$kind/$(basename "$program")" "${launch[@]}" "$program"
        done
    done
}

run_cuda() { # where the build has it; without a GPU they say SKIP
    local source
    [ -f "$BUILD/src/cuda/backend_cuda.o" ] || return 0
    for source in tests/cuda/test_*.cu; do run_one "cuda/$(basename "${source%.cu}")" "$BUILD/${source%.cu}"; done
}

run_scripts() { # run_scripts FOLDER
    local script
    for script in tests/"$1"/*.sh tests/"$1"/*.py; do
        [ -f "$script" ] || continue
        case $script in
        */build.sh) ;; # goes first, by name
        *.py) run_one "$1/$(basename "$script")" python3 "$script" ;;
        *) run_one "$1/$(basename "$script")" bash "$script" ;;
        esac
    done
}

run_fuzz_corpora() {
    local source name
    for source in tests/fuzz/fuzz_*.c; do
        [ -f "$source" ] || continue
        name=$(basename "${source%.c}")
        run_one "sanitized fuzz/$name" "$BUILD-san/tests/fuzz/$name" "tests/fuzz/corpus/${name#fuzz_}"
    done
}

prefix='' launch=()
case ${1:-} in
--found | '')
    run_built '' unit kernels golden fault
    run_cuda
    run_scripts cli
    run_scripts checks
    ;;
--all)
    run_one checks/build.sh bash tests/checks/build.sh
    run_scripts checks
    run_built '' unit kernels golden fault
    run_scripts cli
    prefix='scalar ' launch=(SR_ISA=scalar)
    run_built '' golden
    prefix='sanitized ' launch=()
    run_built -san unit fault
    run_fuzz_corpora
    prefix='neon '
    [ "$(uname -m)" = aarch64 ] || { launch=(qemu-aarch64) && run_built -neon kernels; }
    ;;
*)
    for item in "$@"; do
        # shellcheck disable=SC2086 # words: variables, launcher, program
        run_one "$item" $item
    done
    ;;
esac

printf '%d passed, %d failed, %d skipped\n' "$n_passed" "$n_failed" "$n_skipped"
[ "$n_failed" = 0 ] && [ "$n_passed" -gt 0 ]
