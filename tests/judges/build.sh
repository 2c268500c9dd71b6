#!/usr/bin/env bash
# build.sh SOURCE DIRECTORY: builds SQLite's `testfixture`, with names.c, from its source tree, in a directory of its own.
# For a short build rather than a fast program.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [[ $1 = --link ]]; then
    # The Makefile has libtool compile all sources in one call. Here each is compiled by itself, on all processors.
    shift
    sources=() objects=() rest=()
    for word in "$@"; do
        if [[ $word = -o || $word = testfixture ]]; then
            continue
        elif [[ $word = *.c ]]; then
            sources+=("$word") objects+=("objects/$(basename "$word" .c).o")
        else
            rest+=("$word")
        fi
    done
    mkdir -p objects
    # shellcheck disable=SC2016
    printf '%s\n' "${sources[@]}" | xargs -d '\n' -I{} -P "$(nproc)" bash -c \
        'source=$1; shift; "$@" -c -o "objects/$(basename "$source" .c).o" "$source"' _ {} "${rest[@]}"
    exec "${rest[@]:0:1}" -o testfixture "${objects[@]}" "${rest[@]:1}"
fi
source=$(cd "$1" && pwd)
mkdir -p "$2"
cd "$2"
"$source/configure" -q --with-tcl=/usr/lib/tcl8.6 --disable-shared --disable-readline CFLAGS='-O0 -w' >configure.log 2>&1
make -s testfixture OPTS=-DSQLITE_EXTRA_INIT=fixture_names LTLINK="bash $here/build.sh --link \$(TCC)" LIBS="$here/names.c" >make.log 2>&1 ||
    { tail -20 make.log >&2; exit 1; }
