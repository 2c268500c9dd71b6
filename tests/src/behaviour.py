"""What SQLite does beside plain statements, case by case: `behaviour.py plain|EXTENSION DIRECTORY OUTSIDE MODE`.

Run once on plain files in WAL mode and once on replicated databases, it must print the same: one JSON object that
maps each case to what came of it. Cases that a replicated database answers otherwise by design say so in the Rust
test that compares the two.
"""

import json
import os
import sqlite3
import sys
import threading
import time
import traceback

import apsw

log = []
extension, directory, elsewhere, mode = sys.argv[1:]
# Before anything else is done with SQLite.
apsw.config(apsw.SQLITE_CONFIG_LOG, lambda code, text: log.append(text))
replicated = extension != "plain"
suffix = "?vfs=quire" if replicated else ""
FLAGS = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
# SQLite's threading mode, serialized or multi-thread.
FLAGS |= {"serialized": apsw.SQLITE_OPEN_FULLMUTEX, "multi": apsw.SQLITE_OPEN_NOMUTEX}[mode]
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def uri(name):
    return f"file:{directory}/{mode}-{name}.db{suffix}"


def outside(name):
    """A file that is no node's."""
    return f"file:{elsewhere}/{name}?vfs=unix"


def connect(name, flags=FLAGS):
    db = apsw.Connection(uri(name), flags=flags)
    db.set_busy_timeout(20_000)
    if not replicated and flags & apsw.SQLITE_OPEN_CREATE:
        db.execute("PRAGMA journal_mode = WAL").fetchall()
    return db


def rows(db, sql, bindings=()):
    return [list(row) for row in db.execute(sql, bindings)]


def error_of(function, *args):
    """The kind of error that a call ends in."""
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__
    return None


def sums(db, table="t"):
    return rows(db, f"SELECT count(*), sum(a), sum(length(b)) FROM {table}")


def sample(name, count=300):
    db = connect(name)
    db.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX t_b ON t(b)")
    db.execute(
        "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO t SELECT i, printf('%0200d', i) FROM n",
        (count,),
    )
    return db


@case
def forks():
    """Children with connections of their own, and a child that drops what it inherited, in mid-transaction."""
    db = sample("forks")
    found = []
    db.execute("BEGIN IMMEDIATE; INSERT INTO t VALUES (1000, 'parent')")
    child = os.fork()
    if child == 0:
        # What it has inherited is never used. It may read; it must wait for the parent to write.
        own = connect("forks")
        own.set_busy_timeout(0)
        code = sums(own)[0][0] == 300
        code = code and error_of(own.execute, "INSERT INTO t VALUES (2000, 'child')") == "BusyError"
        os._exit(0 if code else 1)
    found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    db.execute("INSERT INTO t VALUES (1001, 'parent'); COMMIT")
    children = []
    for n in range(3):
        child = os.fork()
        if child == 0:
            own = connect("forks")
            for i in range(5):
                own.execute("INSERT INTO t VALUES (?, 'child')", (3000 + 10 * n + i,))
            os._exit(0)
        children.append(child)
    for i in range(5):
        db.execute("INSERT INTO t VALUES (?, 'parent')", (4000 + i,))
    found += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return found + sums(db)


@case
def threads():
    """A connection for each thread, and then one for all of them."""
    sample("threads").close()
    failures = []

    def run(n, own):
        try:
            for i in range(10):
                own.execute("INSERT INTO t VALUES (?, 'thread')", (1000 * n + i,))
        except Exception as error:
            failures.append(repr(error))

    def all_at_once(connections):
        running = [threading.Thread(target=run, args=(n, own)) for n, own in connections]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    each = [(n, connect("threads")) for n in range(1, 5)]
    all_at_once(each)
    for _, own in each:
        own.close()
    # APSW lets no two threads in at a time; Python's module leaves that to SQLite, which serialises them. No file may be
    # open in both: each has a SQLite of its own, and POSIX locks are the process's.
    shared = sqlite3.connect(uri("threads"), uri=True, timeout=20, isolation_level=None, check_same_thread=False)
    all_at_once([(n, shared) for n in range(5, 9)])
    shared.close()
    return failures + sums(connect("threads"))


