"""The one switch between the compiled hot path and its pure twin; LEASECACHE_IMPL=c|python overrides it."""

import os
from typing import TYPE_CHECKING

from leasecache._pure_mux import Mux, Reader

_wanted = os.environ.get("LEASECACHE_IMPL", "")
if _wanted not in ("", "c", "python"):
    raise ImportError(f"LEASECACHE_IMPL={_wanted!r} is neither 'c' nor 'python'")

if TYPE_CHECKING:
    from leasecache._pure import Renderer, Reply, Wire, parse_reply, percent_encode, shorten

    IMPL: str
elif _wanted == "python":
    from leasecache._pure import Renderer, Reply, Wire, parse_reply, percent_encode, shorten

    IMPL = "python"
else:
    try:
        from leasecache._hot import Renderer, Reply, Wire, parse_reply, percent_encode, shorten

        IMPL = "c"
    except ImportError:
        if _wanted == "c":
            raise
        from leasecache._pure import Renderer, Reply, Wire, parse_reply, percent_encode, shorten

        IMPL = "python"

__all__ = ["IMPL", "Mux", "Reader", "Renderer", "Reply", "Wire", "parse_reply", "percent_encode", "shorten"]
