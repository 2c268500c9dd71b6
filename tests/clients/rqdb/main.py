"""rqdb: a client for Python that knows several hosts, bulk requests and the levels of reads."""

import sys
import time

import rqdb
import steps
from rqdb.errors import DBError, MaxAttemptsError, UnexpectedResponse

hosts = sys.argv[1:]


def example(hosts):
    db = rqdb.connect(hosts, timeout=30)
    cursor = db.cursor()
    cursor.execute("CREATE TABLE IF NOT EXISTS rqdb_foo (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)")
    # One transaction, with parameters for each statement.
    cursor.executemany2(
        ("INSERT INTO rqdb_foo(name, age) VALUES(?, ?)", "INSERT INTO rqdb_foo(name, age) VALUES(?, ?)"),
        (("fiona", 20), ("declan", 22)),
        transaction=True,
    )
    cursor.execute("SELECT name FROM rqdb_foo WHERE age > ?", (20,), read_consistency="linearizable")
    return cursor.fetchall()


db = rqdb.connect(hosts, timeout=30, log=False)


def check():
    cursor = db.cursor()
    assert cursor.execute("SELECT 1").results == [[1]]
    assert ":".join(map(str, db.discover_leader())) == hosts[0]
    yield "connect"
    cursor.execute("CREATE TABLE rqdb_types (i INTEGER, r REAL, t TEXT, b BLOB, n TEXT, o BOOLEAN)")
    assert [row[1] for row in cursor.execute("SELECT * FROM pragma_table_info('rqdb_types')").results] == list("irtbno")
    yield "ddl"
    assert example(hosts) == [["declan"]]
    done = cursor.execute("INSERT INTO rqdb_foo(name) VALUES(?)", ("ann",))
    assert (done.last_insert_id, done.rows_affected) == (3, 1)
    assert cursor.execute("SELECT id FROM rqdb_foo WHERE age IS ?", (None,)).results == [[3]]
    yield "parameters"
    # It has no parameters for BLOBs; they come as base64.
    values = (2**63 - 1, -1.5, "it's 5 o'clock \u20ac \U0001f600", None, True)
    cursor.execute("INSERT INTO rqdb_types VALUES(?, ?, ?, x'00ff', ?, ?)", values)
    row = cursor.execute("SELECT * FROM rqdb_types").results[0]
    assert row == [*values[:3], "AP8=", *values[3:]], row
    yield "types"
    both = ("INSERT INTO rqdb_foo(id, name) VALUES(10, 'new')", "INSERT INTO rqdb_foo(id, name) VALUES(1, 'taken')")
    result = cursor.executemany3([(sql, ()) for sql in both], transaction=True, raise_on_error=False)
    assert result[1].error == "UNIQUE constraint failed: rqdb_foo.id", result
    mixed = cursor.executeunified2(("SELECT count(*) FROM rqdb_foo", "DELETE FROM rqdb_foo WHERE id = ?"), ((), (3,)))
    assert (mixed[0].results, mixed[1].rows_affected) == ([[3]], 1), mixed
    yield "transactions"
    for sql, test in [
        ("INSERT INTO rqdb_foo(id) VALUES(1)", lambda why: why.is_unique),
        ("nonsense really", lambda why: why.is_syntax),
        ("SELECT * FROM rqdb_none", lambda why: why.raw_message == "no such table: rqdb_none"),
    ]:
        try:
            cursor.execute(sql)
        except DBError as why:
            assert test(why), why
        else:
            raise AssertionError(sql)
    try:
        # No node has heard of the leader so lately; the leader itself is always fresh.
        cursor.execute("SELECT 1", read_consistency="none", freshness="1ns")
    except DBError as why:
        assert why.is_stale, why
    yield "errors"


def write(n):
    # It goes through its hosts, and has each redirect it to the leader. While that is dead and no other elected, it has
    # soon been at all of them, and gives up.
    deadline = time.monotonic() + steps.PATIENCE
    while True:
        try:
            cursor = db.cursor()
            cursor.execute("CREATE TABLE IF NOT EXISTS rqdb_t (n INTEGER PRIMARY KEY)")
            cursor.execute("INSERT OR IGNORE INTO rqdb_t VALUES(?)", (n,))
            return
        except (MaxAttemptsError, UnexpectedResponse, DBError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def read():
    sql = "SELECT count(*), sum(n) FROM rqdb_t"
    return db.cursor().execute(sql, read_consistency="linearizable").results[0]


steps.run(check, write, read)
