"""What is wrong: which rule and table, what goes wrong because of it, and what to run against it."""

from dataclasses import dataclass
from typing import Any

_BY_SETUP = {
    "publication-missing",
    "publication-operations",
    "not-published",
    "published-in-part",
    "generated-column",
    "slot-missing",
    "identity",
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    code: str
    table: str | None = None
    rule: str | None = None  # the cached function
    consequence: str  # one sentence, without the full stop
    remedy: tuple[str, ...] = ()  # SQL, or what to change
    fatal: bool = True  # the daemon refuses to start
    note: bool = False  # worth knowing, and no fault

    @property
    def by_setup(self) -> bool:
        """Return whether `leasecache setup --apply` puts it right."""
        return self.code in _BY_SETUP and any(not sql.startswith("--") for sql in self.remedy)

    def sentence(self) -> str:
        """Return the finding in one line."""
        where = ", ".join(part for part in (self.rule, self.table) if part)
        return f"{where}: {self.consequence}" if where else self.consequence

    def to_json(self) -> dict[str, Any]:
        """Return the finding as a JSON object."""
        return {
            "code": self.code,
            "rule": self.rule,
            "table": self.table,
            "consequence": self.consequence,
            "remedy": list(self.remedy),
            "fatal": self.fatal,
            "note": self.note,
        }
