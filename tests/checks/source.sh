#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What the source must keep to: layers, sizes, headers that stand alone, names of symbols.
set -u
. tests/lib/tap.sh
: "${BUILD:=build}"

check 'includes point down the layers' tools/check-layers.sh
check 'files and functions stay small' tools/check-sizes.sh
check 'every header compiles alone' tools/check-headers.sh
check 'global symbols begin with sr_' tools/check-symbols.sh "$BUILD" archive
check 'the shared library exports what the headers declare' tools/check-symbols.sh "$BUILD" exports
check 'documents link to what is there, and source names documents that are' tools/check-docs.py
tap_end
