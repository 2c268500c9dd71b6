"""An app of the chaos tests: Debian's Python with its own SQLite, which loads the extension.

One request per line of standard input, as JSON, and one answer per line of standard output:

  {"path": FILE, "begin": "BEGIN IMMEDIATE" | "BEGIN", "reads": LEVEL, "statements": [[SQL, VALUE...]...], "hold": MS}
  {"done": [ROWS...]} | {"refused": WHY} | {"unknown": WHY}

`hold` is how long the transaction stands open before its COMMIT. `refused` is definite. Between the lines nothing is open but the connections.
"""

import ctypes
import json
import os
import sys
import time

# SQLite's error log, in which the VFS says why; it has to be set before SQLite is initialised.
reasons = []
LOG = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)


@LOG
def log(_, code, text):
    reasons.append(text.decode(errors="replace"))


library = ctypes.CDLL("libsqlite3.so.0")
library.sqlite3_config(16, log, ctypes.c_void_p(None))

import sqlite3  # noqa: E402

loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
TIMEOUT = float(sys.argv[2])
databases = {}


def connection(path):
    directory = os.path.dirname(path)
    for old in [old for old in databases if os.path.dirname(old) != directory]:
        databases.pop(old).close()
    if path not in databases:
        database = sqlite3.connect(f"file:{path}?vfs=quire", uri=True, timeout=TIMEOUT, isolation_level=None)
        # Opens it.
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        databases[path] = database
    return databases[path]


def run(request):
    reasons.clear()
    database = None
    try:
        database = connection(request["path"])
        database.execute("PRAGMA quire_reads = " + request["reads"]).fetchall()
        database.execute(request["begin"])
        rows = [database.execute(sql, values).fetchall() for sql, *values in request["statements"]]
        time.sleep(request["hold"] / 1000)
    except sqlite3.Error as error:
        rollback(database)
        return {"refused": "; ".join([str(error), *reasons])}
    reasons.clear()
    try:
        database.execute("COMMIT")
        return {"done": rows}
    except sqlite3.Error as error:
        said = list(reasons)
        rollback(database)
        unknown = not said or any("outcome of transaction" in reason for reason in said)
        return {"unknown" if unknown else "refused": "; ".join(["COMMIT: " + str(error), *said])}


def rollback(database):
    if database is not None and database.in_transaction:
        try:
            database.execute("ROLLBACK")
        except sqlite3.Error:
            pass


for line in sys.stdin:
    os.write(1, (json.dumps(run(json.loads(line))) + "\n").encode())
