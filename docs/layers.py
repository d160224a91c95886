"""The layers of the code, from the table that `tests/test_layers.py` holds every import against."""

from tests.test_layers import BELOW, LAYERS


def table() -> str:
    """Return the layers as Markdown: which modules each has, and which layers these may import."""
    rows = ["| | modules | may import |", "|---|---|---|"]
    for layer, modules in LAYERS.items():
        names = " ".join(f"`{name or 'leasecache'}`" for name in modules)
        rows.append(f"| {layer} | {names} | {_span(BELOW[layer[0]])} |")
    return "\n".join([*rows, ""])


def _span(layers: str) -> str:
    """Return "0–3, D" for "0123D"."""
    numbers = [layer for layer in layers if layer.isdigit()]
    span = numbers[:1] if len(numbers) < 2 else [f"{numbers[0]}–{numbers[-1]}"]
    return ", ".join([*span, *(layer for layer in layers if not layer.isdigit())]) or "the standard library"
