"""The parts of pages that are drawn from the code, each between `<!-- generated: name -->` and `<!-- end -->`."""

import re
from collections.abc import Callable

from docs import layers, monitoring, numbers, reference, states

GENERATED: dict[str, Callable[[], str]] = {
    "diagram": states.diagram,
    "decisions": states.table,
    "numbers": numbers.table,
    "layers": layers.table,
    "metrics": monitoring.metrics,
    "reasons": monitoring.reasons,
    "settings": reference.table,
}
PART = re.compile(r"(<!-- generated: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def regenerated(text: str) -> str:
    """Return a page with its generated parts made anew."""
    return PART.sub(lambda part: part[1] + GENERATED[part[2]]() + part[4], text)
