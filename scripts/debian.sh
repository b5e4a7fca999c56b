# Packages of any release of Debian, unpacked into a folder: needs no root, and
# installs nothing. Sourced, after lib.sh.
# shellcheck shell=bash
#
# Whoever sources it sets these:
#   release   the release of Debian
#   arch      the architecture, as dpkg names it
#   folder    where all of it goes: the root is $folder/root
#   packages  what is to be there, with all that it depends on
# and calls fetch, then unpack. Exit status 3: it can't be fetched.
# shellcheck disable=SC2154

cannot_fetch() {
    printf '%s: cannot fetch %s: %s\n' "$name" "$release" "$1" >&2
    exit 3
}

# --- fetch -----------------------------------------------------------------

# DEBIAN_MIRROR, or the mirror that this system uses.
mirror() {
    local uris=${DEBIAN_MIRROR:-}
    # shellcheck disable=SC2016 # apt-get expands them
    [ -n "$uris" ] ||
        uris=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' |
            awk '$1 == "Debian" && $2 !~ /security/ { print $2 }')
    # In an image without lists of packages: the first of Debian's own sources.
    if [ -z "$uris" ] && is_debian; then
        uris=$(apt-get --print-uris update |
            sed -n "/security/d; s,^'\(.*\)/dists/.*InRelease'.*,\1,p")
    fi
    printf '%s\n' "${uris%%$'\n'*}"
}

# apt-get, with lists and a record of installed packages of its own: it takes
# nothing for installed, so that whatever is needed is downloaded.
apt() {
    apt-get -qq \
        -o APT::Architecture="$arch" -o APT::Architectures="$arch" \
        -o Dir::Etc::SourceList="$folder/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o Dir::State::Lists="$folder/apt/lists" -o Dir::State::Status="$folder/apt/status" \
        -o Dir::Cache="$folder/apt/cache" -o Dir::Cache::Archives="$folder/debs" \
        -o Debug::NoLocking=true -o APT::Sandbox::User="$(id -un)" \
        -o APT::Update::Error-Mode=any -o APT::Update::Post-Invoke::= \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o Acquire::http::Timeout=20 \
        -o APT::Install-Recommends=false "$@"
}

# A mirror may be between two states, or out of reach, for a moment.
thrice() {
    "$@" || { sleep 5 && "$@"; } || { sleep 20 && "$@"; }
}

fetch() {
    local source keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    for program in apt-get dpkg-deb; do
        command -v "$program" >/dev/null || cannot_fetch "it takes $program, which is not installed"
    done
    [ -e "$keyring" ] || cannot_fetch "$keyring is missing: install debian-archive-keyring"
    source=$(mirror)
    [ -n "$source" ] ||
        cannot_fetch "found no Debian mirror: set DEBIAN_MIRROR to the URL of one"
    say "fetching ${packages[*]} from Debian $release, $arch"
    rm -rf "$folder"
    mkdir -p "$folder"/{apt/lists,apt/cache,debs}/partial
    : >"$folder/apt/status"
    echo "deb [signed-by=$keyring] $source $release main" >"$folder/apt/sources.list"
    thrice apt update || cannot_fetch "apt-get update failed"
    thrice apt install --yes --download-only "${packages[@]}" || cannot_fetch "the download failed"
    rm -r "$folder/apt"
}

# --- unpack ----------------------------------------------------------------

# Its argument is a command that gets the root before it is complete.
unpack() {
    local into=$folder/root.part directory deb
    # /bin, /lib and so on are parts of /usr, in packages from before that, too.
    mkdir -p "$into"
    for directory in bin sbin lib lib64; do
        mkdir -p "$into/usr/$directory"
        ln -s "usr/$directory" "$into/$directory"
    done
    for deb in "$folder"/debs/*.deb; do
        dpkg-deb --fsys-tarfile "$deb" |
            tar -x -C "$into" --keep-directory-symlink --no-same-owner "${not_needed[@]}"
    done
    "$1" "$into"
    mv "$into" "$folder/root"
}

# What is left out is large, and nothing here reads it.
not_needed=(--exclude=./usr/share/{doc,locale,man} --exclude=botocore)
