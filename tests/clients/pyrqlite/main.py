"""pyrqlite: the database interface of Python (PEP 249)."""

import sys

import pyrqlite.dbapi2 as dbapi2
import steps

hosts = sys.argv[1:]


def connect(host):
    name, port = host.rsplit(":", 1)
    return dbapi2.connect(host=name, port=int(port), timeout=60)


def example(host):
    db = connect(host)
    cursor = db.cursor()
    cursor.execute("CREATE TABLE IF NOT EXISTS pyrqlite_foo (id INTEGER PRIMARY KEY, name TEXT, age INTEGER)")
    cursor.execute("INSERT INTO pyrqlite_foo(name, age) VALUES(?, ?)", ("fiona", 20))
    # Several rows are one transaction.
    cursor.executemany("INSERT INTO pyrqlite_foo(name, age) VALUES(?, ?)", [("declan", 22), ("ann", 25)])
    cursor.execute("SELECT name FROM pyrqlite_foo WHERE age > :age ORDER BY id", {"age": 20})
    return [row["name"] for row in cursor.fetchall()]


def check():
    db = connect(hosts[0])
    cursor = db.cursor()
    assert cursor.execute("SELECT 1").fetchone() == (1,)
    yield "connect"
    cursor.execute("CREATE TABLE pyrqlite_types (i INTEGER, r REAL, t TEXT, b BLOB, n TEXT, o BOOL, d TIMESTAMP)")
    assert [row[1] for row in cursor.execute("PRAGMA table_info(pyrqlite_types)").fetchall()] == list("irtbnod")
    yield "ddl"
    assert example(hosts[0]) == ["declan", "ann"]
    cursor.execute("INSERT INTO pyrqlite_foo(name) VALUES('last')")
    assert cursor.lastrowid == 4
    assert cursor.execute("UPDATE pyrqlite_foo SET age = 30 WHERE id > 2").rowcount == 2
    yield "parameters"
    values = (2**63 - 1, -1.5, "it's 5 o'clock? \u20ac \U0001f600", bytes(range(256)), None, True)
    cursor.execute("INSERT INTO pyrqlite_types VALUES(?, ?, ?, ?, ?, ?, '2026-11-25 12:00:00')", values)
    row = cursor.execute("SELECT * FROM pyrqlite_types").fetchone()
    assert tuple(row)[:6] == values, row
    parsed = dbapi2.connect(host=db.host, port=db.port, detect_types=dbapi2.PARSE_DECLTYPES)
    found = parsed.cursor().execute("SELECT d FROM pyrqlite_types").fetchone()
    assert found[0].isoformat() == "2026-11-25T12:00:00", found
    cursor.execute("DELETE FROM pyrqlite_types")
    cursor.execute("INSERT INTO pyrqlite_types(i) VALUES(?)", (-(2**63),))
    assert cursor.execute("SELECT i FROM pyrqlite_types").fetchone() == (-(2**63),)
    yield "types"
    # It reports no error of one of several, but none of them is there.
    cursor.executemany("INSERT INTO pyrqlite_foo(id, name) VALUES(?, ?)", [(10, "new"), (1, "taken")])
    assert cursor.execute("SELECT count(*) FROM pyrqlite_foo").fetchone() == (4,)
    yield "transactions"
    for sql, said in [
        ("INSERT INTO pyrqlite_foo(id) VALUES(1)", "UNIQUE constraint failed: pyrqlite_foo.id"),
        ("SELECT * FROM pyrqlite_none", "no such table"),
        ("nonsense", "syntax error"),
        ("BEGIN", "transactions can't be begun or ended"),
    ]:
        try:
            cursor.execute(sql)
        except db.Error as why:
            assert said in str(why), why
        else:
            raise AssertionError(sql)
    yield "errors"


def write(n):
    # A number may have been written although no answer came; then it is there already.
    def work(host):
        cursor = connect(host).cursor()
        cursor.execute("CREATE TABLE IF NOT EXISTS pyrqlite_t (n INTEGER PRIMARY KEY)")
        cursor.execute("INSERT OR IGNORE INTO pyrqlite_t VALUES(?)", (n,))

    # It knows one host, and asks that ten times; which is next, the app has to know.
    steps.anywhere(hosts, (OSError, dbapi2.Error), work)


def read():
    sql = "SELECT count(*), sum(n) FROM pyrqlite_t"
    return connect(hosts[0]).cursor().execute(sql, consistency="linearizable").fetchone()


steps.run(check, write, read)
