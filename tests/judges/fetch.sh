#!/usr/bin/env bash
# fetch.sh DIRECTORY: SQLite's source tree, which has its test programs, from the distribution's source package. Needs no
# root, and changes nothing of the system's apt.
set -euo pipefail
dir=$1
mkdir -p "$dir/apt/lists/partial" "$dir/apt/cache/archives/partial"
# shellcheck source=/dev/null
. /etc/os-release
case $ID in
    debian) uri=http://deb.debian.org/debian ;;
    ubuntu) uri=http://archive.ubuntu.com/ubuntu ;;
    *) echo "no source packages known for $ID" >&2; exit 1 ;;
esac
echo "deb-src [signed-by=/usr/share/keyrings/$ID-archive-keyring.gpg] $uri $VERSION_CODENAME main" >"$dir/apt/sources.list"
apt() {
    apt-get -qq -o "Dir::Etc::SourceList=$dir/apt/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o "Dir::State::Lists=$dir/apt/lists" -o "Dir::Cache=$dir/apt/cache" -o APT::Sandbox::User=root "$@"
}
cd "$dir"
apt update
apt source --download-only --tar-only sqlite3
tar xf sqlite3_*.orig.tar.xz
rm -rf apt sqlite3_*
mv sqlite3-* source
