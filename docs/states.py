"""The states of a key and what leads from one to the next, drawn from the decision table of `leasecache.lease`."""

from typing import NamedTuple

from leasecache.lease import DECISIONS, FOREIGN, STUB, VALUE, Content, Decision

MARKS = "WXZ"


class State(NamedTuple):
    """What a key holds: whether that was invalidated matters for a value alone, a stub holds nothing to be stale."""

    content: Content
    stale: bool
    taken: bool  # somebody has the lease


NAMES = {
    State(STUB, False, False): "Empty",
    State(STUB, False, True): "Loading",
    State(VALUE, False, False): "Fresh",
    State(VALUE, False, True): "Refreshing",
    State(VALUE, True, False): "Stale",
    State(VALUE, True, True): "Replacing",
    State(FOREIGN, False, False): "Foreign",
}


class Edge(NamedTuple):
    """A step of a key: where from, by which command, where to, and what the caller may do then."""

    source: str
    command: str
    target: str
    meaning: str = ""


# What else happens to a key; `tests/unit/test_docs.py` walks each of these on real stores.
OTHERS = (
    Edge("Loading", "lease-set", "Fresh"),
    Edge("Refreshing", "lease-set", "Fresh"),
    Edge("Replacing", "lease-set", "Fresh"),
    Edge("Loading", "release", "Empty"),
    Edge("Replacing", "release", "Stale"),
    Edge("Loading", "steal", "Loading"),
    Edge("Replacing", "steal", "Replacing"),
    Edge("Loading", "invalidate", "Empty"),
    Edge("Fresh", "invalidate", "Empty"),
    Edge("Refreshing", "invalidate", "Empty"),
    Edge("Stale", "invalidate", "Empty"),
    Edge("Replacing", "invalidate", "Empty"),
    Edge("Fresh", "invalidate softly", "Stale"),
    Edge("Refreshing", "invalidate softly", "Stale"),
    Edge("Replacing", "invalidate softly", "Stale"),
    Edge("Loading", "lease_for over", "Empty"),
    Edge("Fresh", "ttl over", "Empty"),
    Edge("Refreshing", "ttl over", "Empty"),
    Edge("Stale", "stale_for over", "Empty"),
    Edge("Replacing", "stale_for over", "Empty"),
)


def lease_gets() -> list[Edge]:
    """Return what a lease-get does to each state: whoever is told W has the lease from then on."""
    edges = []
    for (won, stale, taken, content), decision in DECISIONS.items():
        stale = stale and content is VALUE
        source, target = State(content, stale, taken), State(content, stale, taken or won)
        edges.append(Edge(NAMES[source], "lease-get", NAMES[target], decision.value))
    return list(dict.fromkeys(edges))


def diagram() -> str:
    """Return the states and edges as a Mermaid diagram; edges between the same two states share an arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for edge in (*lease_gets(), *OTHERS):
        label = f"{edge.command} ⇒ {edge.meaning}" if edge.meaning else edge.command
        arrows.setdefault((edge.source, edge.target), []).append(label)
    lines = [f"    {source} --> {target}: {'<br/>'.join(labels)}" for (source, target), labels in arrows.items()]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> Empty", *lines, "```", ""])


def table() -> str:
    """Return the decision table, as Markdown."""
    rows = ["| " + " | ".join(MARKS) + " | item | what the caller does |", "|---|---|---|---|---|"]
    for (*marks, content), decision in DECISIONS.items():
        cells = [mark if there else "" for mark, there in zip(MARKS, marks, strict=True)]
        rows.append(f"| {' | '.join(cells)} | {content.value} | {decision.value} |")
    rows.append(f"| any other | | | | {Decision.UNSTORABLE.value} |")
    return "\n".join([*rows, ""])