@case
def interrupts():
    """sqlite3_interrupt of a query, and of a statement that writes inside a transaction."""
    db = sample("interrupts")
    endless = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n) "

    def interrupted(sql):
        stop = threading.Event()

        def later():
            # Again and again: one that comes before the statement has begun is lost.
            while not stop.wait(0.05):
                db.interrupt()

        thread = threading.Thread(target=later)
        thread.start()
        result = error_of(lambda: db.execute(sql).fetchall())
        stop.set()
        thread.join()
        return result

    found = [interrupted(endless + "SELECT count(*) FROM n"), sums(db)]
    db.execute("BEGIN; INSERT INTO t VALUES (1000, 'first')")
    found.append(interrupted(endless + "INSERT INTO t SELECT 10000 + i, randomblob(100) FROM n"))
    found.append(db.in_transaction)
    if db.in_transaction:
        db.execute("COMMIT")
    db.execute("INSERT INTO t VALUES (1001, 'later')")
    return found + [sums(db), rows(db, "PRAGMA integrity_check")]


@case
def backup_out():
    """The backup API from a database into a file, beside a writer."""
    db = sample("backup_out")
    copy = apsw.Connection(outside("backup_out.db"), flags=FLAGS)
    with copy.backup("main", db, "main") as backup:
        backup.step(3)
        connect("backup_out").execute("INSERT INTO t VALUES (1000, 'meanwhile')")
        while not backup.done:
            backup.step(5)
    return [sums(copy), rows(copy, "PRAGMA integrity_check"), rows(copy, "PRAGMA journal_mode")]


@case
def backup_in():
    """The backup API into a database that has something else in it, and from a source of another page size."""
    db = sample("backup_in")
    source = apsw.Connection(":memory:")
    source.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE u(x)")
    source.execute("INSERT INTO t VALUES (1, 'one'), (2, 'two')")
    watcher = connect("backup_in")
    with db.backup("main", source, "main") as backup:
        backup.step(1)
        before = sums(watcher)
        while not backup.done:
            backup.step(1)
    found = [before, sums(watcher), rows(watcher, "SELECT name FROM sqlite_schema ORDER BY name")]
    found += [rows(db, "PRAGMA integrity_check"), rows(watcher, "PRAGMA journal_mode")]
    other = apsw.Connection(":memory:")
    other.execute("PRAGMA page_size = 8192; CREATE TABLE v(x)")

    def another_page_size():
        with db.backup("main", other, "main") as backup:
            backup.step(-1)

    return found + [error_of(another_page_size), sums(watcher)]


@case
def vacuums():
    """VACUUM, VACUUM INTO, auto_vacuum and incremental_vacuum."""
    db = sample("vacuums")
    found = [rows(db, "PRAGMA page_count")]
    db.execute("DELETE FROM t WHERE a > 50; VACUUM")
    found += [rows(db, "PRAGMA page_count"), sums(db)]
    db.execute("PRAGMA auto_vacuum = INCREMENTAL; VACUUM")
    db.execute("INSERT INTO t SELECT a + 1000, b FROM t; DELETE FROM t WHERE a > 1000")
    found += [rows(db, "PRAGMA auto_vacuum"), rows(db, "PRAGMA freelist_count")]
    db.execute("PRAGMA incremental_vacuum").fetchall()
    found += [rows(db, "PRAGMA freelist_count"), rows(db, "PRAGMA page_count")]
    db.execute("VACUUM INTO ?", (outside("vacuums.db"),))
    copy = apsw.Connection(outside("vacuums.db"), flags=FLAGS)
    found += [sums(copy), rows(copy, "PRAGMA integrity_check")]
    db.execute("BEGIN")
    found.append(error_of(db.execute, "VACUUM"))
    db.execute("COMMIT")
    return found + [sums(db), rows(db, "PRAGMA integrity_check")]


@case
def serializes():
    """The bytes of a database, and a connection whose database is replaced by others."""
    db = sample("serializes")
    image = db.serialize("main")
    copy = apsw.Connection(":memory:")
    copy.deserialize("main", image)
    found = [len(image), image[18:20].hex(), error_of(sums, copy)]
    # A copy in memory can't be in WAL mode.
    copy = apsw.Connection(":memory:")
    copy.deserialize("main", image[:18] + b"\1\1" + image[20:])
    found += [sums(copy), rows(copy, "PRAGMA integrity_check")]
    other = connect("serializes")
    other.deserialize("main", copy.serialize("main"))
    other.execute("DELETE FROM t")
    return found + [sums(other), sums(db), sums(connect("serializes"))]


