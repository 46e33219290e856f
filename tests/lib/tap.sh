# SPDX-License-Identifier: Apache-2.0
#
# Sourced by the scripts that print TAP. `check NAME COMMAND...` is one test; its output is shown if it fails. The
# plan comes last, from tap_end, so a script that dies on the way has none and counts as failed.
tap_n=0 tap_bad=0

tap_ok() { printf 'ok %d - %s\n' $((++tap_n)) "$1"; }
tap_skip() { printf 'ok %d # SKIP %s: %s\n' $((++tap_n)) "$1" "$2"; }
tap_fail() { # tap_fail NAME < what it said
    printf 'not ok %d - %s\n' $((++tap_n)) "$1"
    tap_bad=1
    tail -40 | sed 's/^/# /'
}
check() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then tap_ok "$name"; else tap_fail "$name" <<<"$said"; fi
}
check_fails() { # the command must fail: shows that a check can
    local name=$1
    shift
    if "$@" >/dev/null 2>&1; then tap_fail "$name" <<<'succeeded, but had to fail'; else tap_ok "$name"; fi
}
tap_end() {
    printf '1..%d\n' $tap_n
    exit $tap_bad
}
