"""Tests of a project, run by Django: what its test client does to the connections of a test.

Prints how many connections are left open, by database and kind of request, outside a transaction
and inside.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from unittest import TestSuite, TextTestRunner

import psycopg
from django.db import connections, transaction
from django.test import TestCase, TransactionTestCase
from django.test.runner import DiscoverRunner
from django_connections import DATABASES, KINDS, backend, out

found = {}
holding, release = Event(), Event()


def connected(alias):
    """The backends that are connected to a database."""
    settings = connections[alias].settings_dict
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    where = {"host": settings["HOST"], "port": settings["PORT"], "user": settings["USER"]}
    with psycopg.connect(**where) as other:
        return {pid for (pid,) in other.execute(query, [settings["OPTIONS"]["application_name"]])}


def used(case, alias):
    """How many connections of this thread are open after some requests, by kind of request."""
    left, mine = {}, backend(alias)
    holding.clear()
    release.clear()
    with ThreadPoolExecutor(1) as other:
        held = other.submit(hold_once, alias)
        holding.wait(60)
        for kind in KINDS:
            for _ in range(5):
                response = case.client.get("/", {"alias": alias, "kind": kind})
                assert response.status_code == 200
            assert backend(alias) == mine
            left[kind] = (out() if "pool" in alias else len(connected(alias))) - 1
        release.set()
        before, after = held.result()
    assert before == after
    return left


def hold_once(alias):
    """Use another connection meanwhile; return its backends at the beginning and at the end."""
    try:
        with transaction.atomic(using=alias):
            before = backend(alias)
            holding.set()
            release.wait(60)
            return before, backend(alias)
    finally:
        connections.close_all()


class Outside(TransactionTestCase):
    databases = frozenset(DATABASES)

    def test_its_connection_stays_open(self):
        found["outside"] = {alias: used(self, alias) for alias in DATABASES}


class Inside(TestCase):
    databases = frozenset(DATABASES)

    def test_its_transaction_goes_on(self):
        found["inside"] = {}
        for alias in DATABASES:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT txid_current()")
                before = cursor.fetchall()
                found["inside"][alias] = used(self, alias)
                cursor.execute("SELECT txid_current()")
                assert cursor.fetchall() == before


if __name__ == "__main__":
    runner = DiscoverRunner(verbosity=0, interactive=False)
    runner.setup_test_environment()
    made = runner.setup_databases(aliases={*DATABASES})
    suite = TestSuite(map(runner.test_loader.loadTestsFromTestCase, [Outside, Inside]))
    result = TextTestRunner().run(suite)
    connections.close_all()
    connections["psycopg's pool"].close_pool()
    runner.teardown_databases(made)
    print(json.dumps(found))
    raise SystemExit(not result.wasSuccessful())
