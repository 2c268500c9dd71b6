"""A stock app for the crash tests: Debian's Python with its own SQLite, which loads the extension.

It obeys commands from standard input, one per line, and says on standard output what came of each:

  open PATH TIMEOUT   open | closed WHY      connects; TIMEOUT is the busy timeout in seconds
  write N             try N, then a verdict  one transaction with the number N
  load N              ditto, for N, N+1, ... until the next command
  hold N              held N | verdict       the transaction without its COMMIT
  commit              sent N, then a verdict the COMMIT
  sql TEXT            row A|B..., then done | failed WHY
  fork                child PID, later childdone: a child that uses the inherited connection and exits
  beget               child PID              a child that does nothing and outlives its parent
  quit                closes and ends

A verdict is `ack N S`, or `busy N S WHY` (nothing was proposed), `refused N S WHY` (it definitely isn't
committed) or `unknown N S WHY`; S is how long it took, in seconds.
"""

import ctypes
import os
import queue
import sys
import threading
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

PARTS = 4
EXTENSION = sys.argv[1]
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(EXTENSION)
db = None
held = None
commands = queue.Queue()


def say(*words):
    line = " ".join(str(word) for word in words).replace("\n", " ") + "\n"
    os.write(1, line.encode())


def read_commands():
    for line in sys.stdin:
        commands.put(line.rstrip("\n"))
    commands.put("quit")


def open_database(path, timeout):
    global db
    db = None
    reasons.clear()
    try:
        # No statement opens a transaction behind our back.
        fresh = sqlite3.connect(f"file:{path}?vfs=quire", uri=True, timeout=float(timeout), isolation_level=None)
        fresh.execute("SELECT count(*) FROM sqlite_master").fetchone()
        db = fresh
        say("open")
    except sqlite3.Error as error:
        say("closed", error, *reasons)


def begin(n):
    global started
    started = time.monotonic()
    say("try", n)
    reasons.clear()
    try:
        db.execute("BEGIN IMMEDIATE")
        for part in range(PARTS):
            db.execute("INSERT INTO log VALUES (?, ?, randomblob(3000))", (n, part))
        db.execute("UPDATE total SET n = n + 1")
        return True
    except sqlite3.Error as error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        verdict("busy", n, error, *reasons)
        return False


def commit(n):
    reasons.clear()
    say("sent", n)
    try:
        db.execute("COMMIT")
        verdict("ack", n)
    except sqlite3.Error as error:
        said = list(reasons)
        if db.in_transaction:
            db.execute("ROLLBACK")
        unknown = not said or any("outcome of transaction" in reason for reason in said)
        verdict("unknown" if unknown else "refused", n, error, *said)


def verdict(word, n, *why):
    say(word, n, f"{time.monotonic() - started:.3f}", *why)


def sql(text):
    try:
        for row in db.execute(text):
            say("row", "|".join(str(value) for value in row))
        say("done")
    except sqlite3.Error as error:
        say("failed", error, *reasons)


def fork():
    child = os.fork()
    if child == 0:
        # The child reads over what it inherited and closes it, as at the end of a careless worker.
        try:
            db.execute("SELECT count(*) FROM log").fetchone()
            db.close()
        except sqlite3.Error:
            pass
        os._exit(0)
    say("child", child)
    os.waitpid(child, 0)
    say("childdone")


def beget():
    child = os.fork()
    if child == 0:
        os.close(0)
        os.close(1)
        time.sleep(600)
        os._exit(0)
    say("child", child)


threading.Thread(target=read_commands, daemon=True).start()
say("ready", sqlite3.sqlite_version)
while True:
    word, _, rest = commands.get().partition(" ")
    if word == "open":
        open_database(*rest.rsplit(" ", 1))
    elif word == "write":
        if begin(int(rest)):
            commit(int(rest))
    elif word == "load":
        n = int(rest)
        while commands.empty():
            if begin(n):
                commit(n)
            else:
                time.sleep(0.05)
            n += 1
        say("loaded", n)
    elif word == "hold":
        held = int(rest)
        if begin(held):
            say("held", held)
    elif word == "commit":
        commit(held)
    elif word == "sql":
        sql(rest)
    elif word == "fork":
        fork()
    elif word == "beget":
        beget()
    elif word == "quit":
        if db is not None:
            db.close()
        break
