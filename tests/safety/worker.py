"""One process of a run: threads that read and write until the run is over."""

import logging
import threading
from collections.abc import Callable

from tests.safety.reader import Reader, read_in_child
from tests.safety.scene import STORMY, Scene, Setup
from tests.safety.writer import Writer

READERS = 8  # threads
PUBLISHED_EVERY = 0.2  # s
FORKED_EVERY = 10  # publications


def work(setup: Setup, number: int, name: str, rows: list[int]) -> None:
    """Read every row and write `rows`; the report of the process is there once it has ended."""
    logging.getLogger("leasecache").setLevel(logging.ERROR)  # a refresh that fails is expected here
    scene = Scene(setup, name)
    jobs: dict[str, Callable[[], None]] = {f"reader-{n}": Reader(scene).run for n in range(READERS)}
    calm = [row for row in rows if row != STORMY]
    if calm:
        jobs["writer"] = Writer(scene, calm).run
    if STORMY in rows:
        jobs["storm"] = Writer(scene, [STORMY]).storm
    threads = [threading.Thread(target=job, name=title, daemon=True) for title, job in jobs.items()]
    for thread in threads:
        thread.start()
    over = threading.Event()
    rounds = 0
    while not scene.ledger.stopped:
        over.wait(PUBLISHED_EVERY)
        rounds += 1
        if rounds % FORKED_EVERY == 0:
            read_in_child(scene, setup.directory)
        scene.ledger.count(number, scene.counts["operations"], scene.counts["invalidations"])
    for thread in threads:
        thread.join()
    scene.close()
