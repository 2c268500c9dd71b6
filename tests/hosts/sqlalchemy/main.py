"""SQLAlchemy: an engine for each node, the ORM on it."""

import sqlite3
import sys

import steps
from sqlalchemy import create_engine, exc, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

extension, *nodes = sys.argv[1:]

loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "t"
    n: Mapped[int] = mapped_column(primary_key=True)
    who: Mapped[str]


def engine(node, parameters=""):
    url = f"sqlite:///file:{node}?vfs=quire{parameters}&uri=true"
    return create_engine(url, connect_args={"timeout": 0.3})


writers = {node: engine(node) for node in nodes}


def write(node, n):
    Base.metadata.create_all(writers[node])
    with Session(writers[node]) as session, session.begin():
        session.merge(Row(n=n, who="sqlalchemy"))


def read(node):
    with Session(engine(node, "&reads=linearizable")) as session:
        return session.execute(select(func.count(Row.n), func.sum(Row.n))).one()


steps.run(nodes, exc.DBAPIError, write, read)
