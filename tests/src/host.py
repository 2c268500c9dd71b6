"""A SQLite app for the tests, driven by JSON lines: `host.py sqlite3|apsw`.

It knows nothing of Quire but the extension and the connection string. Each request is answered by one line,
`{"rows": [...]}` or `{"error": "..."}`; what SQLite logs comes in between, as `{"log": "..."}`.
"""

import json
import sys
import threading

out = threading.Lock()


def say(message):
    with out:
        print(json.dumps(message), flush=True)


if sys.argv[1] == "apsw":
    import apsw

    apsw.config(apsw.SQLITE_CONFIG_LOG, lambda code, text: say({"log": f"({code}) {text}"}))
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI

    def connect(database):
        return apsw.Connection(database, flags=flags)

    def load(db):
        db.enable_load_extension(True)

    def run(db, sql):
        return [list(row) for row in db.execute(sql)]

    def open_blob(db, table, column, row):
        return db.blob_open("main", table, column, row, True)
else:
    import sqlite3

    def connect(database):
        return sqlite3.connect(database, uri=True, isolation_level=None, check_same_thread=False, timeout=0)

    def load(db):
        db.enable_load_extension(True)

    def run(db, sql):
        rows, statement = [], ""
        for piece in sql.split(";"):
            statement += piece + ";"
            if sqlite3.complete_statement(statement):
                rows += [list(row) for row in db.execute(statement)]
                statement = ""
        return rows

    def open_blob(db, table, column, row):
        return db.blobopen(table, column, row)


def text(row):
    return "|".join("" if value is None else str(value) for value in row)


def contend(db, first, count):
    """Writes transactions of three equal rows; the busy timeout is all that makes writers wait."""
    for n in range(first, first + count):
        while True:
            try:
                run(db, "BEGIN IMMEDIATE")
                break
            except Exception as error:
                if "locked" not in str(error):
                    raise
        run(db, f"INSERT INTO t VALUES ({n}, 'a'), ({n}, 'b')")
        run(db, f"INSERT INTO t VALUES ({n}, 'c')")
        run(db, "COMMIT")


class Background(threading.Thread):
    """Runs a function; its failure is kept."""

    def __init__(self, function, *args):
        super().__init__(daemon=True)
        self.function, self.args, self.failure = function, args, None
        self.start()

    def run(self):
        try:
            self.function(*self.args)
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"


class Watch:
    """Reads in a loop: counts must be of whole transactions, and never go back."""

    def __init__(self, database):
        self.database, self.stop, self.reads, self.last = database, threading.Event(), 0, 0
        self.thread = Background(self.loop)

    def loop(self):
        torn = "SELECT count(*) FROM (SELECT 1 FROM t GROUP BY n HAVING count(*) <> 3)"
        db = connect(self.database)
        while not self.stop.is_set():
            [[count, found]] = run(db, f"SELECT count(*), ({torn}) FROM t")
            if count % 3 or found or count < self.last:
                raise ValueError(f"read {count} rows, {found} incomplete numbers, after {self.last} rows")
            self.last = count
            self.reads += 1
            # Not to starve the writers of a small machine.
            self.stop.wait(0.003)


connections, watch = {}, None


def serve(request):
    global watch
    db = connections.get(request.get("on", "main"))
    if "load" in request:
        loader = connect(":memory:")
        load(loader)
        extension, entry = request["load"]
        run(loader, f"SELECT load_extension('{extension}', '{entry}')")
        return []
    if "open" in request:
        name = request.get("as", "main")
        connections.pop(name, None)
        connections[name] = connect(request["open"])
        return []
    if "sql" in request:
        return [text(row) for row in run(db, request["sql"])]
    if "contend" in request:
        names, first, count = request["contend"]
        threads = [Background(contend, connections[name], first + i * count, count) for i, name in enumerate(names)]
        for thread in threads:
            thread.join()
        for thread in threads:
            if thread.failure:
                raise ValueError(thread.failure)
        return []
    if "watch" in request:
        watch = Watch(request["watch"])
        return []
    if "watched" in request:
        watch.stop.set()
        watch.thread.join()
        if watch.thread.failure:
            raise ValueError(watch.thread.failure)
        return [f"{watch.reads}|{watch.last}"]
    if "blob" in request:
        table, column, row, offset, data = request["blob"]
        with open_blob(db, table, column, row) as blob:
            blob.seek(offset)
            blob.write(data.encode())
        return []
    if "delete" in request:
        apsw.VFS("deleter", base="quire").xDelete(request["delete"], False)
        return []
    raise ValueError(f"unknown request {request}")


for line in sys.stdin:
    try:
        say({"rows": serve(json.loads(line))})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
