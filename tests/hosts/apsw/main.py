"""APSW, which has a SQLite of its own and shows its error log."""

import sys

import apsw

import steps

extension, *nodes = sys.argv[1:]

loader = apsw.Connection(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)

FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI


def connect(node, parameters=""):
    db = apsw.Connection(f"file:{node}?vfs=quire{parameters}", flags=FLAGS)
    db.set_busy_timeout(300)
    return db


def write(node, n):
    db = connect(node)
    with db:
        db.execute("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, who TEXT)")
        db.execute("INSERT OR IGNORE INTO t VALUES (?, 'apsw')", (n,))


def read(node):
    return connect(node, "&reads=linearizable").execute("SELECT count(*), sum(n) FROM t").fetchone()


steps.run(nodes, apsw.Error, write, read)
