#!/usr/bin/env bash
# Installs what building and running llava needs: Debian packages, and LibTorch 2.11.0 out of the
# torch wheel, unpacked into a cache folder (no Python at run time). Asks nothing, prints what it
# downloads and how large, does nothing when all is there, and heals what an earlier run left half
# done.
#
#   scripts/setup.sh [--cuda]
#
#   --cuda         also what CUDA and NCCL need (done anyway where there is an NVIDIA driver)
#   LLAVA_CACHE    the cache folder; default ~/.cache/llava-cpp
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${LLAVA_CACHE:-$HOME/.cache/llava-cpp}
torch_folder=$cache/libtorch-2.11.0

cuda=no
for argument in "$@"; do
  case $argument in
    --cuda) cuda=yes ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "setup: unknown option $argument; the only one is --cuda" >&2; exit 2 ;;
  esac
done
[ -e /proc/driver/nvidia/version ] && cuda=yes

die() { echo "setup: $*" >&2; exit 1; }
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else die "installing packages needs root: run this as root, or install sudo"
  fi
}

# ── Debian packages ──────────────────────────────────────────────────────────────────────────────
packages=(
  g++ cmake ninja-build ccache pkg-config git unzip ca-certificates python3 python3-pip clang-format
  nlohmann-json3-dev libcli11-dev libspdlog-dev libgtest-dev libgmock-dev
  libsentencepiece-dev sentencepiece libgloo-dev
  libjpeg62-turbo-dev libpng-dev libwebp-dev
  libavformat-dev libavcodec-dev libswscale-dev libavutil-dev libedit-dev
)

install_packages() {
  command -v apt-get >/dev/null ||
    die "this is no Debian (apt-get is missing); install the packages listed in $0 by hand"
  local missing=() package
  for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
      missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  local apt=(apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300)
  as_root "${apt[@]}" update >"$log" 2>&1 ||
    { tail -3 "$log" >&2; die "the package lists cannot be fetched: check the network, then run this again"; }
  local size
  size=$("${apt[@]}" install --no-install-recommends --assume-no "${missing[@]}" 2>/dev/null |
    sed -n 's/^Need to get \(.*\) of archives.*/\1/p' || true)
  echo "setup: installing ${#missing[@]} Debian packages (${size:-size unknown} to download): ${missing[*]}"
  as_root env DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends \
    "${missing[@]}" >"$log" 2>&1 ||
    { tail -3 "$log" >&2; die "the packages could not be installed: see above; free space or check the network, then run this again"; }
}

check_compiler() {
  local version
  version=$("${CXX:-g++}" -dumpversion 2>/dev/null | cut -d. -f1)
  [ "${version:-0}" -ge 12 ] 2>/dev/null ||
    die "${CXX:-g++} is version ${version:-unknown}; g++ 12 or newer is needed: install it and set CXX"
}

# ── LibTorch ─────────────────────────────────────────────────────────────────────────────────────
# Fetches the requirements of lock file $1 into $partial/wheels, hashes checked by pip.
download() {
  local python=python3 tags=()
  $python -m pip --version >/dev/null 2>&1 || python=/usr/bin/python3
  if [ "$($python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != 3.11 ]; then
    tags=(--python-version 3.11)
    local tag
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_25 manylinux_2_18 manylinux2014 \
      manylinux2010 manylinux1; do
      tags+=(--platform "${tag}_x86_64")
    done
  fi
  $python -m pip download -q --no-deps --no-cache-dir --only-binary=:all: --require-hashes \
    --disable-pip-version-check "${tags[@]}" -r "$1" -d "$partial/wheels" >"$log" 2>&1 && return 0
  if grep -q 'DO NOT MATCH THE HASHES' "$log"; then
    die "a download is not the file it should be ($(sed -n 's/^ *\(Expected\|Got\) */\1 /p' "$log" |
      tr '\n' ' ')); nothing was kept: run this again, and if it repeats suspect the mirror"
  elif grep -qi 'no space' "$log"; then
    die "the disk is full under ${TMPDIR:-/tmp} or $cache; free some space, then run this again"
  fi
  die "the download failed ($(grep -E '^ERROR' "$log" | tail -1)); check the network, then run this again"
}

# Whether the folder holds every file its manifest lists, each of the size it was unpacked with.
is_whole() {
  [ -f "$torch_folder/MANIFEST" ] || return 1
  local size path
  while read -r size path; do
    [ "$(stat -L -c %s "$torch_folder/$path" 2>/dev/null)" = "$size" ] || return 1
  done <"$torch_folder/MANIFEST"
}

has_set() { is_whole && grep -qx "$1" "$torch_folder/SETS"; }

