#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check-sizes.sh: files of at most 600 lines, functions of at most 100. A file whose name ends in _table is data.
# A function's body is what stands between a brace in the first column and its closing one.
cd "$(dirname "$0")/.." || exit 1
find include src apps tests examples -name '*.[ch]' ! -name '*_table.[ch]' -o -name '*.cu' -o -name '*.cuh' | sort | xargs awk '
    FNR == 1 { report_file(); file = FILENAME; start = 0 }
    { lines = FNR }
    /^[A-Za-z_].*\(/ { name = $0 }
    /^\{/ { start = FNR }
    /^\}/ && start {
        if (FNR - start - 1 > 100) { printf "%s:%d: %d lines, at most 100: %s\n", file, start, FNR - start - 1, name; bad = 1 }
        start = 0
    }
    END { report_file(); exit bad }
    function report_file() {
        if (file != "" && lines > 600) { printf "%s: %d lines, at most 600\n", file, lines; bad = 1 }
    }'
