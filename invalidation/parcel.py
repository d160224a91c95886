"""Keys on their way to one node: what waits for it, and what it is being told."""

from dataclasses import dataclass, field

from leasecache.invalidation.walker import merge


@dataclass(slots=True)
class Parcel:
    """Keys with the s each may be served stale, and whether everything else is void as well."""

    keys: dict[bytes, float] = field(default_factory=dict)
    explicit: dict[bytes, float] = field(default_factory=dict)  # of whose function nothing is known
    renews: bool = False  # the node gets a new generation
    position: int = 0  # everything in the log before it is in this parcel or an earlier one

    def __len__(self) -> int:
        return len(self.keys) + len(self.explicit)

    def take(self, most: int) -> "Parcel":
        """Return a part of this as a parcel of its own, without the renewal."""
        if len(self) <= most:
            part = Parcel(self.keys, self.explicit, False, self.position)
            self.keys, self.explicit = {}, {}
            return part
        part = Parcel(position=self.position)
        for keys, taken in ((self.keys, part.keys), (self.explicit, part.explicit)):
            taken.update([keys.popitem() for _ in range(min(len(keys), most - len(part)))])
        return part

    def add(self, other: "Parcel") -> None:
        """Take back a part that was not delivered."""
        merge(self.keys, other.keys)
        merge(self.explicit, other.explicit)
