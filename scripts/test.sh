#!/usr/bin/env bash
# Sets up, builds, and runs every test and check.
#   scripts/test.sh [--asan] [--tidy]
#   --asan   the same tests again under address and undefined-behaviour sanitizers
#   --tidy   clang-tidy over the torch-free folders as well
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
asan=no tidy=no
for argument in "$@"; do
  case $argument in
    --asan) asan=yes ;;
    --tidy) tidy=yes ;;
    *) echo "test: unknown option $argument (--asan, --tidy)" >&2; exit 2 ;;
  esac
done

./scripts/setup.sh
python3 scripts/check_layers.py
python3 scripts/check_sizes.py
git ls-files '*.cpp' '*.h' '*.cu' | xargs clang-format --dry-run --Werror
echo "format: ok"

test_preset() {
  cmake --preset "$1" >build/"$1".configure.log 2>&1 || { cat build/"$1".configure.log >&2; exit 1; }
  cmake --build --preset "$1"
  # One thread a test program: two run at once, and OpenMP under contention is ruinous.
  OMP_NUM_THREADS=1 ctest --preset "$1" -j2
}
mkdir -p build
test_preset release
[ $asan = no ] || test_preset asan
[ $tidy = no ] || scripts/tidy.sh