@case
def blobs():
    """Incremental I/O: in a transaction, by itself, with a handle that has expired."""
    db = sample("blobs")
    db.execute("INSERT INTO t VALUES (1000, zeroblob(100000)), (1001, zeroblob(10))")
    found = []
    blob = db.blob_open("main", "t", "b", 1000, False)
    blob.seek(50_000)
    found += [blob.length(), blob.read(4).hex(), error_of(blob.write, b"x"), error_of(blob.close)]
    # The index on the column makes it read-only; without it there is nothing in the way.
    found.append(error_of(db.blob_open, "main", "t", "b", 1000, True))
    db.execute("DROP INDEX t_b")
    with db.blob_open("main", "t", "b", 1000, True) as blob:
        for offset in (0, 4090, 99_996):
            blob.seek(offset)
            blob.write(b"quir")
        blob.reopen(1001)
        blob.write(b"reopened")
    blob = db.blob_open("main", "t", "b", 1001, True)
    found += [error_of(blob.write, b"much too long"), error_of(blob.close)]
    db.execute("BEGIN")
    with db.blob_open("main", "t", "b", 1000, True) as blob:
        blob.write(b"gone")
    db.execute("ROLLBACK")
    blob = db.blob_open("main", "t", "b", 1000, True)
    db.execute("UPDATE t SET a = 2000 WHERE a = 1000")
    found.append(error_of(blob.write, b"expired"))
    error_of(blob.close)
    other = connect("blobs")
    return found + rows(other, "SELECT a, length(b), hex(substr(b, 1, 8)) FROM t WHERE a > 300")


@case
def temporary():
    """Temporary tables, triggers and views, in files and in memory: nobody else sees or hears of them."""
    db = sample("temporary")
    found = []
    for store in ("FILE", "MEMORY"):
        db.execute(f"PRAGMA temp_store = {store}; PRAGMA cache_size = 10; PRAGMA cache_spill = 5")
        db.execute("CREATE TEMP TABLE s AS SELECT a, b FROM t")
        db.execute("CREATE TEMP TRIGGER g AFTER INSERT ON t BEGIN INSERT INTO s VALUES (new.a, 'trigger'); END")
        db.execute("CREATE TEMP VIEW v AS SELECT * FROM s JOIN t USING (a)")
        db.execute("INSERT INTO t VALUES ((SELECT max(a) + 1 FROM t), 'temp'); DELETE FROM s WHERE a % 2")
        found += [sums(db), sums(db, "s"), rows(db, "SELECT count(*) FROM v")]
        db.execute("BEGIN; UPDATE s SET b = 'x'; SAVEPOINT p; DELETE FROM s; ROLLBACK TO p; COMMIT")
        found += [sums(db, "s"), rows(connect("temporary"), "SELECT count(*) FROM sqlite_schema")]
        db.execute("DROP VIEW v; DROP TABLE s; DROP TRIGGER IF EXISTS g")
    # A sorter and a statement journal that spill.
    db.execute("CREATE TABLE w AS SELECT randomblob(500) AS r FROM t, (SELECT 1 FROM t LIMIT 20)")
    found.append(rows(db, "SELECT count(*) FROM (SELECT r FROM w ORDER BY r LIMIT -1 OFFSET 100)"))
    db.execute("CREATE UNIQUE INDEX w_r ON w(r)")
    found.append(error_of(db.execute, "INSERT INTO w SELECT r FROM w"))
    return found + [rows(db, "SELECT count(*) FROM w"), rows(db, "PRAGMA integrity_check")]


@case
def attached_memory():
    """A transaction over the database and one in memory."""
    db = sample("attached_memory")
    db.execute("ATTACH ':memory:' AS m; CREATE TABLE m.t(a, b)")
    db.execute("BEGIN; INSERT INTO m.t SELECT * FROM main.t; DELETE FROM main.t WHERE a > 100; COMMIT")
    found = [sums(db, "main.t"), sums(db, "m.t")]
    db.execute("BEGIN; INSERT INTO main.t SELECT * FROM m.t WHERE a > 100; DELETE FROM m.t; ROLLBACK")
    found += [sums(db, "main.t"), sums(db, "m.t")]
    db.execute("BEGIN IMMEDIATE; INSERT INTO m.t SELECT * FROM main.t; COMMIT")
    memory = apsw.Connection(":memory:", flags=FLAGS)
    memory.execute("ATTACH ? AS d", (uri("attached_memory"),))
    memory.execute("CREATE TABLE t(a, b); INSERT INTO t SELECT * FROM d.t; UPDATE d.t SET b = 'attached'")
    return found + [sums(db, "m.t"), sums(memory), sums(db), rows(memory, "PRAGMA d.journal_mode")]