need_space() {  # need_space MIB: on the cache's disk and where pip unpacks
  local free
  free=$(df -Pm "$cache" | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$1" ] ||
    die "$cache has $free MiB free, $1 MiB are needed; free some space or set LLAVA_CACHE, then run this again"
}

# Puts what is in $partial/tree into place and lists it; a run that is cut leaves the old or the new.
finish() {
  mkdir -p "$torch_folder"
  cp -al "$partial/tree/." "$torch_folder/" 2>/dev/null || cp -a "$partial/tree/." "$torch_folder/"
  (cd "$torch_folder" &&
    find torch/lib nvidia \( -type f -o -type l \) -printf '%p\n' | sort |
    while read -r path; do printf '%s %s\n' "$(stat -L -c %s "$path")" "$path"; done
  ) >"$partial/MANIFEST"
  printf '%s\n' "$@" >"$partial/SETS"
  mv "$partial/SETS" "$torch_folder/SETS"
  mv "$partial/MANIFEST" "$torch_folder/MANIFEST"
}

unpack() {  # unpack WHEEL PATTERN...
  local wheel=$1
  shift
  unzip -q -o "$wheel" "$@" -d "$partial/tree" 2>"$log" ||
    { tail -2 "$log" >&2; die "unpacking $(basename "$wheel") failed; free some space, then run this again"; }
}

install_libtorch() {
  has_set cpu && return 0
  echo "setup: LibTorch 2.11.0 into $torch_folder: 544 MB to download, 1.0 GB unpacked"
  need_space 1700
  rm -rf "$torch_folder"
  download "$here/libtorch-cpu.lock"
  # libtorch_cuda is in the wheel anyway: with it the GPU plugin builds on every machine that has
  # CUDA's headers, GPU or not.
  unpack "$partial"/wheels/torch-*.whl 'torch/include/*' 'torch-2.11.0.dist-info/licenses/*' \
    torch/lib/libtorch_cpu.so torch/lib/libc10.so torch/lib/libgomp.so.1 \
    torch/lib/libtorch_cuda.so torch/lib/libc10_cuda.so torch/lib/libtorch_cuda_linalg.so \
    torch/lib/libtorch_nvshmem.so torch/lib/libcaffe2_nvrtc.so
  unpack "$partial"/wheels/nvidia_cuda_runtime-*.whl nvidia/cu13/lib/libcudart.so.13
  unpack "$partial"/wheels/nvidia_cuda_cupti-*.whl nvidia/cu13/lib/libcupti.so.13
  finish cpu
}

# CUDA libraries: linked where the machine has the very version (same name, same size), else from
# their wheels.
install_cuda() {
  has_set cuda && return 0
  local requirement bytes place folder name size others total=0 found
  : >"$partial/cuda.lock"
  mkdir -p "$partial/tree/nvidia"
  while IFS='|' read -r requirement bytes place; do
    case $requirement in '#'*) continue ;; esac
    read -r folder name size others <<<"$place"
    found=""
    for lib in /usr/local/cuda/lib64 /usr/lib/x86_64-linux-gnu; do
      [ "$(stat -L -c %s "$lib/$name" 2>/dev/null)" = "$size" ] && found=$lib && break
    done
    if [ -n "$found" ]; then
      mkdir -p "$partial/tree/nvidia/$folder"
      for library in "$found/$name" $(for other in $others; do ls $found/$other 2>/dev/null; done); do
        ln -sf "$library" "$partial/tree/nvidia/$folder/"
      done
    else
      echo "$requirement" >>"$partial/cuda.lock"
      total=$((total + bytes))
    fi
  done <"$here/libtorch-cuda.lock"
  if [ -s "$partial/cuda.lock" ]; then
    echo "setup: CUDA libraries into $torch_folder: $((total / 1000000)) MB to download"
    need_space $((total / 1000000 * 3))
    download "$partial/cuda.lock"
    for wheel in "$partial"/wheels/nvidia_*.whl; do
      unpack "$wheel" 'nvidia/*'
    done
  fi
  finish cpu cuda
}

mkdir -p "$cache" 2>/dev/null || die "$cache cannot be made; set LLAVA_CACHE to a folder you may write to"
exec 9>"$cache/lock"
flock 9  # two runs at once: the second waits and finds all done
rm -rf "$cache"/partial-*
partial=$(mktemp -d "$cache/partial-XXXXXX") || die "$cache cannot be written; set LLAVA_CACHE"
trap 'rm -rf "$partial"' EXIT
mkdir -p "$partial/wheels" "$partial/tree"
log=$partial/log

install_packages
check_compiler
install_libtorch
[ $cuda = no ] || install_cuda
