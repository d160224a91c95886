"""The times and bounds that the code uses, as a table: none is written down twice."""

from leasecache import background, holders, loadtime, schedule
from leasecache.acalls import LOADS_AT_ONCE
from leasecache.flow import MISREADS, POLL_FIRST
from leasecache.policy import Policy

DEFAULT = Policy(ttl=1)

NUMBERS = {
    "A winner has, where the policy does not say otherwise (`lease_for`),": f"{DEFAULT.lease_for} s",
    "A loser waits, where the policy does not say otherwise (`wait_for`),": f"{DEFAULT.wait_for} s",
    "A load is expected to take": "the decayed average of the function's loads in this process, "
    "a fifth of it by the latest",
    "The first look at somebody else's lease is sent": "after half of the expected load, the second at its end; "
    f"{POLL_FIRST * 1000:g} ms apart where no load is known",
    "Later looks are sent": f"{schedule.FIRST * 1000:g} ms after that, then × {schedule.GROWTH:g} each, "
    f"at most {schedule.MOST * 1000:g} ms apart, jittered",
    "A look goes with another one that is due": f"once {schedule.EARLY:.0%} of its own pause is over",
    "A holder may be robbed": "after `lease_for`; "
    f"once {loadtime.ENOUGH} loads are known after three times their 99th percentile (of the last {loadtime.KEPT}), "
    f"at least {loadtime.SHORTEST:g} s, at most `lease_for`",
    "Who outlasts a holder, or robs it, has": "twice as long, and a lease of that time, "
    f"up to {holders.LONGEST} × `lease_for`",
    "A process remembers the holders of": f"the last {holders.KNOWN:,} keys",
    "A call that cannot read what it finds drops it": f"up to {MISREADS} times, and then loads without storing",
    "A refresh in the background, or a load of a batch, that has not begun gives its lease back": "after half of "
    "`lease_for`",
    "`get_many` of an `AsyncCache` loads": f"{LOADS_AT_ONCE} keys at once",
    "Refreshes of a `Cache` run in": f"{background.WORKERS} threads",
}


def table() -> str:
    """Return the numbers as Markdown."""
    rows = [f"| {what} | {number} |" for what, number in NUMBERS.items()]
    return "\n".join(["| what | how long, how many |", "|---|---|", *rows, ""])
