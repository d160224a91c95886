"""A database that is changed by hand and then judged, as `leasecache check` would."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from leasecache.invalidation.catalog import Catalog
from leasecache.invalidation.ddl import slot_ddl
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.lint import lint
from leasecache.invalidation.source import connect
from leasecache.invalidation.survey import read_catalog
from leasecache.invalidation.triggers import triggers_ddl
from leasecache.lab import PostgresServer
from leasecache.rules import Rule, RuleSet
from tests.fix_daemon import SLOT
from tests.fix_servers import PostgresPair


@dataclass
class Clerk:
    """A database to which statements are given, and which is then judged."""

    server: PostgresServer
    database: str

    def run(self, *statements: str) -> None:
        """Run statements."""
        for statement in statements:
            self.server.query(statement, dbname=self.database)

    def catalog(self, *rules: Rule) -> Catalog:
        """Return what the catalogues say."""
        with connect(self.server.dsn(self.database)) as connection:
            return read_catalog(connection, SLOT, "leasecache", RuleSet(namespace=None, rules=rules))

    def findings(self, *rules: Rule) -> list[Finding]:
        """Return what is wrong for these rules, notes apart."""
        found = lint(RuleSet(namespace=None, rules=rules), self.catalog(*rules))
        return [finding for finding in found if not finding.note]

    def codes(self, *rules: Rule) -> list[str]:
        """Return the codes of what is wrong."""
        return [finding.code for finding in self.findings(*rules)]


@pytest.fixture
def clerk(postgres_pair: PostgresPair, database: str) -> Iterator[Clerk]:
    """A database with one table that can be served, a publication of all tables and a slot."""
    clerk = Clerk(postgres_pair.primary, database)
    clerk.run(*triggers_ddl(frozenset()))
    clerk.run("create table media (id int primary key, owner int not null, title text, note text)")
    clerk.run("create publication leasecache for all tables with (publish_via_partition_root = true)")
    clerk.run(slot_ddl(SLOT, version=clerk.catalog().version, in_recovery=False))
    yield clerk
    clerk.run(f"select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{SLOT}'")
