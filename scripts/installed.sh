# What is installed, and where: one list, by which scripts/install, uninstall
# and deb all go. Also the settings that they share. Sourced, after lib.sh.
# shellcheck shell=bash

# DESTDIR         put before every path, for packages: nothing is used from there
# PREFIX          where the helper and the manual pages go: /usr/local
# FILTERDIR       where the filter goes: nbdkit's own folder of filters
# NBDKIT_VERSION  which nbdkit it is for: the installed one
# PAUSE_FILTER    the filter: target/release/libpause.so
# PAUSE_HELPER    the helper: target/release/nbdkit-pause
settings=(DESTDIR PREFIX FILTERDIR NBDKIT_VERSION PAUSE_FILTER PAUSE_HELPER CARGO_TARGET_DIR)

# Takes NAME=VALUE arguments, which count more than the environment.
take_settings() {
    local setting
    for setting; do
        [[ $setting == *=* && " ${settings[*]} " == *" ${setting%%=*} "* ]] ||
            die "$setting: not NAME=VALUE with one of the names ${settings[*]}"
        declare -g "$setting"
    done
    given=()
    for setting in "${settings[@]}"; do
        [ -z "${!setting:-}" ] || given+=("$setting=${!setting}")
    done
    PREFIX=${PREFIX:-/usr/local}
    if [ -z "${FILTERDIR:-}" ]; then
        FILTERDIR=$(nbdkit_says filterdir) ||
            die "nbdkit is not here to say where its filters are: install it, or give FILTERDIR=FOLDER"
    fi
    for setting in PREFIX FILTERDIR; do
        [[ ${!setting} == /* ]] || die "$setting=${!setting}: not an absolute path"
    done
    DESTDIR=$(realpath -m -- "${DESTDIR:-/}")
    PREFIX=$(realpath -ms -- "$PREFIX")
    FILTERDIR=$(realpath -ms -- "$FILTERDIR")
    # Each is followed by a slash.
    DESTDIR=${DESTDIR%/} PREFIX=${PREFIX%/} FILTERDIR=${FILTERDIR%/}
}

# A line for each file: its name here, its permissions, its path below DESTDIR.
installed_files() {
    cat <<END
filter       644 $FILTERDIR/nbdkit-libpause-filter.so
filter-page  644 $PREFIX/share/man/man1/nbdkit-libpause-filter.1
helper       755 $PREFIX/bin/nbdkit-pause
helper-page  644 $PREFIX/share/man/man1/nbdkit-pause.1
helper-bash  644 $PREFIX/share/bash-completion/completions/nbdkit-pause
helper-zsh   644 $PREFIX/share/zsh/site-functions/_nbdkit-pause
helper-fish  644 $PREFIX/share/fish/vendor_completions.d/nbdkit-pause.fish
END
}

# The record of the folders that were not there before, for scripts/uninstall.
# There is none if all were.
folders_made() { printf '%s\n' "$PREFIX/share/nbdkit-libpause/folders-made"; }

# What the installed nbdkit says of itself.
nbdkit_says() { nbdkit --dump-config 2>/dev/null | sed -n "s/^$1=//p" | grep .; }

# The version of nbdkit that a filter was built for, by nbdkit's own judgement:
# it loads the filter, or names that version as it refuses.
built_for() {
    local said
    if said=$(nbdkit --filter="$1" null --dump-plugin 2>&1); then
        nbdkit_says version
    elif [[ $said =~ \(_version\ =\ ([^,]+), ]]; then
        printf '%s\n' "${BASH_REMATCH[1]}"
    else
        die "nbdkit does not load $1: ${said:-there is no nbdkit here}"
    fi
}

# Whether none of these files belongs to a package of this system: that is for
# its package manager to replace and to take away.
are_no_packages() {
    local path owner
    [ -z "$DESTDIR" ] || return 0
    for path; do
        owner=$(dpkg-query --search "$path" 2>/dev/null || rpm -qf "$path" 2>/dev/null) || continue
        owner=${owner%%: *}
        die "$path belongs to the package $owner: leave it to that, or remove the package first"
    done
}

# Whether all of these folders, below DESTDIR, can be written to or made: found
# out before anything is touched.
can_be_written() {
    local folder refused=()
    for folder; do
        folder=$DESTDIR$folder
        # A folder that is missing is made in the one above.
        until [ -e "$folder" ] || [ -L "$folder" ] || [ -z "$folder" ]; do
            folder=${folder%/*}
        done
        folder=${folder:-/}
        [ -d "$folder" ] || die "$folder is in the way: it is not a folder"
        [[ -w $folder || " ${refused[*]} " == *" $folder "* ]] || refused+=("$folder")
    done
    [ "${#refused[@]}" -gt 0 ] || return 0
    local advice="give other folders: PREFIX, FILTERDIR, DESTDIR"
    # shellcheck disable=SC2154 # lib.sh sets $name
    [ "$(id -u)" = 0 ] || advice="sudo scripts/$name${given[*]:+ ${given[*]@Q}}; or $advice"
    die "can't write to ${refused[*]}. What may help: $advice"
}
