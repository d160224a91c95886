"""`leasecache check` and `leasecache setup`: from a configuration file to findings, or to what is to be run."""

from dataclasses import dataclass, replace
from pathlib import Path

from leasecache.errors import ConfigError, SourceError
from leasecache.invalidation.catalog import Catalog
from leasecache.invalidation.configuration import read_configuration
from leasecache.invalidation.ddl import Step, apply, find_primary, plan
from leasecache.invalidation.finding import Finding
from leasecache.invalidation.lint import lint
from leasecache.invalidation.settings import SourceSettings
from leasecache.invalidation.source import connect
from leasecache.invalidation.survey import read_catalog, read_reader
from leasecache.rules import RuleSet


def find_faults(path: Path | None) -> list[Finding]:
    """Return what keeps the source from serving the rules. Raises ConfigError when the configuration is wrong."""
    settings, rules, *_ = read_configuration(path)
    try:
        return lint(rules, inspect(settings.source, rules))
    except SourceError as error:
        return [Finding(code="unreachable", consequence=str(error))]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is to be run, and what no statement here can put right."""

    source: str  # dsn
    steps: list[Step]
    beyond: list[Finding]

    def apply(self, primary: str | None) -> list[str]:
        """Run the steps and return what kept optional ones from running.

        `primary` is the primary's DSN, needed when the source is a standby that does not tell.
        """
        return apply(self.steps, self.source, find_primary(self.source, primary)) if self.steps else []


def plan_setup(path: Path | None) -> Setup:
    """Return the setup that the source needs. Raises ConfigError, and SourceError when it cannot be reached."""
    settings, rules, *_ = read_configuration(path)
    catalog = inspect(settings.source, rules)
    beyond = [finding for finding in lint(rules, catalog) if finding.fatal and not finding.by_setup]
    return Setup(source=settings.source.dsn, steps=plan(catalog, rules), beyond=beyond)


def inspect(source: SourceSettings, rules: RuleSet) -> Catalog:
    """Read the catalogues of the source, and look at its readers. Raises SourceError when the source is away."""
    with connect(source.dsn) as connection:
        catalog = read_catalog(connection, source.slot, source.publication, rules)
    return replace(catalog, readers=tuple(read_reader(dsn) for dsn in source.readers))


def refuse_unfit(findings: list[Finding]) -> None:
    """Raise ConfigError when something keeps the daemon from serving the rules."""
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        more = f" ({len(fatal) - 1} more)" if len(fatal) > 1 else ""
        remedy = "setup --apply" if fatal[0].by_setup else "check"
        raise ConfigError(f"{fatal[0].sentence()}{more}; see `leasecache {remedy}`")
