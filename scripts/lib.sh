# What the scripts share: where the project is, and how they speak. Sourced.
# shellcheck shell=bash

# shellcheck disable=SC2034 # for the script that sources this
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
name=${0##*/}

# A rustup installed a moment ago is not yet in the PATH of this shell, mke2fs is in
# a directory that only root's PATH has, and Ubuntu's rustc-1.85 in one of its own.
PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/sbin:/sbin
PATH=$PATH$(printf '%s\n' /usr/lib/rust-*/bin | sort -rV | sed -n '/[*]/!s/^/:/p' | tr -d '\n')
export PATH

say() { printf '%s: %s\n' "$name" "$*"; }

die() {
    printf '%s: %s\n' "$name" "$*" >&2
    exit 1
}

is_debian() { grep -qsx 'ID=debian' /etc/os-release; }

# Where cargo puts what it builds, as an absolute path.
target_directory() { realpath -m -- "${CARGO_TARGET_DIR:-$root/target}"; }
