"""What goes wrong during a run: servers killed and started again, paused, connections cut, bytes lost."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from leasecache.lab import Server, TcpProxy
from tests.safety.history import EVERY_ROW, History

EVERY = 1.2  # s at most between two faults


class Faults:
    """Disturbs one server after another; each fault is over before the next begins."""

    def __init__(
        self,
        servers: Sequence[Server],
        proxies: Sequence[TcpProxy],
        kill_worker: Callable[[], None],
        *,
        seed: int,
        calm: float,
    ) -> None:
        """`calm` is the s at the beginning without a fault: what is stretched shows only after some seconds."""
        self.counts: Counter[str] = Counter()
        self.history = History("faults")
        self._servers = servers
        self._proxies = proxies
        self._kill_worker = kill_worker
        self._calm = calm
        self._random = random.Random(f"{seed} faults")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")

    def __enter__(self) -> "Faults":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def restart(self) -> None:
        """Kill a server and start it again, empty."""
        server = self._random.choice(self._servers)
        server.kill()
        self._pause(self._random.choice([0, 0, 0.3]))
        server.start()

    def restart_twice(self) -> None:
        """Restart again before the first loads are done: then new leases may get the CAS numbers that these hold."""
        server = self._random.choice(self._servers)
        for _ in range(2):
            server.kill()
            server.start()
            self._pause(0.1)

    def pause(self) -> None:
        """Stop a server for a while by SIGSTOP."""
        server = self._random.choice(self._servers)
        server.pause()
        self._pause(0.8)
        server.resume()

    def cut(self) -> None:
        """Reset the connections through a proxy."""
        self._random.choice(self._proxies).reset()

    def lose_replies(self) -> None:
        """Let commands be executed and their answers be lost; the connections end with that, as TCP has it."""
        self._disturb(lambda proxy: proxy.drop("replies"), TcpProxy.reset)

    def lose_requests(self) -> None:
        """Let commands get lost, and the connections with them."""
        self._disturb(lambda proxy: proxy.drop("requests"), TcpProxy.reset)

    def stall(self) -> None:
        """Hold bytes back."""
        self._disturb(TcpProxy.stall, lambda proxy: None)

    def kill_worker(self) -> None:
        """Kill a process that holds leases."""
        self._kill_worker()

    def _run(self) -> None:
        faults = [self.restart, self.restart_twice, self.restart_twice, self.pause, self.kill_worker]
        if self._proxies:
            faults += [self.cut, self.lose_replies, self.lose_requests, self.stall]
        self._over.wait(self._calm)
        while not self._over.wait(self._random.random() * EVERY):
            fault = self._random.choice(faults)
            began = time.monotonic_ns()
            fault()
            self.counts[fault.__name__] += 1
            self.history.note(EVERY_ROW, "fault", began, fault.__name__)

    def _disturb(self, fault: Callable[[TcpProxy], None], end: Callable[[TcpProxy], None]) -> None:
        proxy = self._random.choice(self._proxies)
        fault(proxy)
        self._pause(0.5)
        end(proxy)
        proxy.flow()

    def _pause(self, most: float) -> None:
        self._over.wait(self._random.random() * most)
