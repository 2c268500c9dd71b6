"""Python's module sqlite3."""

import sqlite3
import sys

import steps

extension, *nodes = sys.argv[1:]

loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)  # It stays loaded in the process.

open_now = {}


def connect(node, parameters=""):
    return sqlite3.connect(f"file:{node}?vfs=quire{parameters}", uri=True, timeout=0.3)


def write(node, n):
    try:
        db = open_now.get(node) or open_now.setdefault(node, connect(node))
        with db:
            db.execute("CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, who TEXT)")
            db.execute("INSERT OR IGNORE INTO t VALUES (?, 'python')", (n,))
    except sqlite3.Error:
        if node in open_now:
            open_now.pop(node).close()
        raise


def read(node):
    db = connect(node, "&reads=linearizable")
    return db.execute("SELECT count(*), sum(n) FROM t").fetchone()


steps.run(nodes, sqlite3.Error, write, read)
