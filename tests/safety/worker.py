"""One process of a run: threads, and tasks of an event loop, that read and write until the run is over."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from tests.safety.client import STORMY, Client, ran
from tests.safety.reader import Reader, read_in_child
from tests.safety.scene import Scene, Setup
from tests.safety.writer import Writer

READERS = 5  # threads, and as many tasks
PUBLISHED_EVERY = 0.2  # s
FORKED_EVERY = 10  # publications

Job = Callable[[], Coroutine[Any, Any, None]]


def work(setup: Setup, number: int, name: str, rows: list[int]) -> None:
    """Read every row and write `rows`; the report of the process is there once it has ended."""
    logging.getLogger("leasecache").setLevel(logging.ERROR)  # a refresh that fails is expected here
    scene = Scene(setup, name)
    client = Client(scene)
    writes_asynchronously = number % 2 == 1
    calm, stormy = [row for row in rows if row != STORMY], [row for row in rows if row == STORMY]
    jobs: dict[str, Job] = {f"reader-{n}": Reader(client).run for n in range(READERS)}
    if calm and not writes_asynchronously:
        jobs["writer"] = Writer(client, calm).run
    if stormy:
        jobs["storm"] = Writer(client, stormy).storm
    threads = [threading.Thread(target=_run, args=(job,), name=title, daemon=True) for title, job in jobs.items()]
    loop = threading.Thread(target=_loop, args=(scene, calm if writes_asynchronously else []), name="loop", daemon=True)
    for thread in (*threads, loop):
        thread.start()
    _attend(number, client)
    for thread in (*threads, loop):
        thread.join()
    ran(client.close())
    scene.leave_report(name)


def _run(job: Job) -> None:
    ran(job())


def _loop(scene: Scene, rows: list[int]) -> None:
    asyncio.run(_tasks(scene, rows))


async def _tasks(scene: Scene, rows: list[int]) -> None:
    client = Client(scene, asynchronous=True)
    jobs = [Reader(client).run() for _ in range(READERS)]
    if rows:
        jobs.append(Writer(client, rows).run())
    try:
        await asyncio.gather(*jobs)
    finally:
        await client.close()


def _attend(number: int, client: Client) -> None:
    """Publish what is done, and fork now and then."""
    scene, over, rounds = client.scene, threading.Event(), 0
    while not scene.ledger.stopped:
        over.wait(PUBLISHED_EVERY)
        rounds += 1
        if rounds % FORKED_EVERY == 0:
            read_in_child(client)
        scene.ledger.count(number, scene.counts["operations"], scene.counts["invalidations"])
