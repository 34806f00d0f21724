#!/usr/bin/env bash
# Build, serve, test. `./runner.sh help` says how.
set -euo pipefail
cd "$(dirname "$0")"

# The release that the crates `tch` and `torch-sys` were written for (Cargo.toml); they go together.
torch_version=2.11.0
torch_venv=.venv-libtorch

usage() {
    cat <<'TEXT'
./runner.sh [serve] [OPTIONS]  build and serve; OPTIONS go to `diffused serve` (see --help there)
./runner.sh test [ARGS]        all tests; ARGS go to `cargo test`
./runner.sh check              all tests, then formatting, lints, docs and dependencies
./runner.sh bench FILE [ARGS]  our speed beside diffusers' on an SD1.5 or SDXL checkpoint (PYTHON names its Python;
                               ARGS as `--precision bf16` and `--width 1024`)

ENGINE=libtorch ./runner.sh …  the same with PyTorch's library as the engine. The first time it is installed into
                               .venv-libtorch (from Python's package registry, with PYTHON or python3; delete the
                               folder to be rid of it), with its CUDA libraries where there is an NVIDIA driver.
                               LIBTORCH=FOLDER (or TORCH_DIR) names one of your own, whose lib/ has libtorch_cpu.
TEXT
}

fail() {
    printf 'runner.sh: %s\n' "$@" >&2
    exit 1
}

need_cargo() {
    command -v cargo >/dev/null ||
        fail "cargo is not installed; Rust comes from your system's packages or from rustup"
    [ "${ENGINE:-}" != libtorch ] || use_libtorch
}

# What cargo is told besides: nothing, or that the second engine is wanted. (Without quotes where it is used: two words.)
# Both builds share `target`: what they have in common is built once, and either stays there while the other is used.
features=

use_libtorch() {
    features="--features libtorch"
    local cxx=${CXX:-c++}
    # (CXX may hold a launcher and arguments.)
    command -v "${cxx%% *}" >/dev/null ||
        fail "ENGINE=libtorch needs a C++ compiler, and there is no '${cxx%% *}'; install g++ or clang, or name one in CXX"
    # `torch-sys` asks a Python of the user's own.
    [ -z "${LIBTORCH_USE_PYTORCH:-}" ] || return 0
    LIBTORCH=${LIBTORCH:-${TORCH_DIR:-}}
    if [ -n "$LIBTORCH" ]; then
        # (Whole, since the build looks for it from elsewhere.)
        case "$LIBTORCH" in /*) ;; *) fail "LIBTORCH is '$LIBTORCH'; name the folder by its whole path" ;; esac
        ls "$LIBTORCH"/lib/libtorch_cpu.* >/dev/null 2>&1 ||
            fail "LIBTORCH is '$LIBTORCH', and there is no lib/libtorch_cpu in it; unset it to have one installed"
    else
        install_torch
        LIBTORCH=$(torch_folder)
    fi
    export LIBTORCH
}

torch_folder() {
    echo "$PWD"/$torch_venv/lib/python3.*/site-packages/torch
}

has_card() {
    [ -e /proc/driver/nvidia/version ] || nvidia-smi >/dev/null 2>&1
}

# A stamp is written last, so that what was interrupted is seen to be unfinished. It says what was installed: `cpu`
# or `cuda`, which does for machines without a card as well.
install_torch() {
    local wanted=cpu stamp=$torch_venv/torch-$torch_version
    ! has_card || wanted=cuda
    [ ! -e "$stamp-cuda" ] && [ ! -e "$stamp-$wanted" ] || return 0
    if [ ! -e "$stamp-cpu" ]; then
        [ ! -e $torch_venv ] || echo "runner.sh: what is in $torch_venv is unfinished, or of another version: from the start" >&2
        make_venv
    fi
    echo "runner.sh: installing torch $torch_version ($wanted) into $torch_venv, $(download_size $wanted) to download" >&2
    # (crt: headers that the runtime's own ask for, for the few lines of C++ that are compiled with them.)
    if [ $wanted = cuda ]; then
        install_packages torch==$torch_version 'nvidia-cuda-crt==13.0.*'
    else
        # What Python would need to use it is left out, and all but two of the CUDA libraries: these two are linked
        # to by the part for the processor.
        install_packages --no-deps torch==$torch_version
        if [ -e "$(torch_folder)/lib/libtorch_cuda.so" ]; then
            install_packages --no-deps 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*' 'nvidia-cuda-crt==13.0.*'
        fi
    fi
    load_torch
    touch "$stamp-$wanted"
}

download_size() {
    case "$(uname -s) $1" in
        "Linux cuda") echo "2.7 GB" ;;
        "Linux cpu") echo "0.5 GB" ;;
        *) echo "0.1 GB" ;;
    esac
}

make_venv() {
    local python=${PYTHON:-python3}
    case "$(uname -s) $(uname -m)" in
        "Linux x86_64" | "Linux aarch64" | "Darwin arm64") ;;
        *) fail "there is no torch $torch_version for $(uname -s) on $(uname -m); Linux on x86_64 and aarch64 and macOS on arm64 have one" \
            "build libtorch $torch_version yourself and name it in LIBTORCH, or draw without it: ./runner.sh" ;;
    esac
    command -v "$python" >/dev/null ||
        fail "torch comes as a Python package, and there is no '$python'; install Python (3.10 to 3.14) with venv and pip, or name one in PYTHON"
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' ||
        fail "torch $torch_version is made for Python 3.10 to 3.14, and '$python' is $("$python" --version 2>&1); name another one in PYTHON"
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "'$python' can make no virtual environment (modules venv and ensurepip); on Debian and Ubuntu: apt install python3-venv"
    "$python" -m venv --clear $torch_venv
}

# (What the daemon says on stdout is read by programs: pip's words go to stderr.)
install_packages() {
    $torch_venv/bin/python -m pip install --disable-pip-version-check "$@" >&2 ||
        fail "torch was not installed; why stands above. The next start tries it again"
}

# Opens the library as the program will: better now than after building for minutes.
load_torch() {
    local libraries
    libraries=$(ls "$(torch_folder)"/lib/libtorch_cpu.*)
    $torch_venv/bin/python -c 'import ctypes, sys; ctypes.CDLL(sys.argv[1])' "$libraries" ||
        fail "torch was installed, and this system cannot load it: why stands above"
}

serve() {
    if [ ! -e modes.yaml ]; then
        cp modes.yaml.example modes.yaml
        echo "runner.sh: copied modes.yaml.example to modes.yaml; your own modes go in there" >&2
    fi
    cargo build --release --locked $features
    exec target/release/diffused serve "$@"
}

# A test chooses its engine itself: the daemons that it starts are not to be told by ENGINE.
run_tests() {
    env -u ENGINE cargo test --release --locked $features "$@"
}

check() {
    run_tests
    cargo fmt --check
    cargo clippy --release --locked $features --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --locked $features --no-deps
    command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
    # The advisory database is not in a package registry; add `advisories` where it can be reached.
    cargo deny --all-features check bans licenses sources
}

case "${1:-serve}" in
    serve) need_cargo; shift || true; serve "$@" ;;
    test) need_cargo; shift; run_tests "$@" ;;
    check) need_cargo; check ;;
    bench)
        need_cargo
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        shift
        exec cargo bench --locked $features --bench engine -- "$@" --engine "${ENGINE:-candle}" \
            --reference "${PYTHON:-python3} benches/reference.py"
        ;;
    help | -h) usage ;;
    --help | -*) need_cargo; serve "$@" ;;
    *) usage >&2; exit 2 ;;
esac
