#!/usr/bin/env bash
# clang-tidy (14) with .clang-tidy over all sources; torch's headers make it slow (about a minute a file).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v clang-tidy >/dev/null || { echo "tidy: install clang-tidy" >&2; exit 1; }
# A build tree without the precompiled header, which is gcc's, and without ccache.
cmake -S . -B build/tidy -G Ninja -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON -DLLAVA_TESTS=OFF >/dev/null
files=("$@")
[ ${#files[@]} -gt 0 ] || mapfile -t files < <(git ls-files 'src/*.cpp')
printf '%s\n' "${files[@]}" | xargs -P 2 -n 1 clang-tidy -p build/tidy --quiet --warnings-as-errors='*'
echo "tidy: ok"
