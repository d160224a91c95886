"""The status page: one HTML document, drawn from the summary. Names in it may be anything, so all is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leasecache.invalidation.chart import chart
from leasecache.invalidation.history import SPAN
from leasecache.invalidation.look import SCRIPT, STYLE
from leasecache.invalidation.markup import Child, Markup, join, tag
from leasecache.invalidation.quantities import clock, duration, instant, number, rate, size

REFRESH = 5  # s, without JavaScript
_SHOWN = 100  # rows of a table
_GUARDS = {"fresh": "good", "absent": "bad", "foreign": "bad", "renewing-stopped": "warn"}


def page(summary: Mapping[str, Any]) -> bytes:
    """Return the page that shows a summary, as UTF-8."""
    title = f"{'ready' if not summary['not_ready'] else 'not ready'} – leasecache"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", title),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("noscript", tag("meta", http_equiv="refresh", content=REFRESH)),
        tag("style", Markup(STYLE)),
    )
    silent = tag("div", id="silent", role="alert")
    body = tag("body", silent, _header(summary), _main(summary), _footer(), tag("script", Markup(SCRIPT)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n".encode(errors="replace")


def _header(summary: Mapping[str, Any]) -> Markup:
    count = len(summary["not_ready"])
    ready = _pill("good", "ready") if not count else _pill("bad", f"not ready: {count} reason{'s'[: count > 1]}")
    about = [
        _name(summary["source"]) if summary["source"] else None,
        tag("span", "slot ", _name(summary["slot"])) if summary["slot"] else None,
        f"version {summary['version']} ({'compiled' if summary['implementation'] == 'c' else 'pure Python'})",
        f"up for {duration(summary['uptime'])}",
        f"as of {clock(summary['at'])} UTC",
    ]
    return tag(
        "header",
        tag("h1", "leasecache daemon ", ready),
        tag("p", [tag("span", part) for part in about if part is not None], class_="about"),
    )


def _main(summary: Mapping[str, Any]) -> Markup:
    return tag(
        "main",
        _alarms(summary),
        _tiles(summary),
        tag("div", _charts(summary), class_="pair"),
        _gate(summary),
        _drift(summary),
        _nodes(summary),
        tag("div", _tables(summary), _rules(summary), class_="pair"),
        _errors(summary),
    )


def _footer() -> Markup:
    pages = ("/status.json", "/metrics", "/healthz", "/readyz")
    return tag(
        "footer", [[tag("a", path, href=path[1:]), " "] for path in pages]
    )  # a proxy may serve us under a prefix


def _alarms(summary: Mapping[str, Any]) -> Markup | None:
    found = summary["not_ready"]
    if not found:
        return None
    items = [
        tag("li", tag("b", why["code"]), ": ", tag("bdi", why["text"]), "; ", why["fix"]) for why in found[:_SHOWN]
    ]
    return tag("section", tag("h2", "Why it is not ready"), tag("ul", items), class_="card alarm", id="alarms")


def _tiles(summary: Mapping[str, Any]) -> Markup:
    held = summary["held_seconds"]
    tiles = (
        ("Lag", duration(summary["lag_seconds"]), size(summary["lag_bytes"])),
        ("Commit to W", duration(summary["latency_seconds"]), "the last transaction"),
        ("Acknowledged W", summary["acknowledged"], f"received {summary['received']}"),
        ("Transactions", f"{rate(summary['transactions_per_second'])}/s", "over 10 s"),
        ("Held by the gate", number(summary["held_transactions"]), duration(held) if held else "transactions"),
        (
            "Keys acknowledged",
            f"{rate(sum(node['keys']['per_second'] for node in summary['nodes']))}/s",
            "by all nodes",
        ),
        ("Pending keys", number(summary["pending_keys"]), "not acknowledged yet"),
        ("Generation bumps", number(summary["bumps"]), "since the start"),
    )
    drawn = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", note)), class_="tile") for name, value, note in tiles
    ]
    return tag("dl", drawn, class_="tiles")


def _charts(summary: Mapping[str, Any]) -> list[Markup]:
    lags = (("Lag in time, last 15 minutes", 2, duration, 1000), ("Lag in bytes, last 15 minutes", 1, size, 1024))
    steps, step = summary["chart"]["steps"], summary["chart"]["step"]
    drawn = []
    for title, column, unit, base in lags:
        points = [(one[0], one[column]) for one in steps]
        svg = chart(points, summary["at"], span=SPAN, step=step, label=title, unit=unit, base=base)
        drawn.append(_card(title, svg))
    return drawn


def _gate(summary: Mapping[str, Any]) -> Markup:
    if summary["standing_by"]:
        state: Child = [_pill("warn", "standing by"), " ", tag("bdi", summary["standing_by"])]
    elif not summary["streaming"]:
        state = _pill("bad", "not streaming")
    else:
        held = summary["held_seconds"]
        shown = _pill("warn", f"holds for {duration(held)}") if held else _pill("good", "streaming")
        since = summary["streaming_since"]
        state = [shown, " gate ", tag("b", summary["gate"]), f": {summary['gate_why']}; since {instant(since)} UTC"]
    readers = [
        [
            _name(one["reader"]),
            _pill("warn", "holds") if one["holds"] else _pill("good", "passes"),
            tag("bdi", one["text"]),
            _when(one["since"]),
        ]
        for one in summary["readers"]
    ]
    table = _table(("reader", "gate", "what it shows", "since"), readers) if readers else None
    return _card("Gate", tag("p", state, class_="state"), table, id="gate")


def _drift(summary: Mapping[str, Any]) -> Markup | None:
    rows: list[list[Child]] = [
        [
            [tag("code", one["code"]), " ", _pill("bad", "fatal") if one["fatal"] else None],
            tag("bdi", ", ".join(filter(None, (one["rule"], one["table"])))),
            [tag("bdi", one["consequence"]), [tag("small", tag("code", line)) for line in one["remedy"]]],
        ]
        for one in summary["drift"]
    ]
    return _card("Findings about the source", _table(("finding", "where", "what"), rows), id="drift") if rows else None


def _nodes(summary: Mapping[str, Any]) -> Markup:
    heads = ("node", "state", "keys/s", "keys", "guard", "journal")
    return _card("Cache nodes", _table(heads, [_node(node) for node in summary["nodes"]]), id="nodes")


def _node(node: Mapping[str, Any]) -> list[Child]:
    since = tag("small", f"since {instant(node['since'])}", class_="when")
    what = node["error"].removeprefix(f"{node['node']}: ")
    error = tag("small", tag("bdi", what)) if what and not node["up"] else None
    state = [_pill("good", "up") if node["up"] else _pill("bad", "down"), since, error]
    kept = node["journal"]
    journal = [f"{number(kept['keys'])} keys", tag("small", size(kept["bytes"]))] if kept["keys"] else "–"
    return [
        _name(node["node"]),
        state,
        rate(node["keys"]["per_second"]),
        number(node["keys"]["total"]),
        _guard(node),
        journal,
    ]


def _guard(node: Mapping[str, Any]) -> Child:
    guard = node["guard"]
    if guard is None:
        return "–"
    if guard["generation"] is None:
        about = f"for {duration(guard['for'])}"
    else:
        about = f"generation {guard['generation']}, {duration(guard['age'])} ago"
    return [_pill(_GUARDS.get(guard["state"], "warn"), guard["state"]), tag("small", about, class_="when")]


def _tables(summary: Mapping[str, Any]) -> Markup:
    rows = [[_name(one["table"]), *_counted(one["rows"])] for one in summary["tables"]]
    return _card("Changed rows by table", _table(("table", "rows/s", "rows"), rows), id="tables")


def _rules(summary: Mapping[str, Any]) -> Markup:
    rows = [
        [[_name(one["function"]), tag("small", "on ", tag("bdi", one["table"]))], *_counted(one["keys"])]
        for one in summary["rules"]
    ]
    return _card("Keys by rule", _table(("function", "keys/s", "keys"), rows), id="rules")


def _errors(summary: Mapping[str, Any]) -> Markup:
    rows = [
        [
            _when(one["at"]),
            tag("code", one["event"], class_="when"),
            tag("bdi", one["text"]),
            f"{number(one['times'])} ×",
        ]
        for one in summary["errors"]
    ]
    return _card("Last errors", _table(("last (UTC)", "event", "what", "seen"), rows), id="errors")


def _card(title: str, *children: Child, id: str | None = None) -> Markup:  # noqa: A002 - HTML's name
    return tag("section", tag("h2", title), *children, class_="card", id=id)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Child]]) -> Markup:
    if not rows:
        return tag("p", "none yet", class_="none")
    numeric = {i for i, head in enumerate(heads) if head.endswith("/s") or head in ("keys", "rows", "seen")}

    def row(kind: str, cells: Iterable[Child]) -> Markup:
        return tag("tr", [tag(kind, cell, class_="number" if i in numeric else None) for i, cell in enumerate(cells)])

    more = tag("p", f"and {len(rows) - _SHOWN} more: /status.json", class_="none") if len(rows) > _SHOWN else None
    body = join(row("td", cells) for cells in rows[:_SHOWN])
    return Markup(
        tag("div", tag("table", tag("thead", row("th", heads)), tag("tbody", body)), class_="wide") + join([more])
    )


def _counted(meter: Mapping[str, Any]) -> tuple[str, str]:
    return rate(meter["per_second"]), number(meter["total"])


def _when(at: float) -> Markup:
    return tag("span", instant(at), class_="when")


def _name(text: str) -> Markup:
    return tag("code", tag("bdi", text))


def _pill(kind: str, text: str) -> Markup:
    return tag("span", text, class_=f"pill {kind}")
