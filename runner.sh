#!/usr/bin/env bash
# Build, serve, test. `./runner.sh help` says how.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    cat <<'TEXT'
./runner.sh [serve] [OPTIONS]  build and serve; OPTIONS go to `diffused serve` (see --help there)
./runner.sh test [ARGS]        all tests; ARGS go to `cargo test`
./runner.sh check              all tests, then formatting, lints, docs and dependencies
./runner.sh bench FILE         our speed beside diffusers' on an SD1.5 or SDXL checkpoint (PYTHON names its Python)
TEXT
}

need_cargo() {
    command -v cargo >/dev/null && return
    echo "runner.sh: cargo is not installed; Rust comes from your system's packages or from rustup" >&2
    exit 1
}

serve() {
    if [ ! -e modes.yaml ]; then
        cp modes.yaml.example modes.yaml
        echo "runner.sh: copied modes.yaml.example to modes.yaml; your own modes go in there" >&2
    fi
    cargo build --release --locked
    exec target/release/diffused serve "$@"
}

check() {
    cargo test --release --locked
    cargo fmt --check
    cargo clippy --release --locked --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps
    command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
    # The advisory database is not in a package registry; add `advisories` where it can be reached.
    cargo deny --all-features check bans licenses sources
}

case "${1:-serve}" in
    serve) need_cargo; shift || true; serve "$@" ;;
    test) need_cargo; shift; cargo test --release --locked "$@" ;;
    check) need_cargo; check ;;
    bench)
        need_cargo
        [ $# -ge 2 ] || { usage >&2; exit 2; }
        exec cargo bench --locked --bench engine -- "$2" --reference "${PYTHON:-python3} benches/reference.py"
        ;;
    help | -h) usage ;;
    --help | -*) need_cargo; serve "$@" ;;
    *) usage >&2; exit 2 ;;
esac
