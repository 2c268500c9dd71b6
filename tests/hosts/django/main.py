"""Django: its migrations and its ORM, with a database alias for each node."""

import sqlite3
import sys

import django
import steps
from django.conf import settings
from django.db import DatabaseError, connections

extension, *nodes = sys.argv[1:]

loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(extension)


def database(node, parameters=""):
    # Django opens names as URIs.
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": f"file:{node}?vfs=quire{parameters}",
        "OPTIONS": {"timeout": 0.3, "transaction_mode": "IMMEDIATE"},
    }


aliases = {node: f"node{i}" for i, node in enumerate(nodes)}
settings.configure(
    INSTALLED_APPS=["shop"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    USE_TZ=True,
    DATABASES={
        "default": database(nodes[0]),
        **{aliases[node]: database(node) for node in nodes},
        **{f"{aliases[node]}-newest": database(node, "&reads=linearizable") for node in nodes},
    },
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db.models import Count, Sum  # noqa: E402
from django.db.transaction import atomic  # noqa: E402
from shop.models import Row  # noqa: E402

migrated = False


def write(node, n):
    global migrated
    alias = aliases[node]
    try:
        if not migrated:
            call_command("migrate", database=alias, verbosity=0)
            migrated = True
        with atomic(using=alias):
            Row.objects.using(alias).update_or_create(n=n, defaults={"who": "django"})
    except DatabaseError:
        connections[alias].close()
        raise


def read(node):
    rows = Row.objects.using(f"{aliases[node]}-newest")
    return rows.aggregate(count=Count("n"), total=Sum("n")).values()


steps.run(nodes, DatabaseError, write, read)
