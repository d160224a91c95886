"""The switch between the compiled short way and its pure twin: that of `leasecache._accel`."""

from typing import TYPE_CHECKING

from leasecache._accel import IMPL

if TYPE_CHECKING or IMPL == "python":
    from leasecache.invalidation._pure_pgoutput import Frames, Walker, merge, name
else:
    from leasecache.invalidation._pgoutput import Frames, Walker, merge, name

__all__ = ["Frames", "Walker", "merge", "name"]
