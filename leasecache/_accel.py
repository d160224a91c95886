"""The one switch between the compiled hot path and its pure twin; LEASECACHE_IMPL=c|python overrides it."""

import os
from typing import TYPE_CHECKING

_wanted = os.environ.get("LEASECACHE_IMPL", "")
if _wanted not in ("", "c", "python"):
    raise ImportError(f"LEASECACHE_IMPL={_wanted!r} is neither 'c' nor 'python'")

IMPL = "python" if _wanted == "python" else "c"
if IMPL == "c":
    try:
        import leasecache._hits  # noqa: F401 - it imports the others: all of them or none
    except ImportError:
        if _wanted == "c":
            raise
        IMPL = "python"

if TYPE_CHECKING or IMPL == "python":
    from leasecache._pure import Reply, Wire, parse_reply
    from leasecache._pure_hits import (
        AsyncCall,
        Bypass,
        Call,
        Item,
        Marks,
        MemoryReader,
        NodeReader,
        RingReader,
        Tally,
    )
    from leasecache._pure_keys import Renderer, Ring, delete_requests, percent_encode, shorten
    from leasecache._pure_mux import Mux, MuxReader
    from leasecache._pure_pending import Pending
    from leasecache._pure_states import ConnectionState, EpochState, PoolState, ProbeState, RecordState, TrustState
else:
    from leasecache._hits import (
        AsyncCall,
        Bypass,
        Call,
        ConnectionState,
        EpochState,
        Item,
        Marks,
        MemoryReader,
        NodeReader,
        PoolState,
        ProbeState,
        RecordState,
        RingReader,
        Tally,
        TrustState,
    )
    from leasecache._hot import Reply, Wire, parse_reply
    from leasecache._keys import Renderer, Ring, delete_requests, percent_encode, shorten
    from leasecache._mux import Mux, MuxReader, Pending

__all__ = [
    "IMPL",
    "AsyncCall",
    "Bypass",
    "Call",
    "ConnectionState",
    "EpochState",
    "Item",
    "Marks",
    "MemoryReader",
    "Mux",
    "MuxReader",
    "NodeReader",
    "Pending",
    "PoolState",
    "ProbeState",
    "RecordState",
    "Renderer",
    "Reply",
    "Ring",
    "RingReader",
    "Tally",
    "TrustState",
    "Wire",
    "delete_requests",
    "parse_reply",
    "percent_encode",
    "shorten",
]
