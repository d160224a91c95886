"""The step about counters."""

import random
import threading
from typing import Any

import psycopg

from leasecache.lab.demo.photos import POPULAR, declare_likes
from leasecache.lab.demo.report import Step
from leasecache.lab.demo.stage import Stage
from leasecache.lab.demo.timing import interleaved, on_one_cpu
from leasecache.lab.servers import wait_until

WRITERS, CHANGES = 8, 250  # threads, and likes or unlikes of each
COUNT = "select count(*) from user_likes_media where media_id = %s"


def counting(stage: Stage) -> Step:
    """Compare count(*), the counter row and the cached count, before and after concurrent likes and unlikes."""
    why = (
        f"How many people like the popular photo? Three answers, then {WRITERS * CHANGES:,} likes and unlikes at once."
    )
    step = Step(7, "counters", why)
    database, likes, app = stage.primary, declare_likes(), stage.dc1.app
    with database.connection() as connection:
        counted = interleaved({"count(*)": lambda: database.rows(COUNT, POPULAR)}, per_slice=1)
        quick = {
            "the counter row": lambda: likes.count(connection, POPULAR),
            "the cached count": lambda: app.like_count(POPULAR),
        }
        with on_one_cpu(stage.dc1.servers.memcached.pid):
            counted |= interleaved(quick, per_slice=50)
        for name, duration in counted.items():
            step.measure(name, duration, "µs")
        applied = _like_and_unlike(stage.dc1.servers.postgres.dsn())
        [(actual,)] = database.rows(COUNT, POPULAR)
        stored = likes.count(connection, POPULAR)
    step.measure("likes and unlikes that changed a row", applied)
    step.measure("likes after them, by count(*)", actual)
    step.check("the counter row equals count(*)", stored == actual)
    step.check("the cached count equals both, in DC1", _settles(app.like_count, actual))
    step.check("and in DC2", _settles(stage.dc2.app.like_count, actual))
    return step


def _settles(like_count: Any, actual: int) -> bool:
    """Tell whether the cached count becomes `actual` within the time that replication may take."""
    try:
        return bool(wait_until(lambda: like_count(POPULAR) == actual, 10, "the cached count"))
    except TimeoutError:
        return False


def _like_and_unlike(dsn: str) -> int:
    """Return how many of the concurrent changes found a row to change."""
    applied: list[int] = []

    def write(seed: int) -> None:
        rng = random.Random(seed)
        with psycopg.connect(dsn, autocommit=True) as connection:
            for _ in range(CHANGES):
                applied.append(connection.execute(_change(rng), [rng.randrange(1, 2000), POPULAR]).rowcount)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(applied)


def _change(rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return b"insert into user_likes_media values (%s, %s) on conflict do nothing"
    return b"delete from user_likes_media where user_id = %s and media_id = %s"