@case
def attached_reading():
    """Two databases in one connection: reading over both, writing to one at a time."""
    db = sample("attached_a", 40)
    sample("attached_b", 30).close()
    db.execute("ATTACH ? AS b", (uri("attached_b"),))
    found = rows(db, "SELECT count(*) FROM main.t JOIN b.t USING (a)")
    db.execute("BEGIN; INSERT INTO main.t SELECT a + 100, b FROM b.t; COMMIT")
    db.execute("BEGIN; INSERT INTO b.t SELECT a + 1000, b FROM main.t; ROLLBACK")
    db.execute("INSERT INTO b.t SELECT a + 1000, b FROM main.t")
    found += [sums(db, "main.t"), sums(db, "b.t"), sums(connect("attached_b"))]
    db.execute("DETACH b")
    return found + [sums(db)]


@case
def attached_writing():
    """A transaction that writes to two databases."""
    db = connect("attached_a")
    db.execute("ATTACH ? AS b", (uri("attached_b"),))
    before = [sums(db, "main.t"), sums(db, "b.t")]
    found = []
    db.execute("BEGIN; DELETE FROM main.t WHERE a = 1")
    found.append(error_of(db.execute, "DELETE FROM b.t WHERE a = 1"))
    # It may go on with the one, or not at all.
    found.append(db.in_transaction)
    db.execute("ROLLBACK")
    found.append(error_of(db.execute, "BEGIN IMMEDIATE"))
    if db.in_transaction:
        db.execute("ROLLBACK")
    found.append([sums(db, "main.t"), sums(db, "b.t")] == before)
    # Two connections, each with a database of its own: as many as one likes.
    one, two = connect("attached_a"), connect("attached_b")
    one.execute("BEGIN IMMEDIATE; DELETE FROM t WHERE a = 2")
    two.execute("BEGIN IMMEDIATE; DELETE FROM t WHERE a = 2")
    one.execute("COMMIT")
    two.execute("COMMIT")
    db.execute("DELETE FROM b.t WHERE a = 3")
    db.execute("DELETE FROM main.t WHERE a = 3")
    return found + [sums(db, "main.t"), sums(db, "b.t")]


@case
def checkpoints_and_hooks():
    """What an app may ask of a WAL, and hooks that it may set."""
    db = sample("hooks")
    seen = []
    db.set_wal_hook(lambda _, name, pages: seen.append(("wal", name, pages > 0)) or apsw.SQLITE_OK)
    db.set_commit_hook(lambda: seen.append("commit") or False)
    db.set_rollback_hook(lambda: seen.append("rollback"))
    db.set_update_hook(lambda kind, name, table, row: seen.append((kind, name, table, row)))
    db.execute("INSERT INTO t VALUES (1000, 'hook')")
    db.execute("BEGIN; DELETE FROM t WHERE a = 1000; ROLLBACK")
    db.set_commit_hook(lambda: True)
    seen.append(error_of(db.execute, "DELETE FROM t"))
    db.set_commit_hook(None)
    return seen + [sums(db), db.total_changes(), rows(db, "PRAGMA data_version") != []]


@case
def read_only():
    """Connections that only read."""
    db = sample("read_only")
    reader = connect("read_only", apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    found = [sums(reader), error_of(reader.execute, "DELETE FROM t"), reader.readonly("main")]
    db.execute("PRAGMA query_only = ON")
    found.append(error_of(db.execute, "DELETE FROM t"))
    missing = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
    return found + [error_of(connect, "nothing_here", missing), sums(reader)]


@case
def standard_module():
    """Python's own module, another SQLite in the same process: rows, blobs, backup, its transactions."""
    connect("standard").execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    db = sqlite3.connect(uri("standard"), uri=True, timeout=20)
    with db:
        db.executemany("INSERT INTO t(b) VALUES (?)", [("x" * n,) for n in range(20)])
    try:
        with db:
            db.execute("DELETE FROM t")
            raise KeyError
    except KeyError:
        pass
    copy = sqlite3.connect(":memory:")
    db.backup(copy, pages=1)
    found = [db.execute("SELECT count(*), total(length(b)) FROM t").fetchone(), copy.total_changes]
    found.append(copy.execute("SELECT count(*) FROM t").fetchone())
    with db:
        copy.execute("DELETE FROM t WHERE a > 5")
        copy.commit()
    copy.backup(db)
    return [*map(list, found[::2]), list(db.execute("SELECT count(*) FROM t").fetchone())]


if replicated:
    for loader in (apsw.Connection(":memory:"), sqlite3.connect(":memory:")):
        loader.enable_load_extension(True)
        loader.load_extension(extension)

results = {}
for name, function in CASES.items():
    began = time.monotonic()
    try:
        results[name] = function()
    except Exception:
        results[name] = traceback.format_exc()
    print(f"{name}: {time.monotonic() - began:.2f} s", file=sys.stderr)
print(json.dumps({"results": results, "log": log}))
