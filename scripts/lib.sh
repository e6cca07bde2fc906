# Shared by the scripts: what the machine must have, said in one line where it has not.
# shellcheck shell=bash

need() {
    local tool=$1 hint=$2
    command -v "$tool" >/dev/null 2>&1 && return 0
    echo "this script needs $tool: $hint" >&2
    return 1
}

need_toolchain() {
    # rustup's cargo may be installed without being on the PATH of a fresh shell.
    if ! command -v cargo >/dev/null 2>&1 && [ -r "$HOME/.cargo/env" ]; then
        # shellcheck disable=SC1091
        . "$HOME/.cargo/env"
    fi
    need cargo "install it from https://rustup.rs" || exit 1
    need cc "install a C compiler, for example: apt-get install gcc libc6-dev" || exit 1
    need python3 "install Python 3, for example: apt-get install python3" || exit 1
}

step() {
    printf '\n== %s\n' "$1"
}
