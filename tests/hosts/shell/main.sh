#!/usr/bin/env bash
# sqlite3, the command line tool: a process for each statement.
set -u
extension=$1
shift
nodes=("$@")

# sql NODE PARAMETERS: runs the statements of standard input. Where `.open` fails, the tool says so and goes on with an
# empty database in memory, so that what it says must be looked at.
sql() {
    local said status
    said=$({ printf '.load %s\n.timeout 300\n.open file:%s?vfs=quire%s\n' "$extension" "${nodes[$1]}" "$2"; cat; } |
        sqlite3 -batch -bail 2>&1)
    status=$?
    echo "$said"
    ((status == 0)) && [[ $said != *"unable to open database"* ]]
}

write() {
    local deadline=$((SECONDS + 60)) said at=$(($1 % ${#nodes[@]}))
    until said=$(sql "$at" "" <<<"
        BEGIN IMMEDIATE;
        CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, who TEXT);
        INSERT OR IGNORE INTO t VALUES ($1, 'shell');
        COMMIT;"); do
        ((SECONDS < deadline)) || { echo "write $1: $said" >&2; exit 1; }
        at=$(((at + 1) % ${#nodes[@]}))
        sleep 0.05
    done
    echo "wrote $1"
}

read_all() {
    local i said
    for i in "${!nodes[@]}"; do
        said=$(sql "$i" "&reads=linearizable" <<<"SELECT 'node $i ' || count(*) || ' ' || sum(n) FROM t;") ||
            { echo "read on node $i: $said" >&2; exit 1; }
        echo "$said"
    done
    echo "done"
}

while read -r what first last; do
    case $what in
        write) for ((n = first; n <= last; n++)); do write "$n"; done ;;
        read) read_all ;;
    esac
done
