"""Do the work of one side so many times: what runs under valgrind. A fault is what it writes to standard error."""

import sys
from collections.abc import Sequence
from pkgutil import resolve_name

from loadtests.bench.site import Site


def main(arguments: Sequence[str]) -> str | None:
    """Take the names of a side's `open` and of a row's `right`, address, seed and count; return what went wrong."""
    opening, right, address, seed, count = arguments
    with Site(int(seed), lambda name: address) as site:
        try:
            answer = resolve_name(opening)(site)(int(count))
        except ImportError as error:
            return f"not installed ({error})"
        return None if resolve_name(right)(site, answer) else f"a wrong answer: {answer!r:.60}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
