"""A lag over time as SVG: drawn here, so that the page needs no script and nothing from elsewhere."""

import math
from collections.abc import Callable, Iterator, Sequence

from leasecache.invalidation.markup import Markup, tag

WIDTH, HEIGHT = 600, 150
_TOP, _BOTTOM, _LEFT, _RIGHT = 14, 22, 76, 6
_RULES = 4  # horizontal lines, the ground included


def chart(
    points: Sequence[tuple[float, float]],
    at: float,
    *,
    span: float,
    step: float,
    label: str,
    unit: Callable[[float], str],
    base: int,
) -> Markup:
    """Draw `points` (Unix s, value) of the last `span` s before `at`; nothing is drawn where points are missing.

    `unit` writes a value, `base` is how much of one unit makes the next.
    """
    top = _ceiling(max((value for _, value in points), default=0.0), base)

    def x(when: float) -> float:
        return round(_LEFT + (WIDTH - _LEFT - _RIGHT) * (1 - (at - when) / span), 1)

    def y(value: float) -> float:
        return round(_TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - value / top), 1)

    runs = list(_runs([(max(when, at - span), value) for when, value in points if when <= at], step))
    return tag(
        "svg",
        tag("title", label),
        [_rule(y(top * i / (_RULES - 1)), unit(top * i / (_RULES - 1))) for i in range(_RULES)],
        [_minutes(x(at - minutes * 60), minutes) for minutes in range(0, int(span // 60) + 1, 5)],
        [_area([(x(when), y(value)) for when, value in run], y(0)) for run in runs],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="chart",
    )


def _ceiling(value: float, base: int) -> float:
    """Return a number that is at least `value` and round in its unit, so that the scale seldom changes."""
    if value <= 0:
        return 1.0
    unit = float(base) ** math.floor(math.log(value, base))
    power = unit * 10.0 ** math.floor(math.log10(value / unit))
    return next(factor * power for factor in (1.5, 3, 6, 12) if factor * power >= value)


def _runs(points: Sequence[tuple[float, float]], step: float) -> Iterator[list[tuple[float, float]]]:
    """Split where a step is missing; each point lasts for its step."""
    run: list[tuple[float, float]] = []
    for when, value in points:
        if run and when - run[-1][0] > 2.5 * step:
            yield run
            run = []
        run.append((when, value))
    if run:
        yield run


def _rule(y: float, text: str) -> Markup:
    line = tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="rule")
    return Markup(line + tag("text", text, x=_LEFT - 8, y=y + 3.5, class_="axis", text_anchor="end"))


def _minutes(x: float, minutes: int) -> Markup:
    text, anchor = (f"−{minutes} min", "middle") if minutes else ("now", "end")
    if x <= _LEFT:
        anchor = "start"
    return tag("text", text, x=x, y=HEIGHT - 4, class_="axis", text_anchor=anchor)


def _area(corners: list[tuple[float, float]], ground: float) -> Markup:
    if len(corners) == 1:
        x, y = corners[0]
        corners = [(x - 2, y), (x, y)]
    line = "M" + "L".join(f"{x} {y}" for x, y in corners)
    area = f"{line}L{corners[-1][0]} {ground}L{corners[0][0]} {ground}Z"
    return Markup(tag("path", d=area, class_="area") + tag("path", d=line, class_="line"))
