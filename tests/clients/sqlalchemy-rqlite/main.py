"""sqlalchemy-rqlite: a dialect for SQLAlchemy, over pyrqlite."""

import sys

import sqlalchemy as sa
import steps
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

hosts = sys.argv[1:]


class Base(DeclarativeBase):
    pass


class Foo(Base):
    __tablename__ = "sqlalchemy_foo"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(20), unique=True)
    age: Mapped[int | None]


def example(host):
    engine = sa.create_engine(f"rqlite+pyrqlite://{host}/")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        # Each statement is committed by itself: a rollback takes nothing back.
        session.add_all([Foo(name="fiona", age=20), Foo(name="declan", age=22)])
        session.commit()
        return session.scalars(sa.select(Foo.name).where(Foo.age > 20)).all()


types = sa.Table(
    "sqlalchemy_types",
    Base.metadata,
    sa.Column("i", sa.BigInteger),
    sa.Column("r", sa.Float),
    sa.Column("t", sa.Text),
    sa.Column("b", sa.LargeBinary),
    sa.Column("n", sa.Text),
    sa.Column("o", sa.Boolean),
)
numbers = sa.Table("sqlalchemy_t", sa.MetaData(), sa.Column("n", sa.Integer, primary_key=True))


def engine(host):
    return sa.create_engine(f"rqlite+pyrqlite://{host}/")


def check():
    with engine(hosts[0]).connect() as db:
        assert db.scalar(sa.text("SELECT 1")) == 1
    yield "connect"
    Base.metadata.create_all(engine(hosts[0]))
    # The columns of a table it can't reflect with this SQLAlchemy: it doesn't know the version of SQLite.
    assert {"sqlalchemy_foo", "sqlalchemy_types"} <= set(sa.inspect(engine(hosts[0])).get_table_names())
    yield "ddl"
    assert example(hosts[0]) == ["declan"]
    yield "parameters"
    values = (2**63 - 1, -1.5, "it's \u20ac \U0001f600", bytes(range(256)), None, True)
    with engine(hosts[0]).begin() as db:
        db.execute(types.insert().values(values))
        found = db.execute(sa.select(types)).one()
        assert tuple(found) == values, found
    yield "types"
    # Several rows of one INSERT are there together, or not at all.
    with Session(engine(hosts[0])) as session:
        try:
            session.execute(sa.insert(Foo).values([{"name": "ann"}, {"name": "fiona"}]))
        except SQLAlchemyError:
            session.rollback()
        assert session.scalar(sa.select(sa.func.count()).select_from(Foo)) == 2
    yield "transactions"
    with engine(hosts[0]).connect() as db:
        for sql, said in [
            ("INSERT INTO sqlalchemy_foo(name) VALUES('fiona')", "UNIQUE constraint failed: sqlalchemy_foo.name"),
            ("SELECT * FROM sqlalchemy_none", "no such table"),
        ]:
            try:
                db.execute(sa.text(sql))
            except SQLAlchemyError as why:
                assert said in str(why), why
            else:
                raise AssertionError(sql)
    yield "errors"


def write(n):
    def work(host):
        with engine(host).begin() as db:
            numbers.create(db, checkfirst=True)
            db.execute(numbers.insert().prefix_with("OR IGNORE").values(n=n))

    steps.anywhere(hosts, (OSError, SQLAlchemyError), work)


def read():
    with engine(hosts[0]).connect() as db:
        return db.execute(sa.select(sa.func.count(), sa.func.sum(numbers.c.n))).one()


steps.run(check, write, read)
