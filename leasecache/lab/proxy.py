"""A TCP proxy that stalls, slows, drops or resets what passes through it."""

import asyncio
import socket
import struct
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import cycle
from types import TracebackType
from typing import Any, Literal

from leasecache.lab.servers import HOST

Direction = Literal["requests", "replies"]
BOTH: tuple[Direction, ...] = ("requests", "replies")


@dataclass
class _Valve:
    """What happens to the bytes of one direction: they wait until it is open, and then pass or vanish."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    drops: bool = False
    pause: float = 0  # s before each byte


class TcpProxy:
    """Forward connections to a port of 127.0.0.1, and disturb them on demand; a context manager.

    The methods act on both directions unless named, on present and on later connections, and have taken effect when
    they return. A lost answer to an executed command, for example, is `drop("replies")`.

    With `others` it is a balancer: the ports take turns, one for each connection.

    With `reconnects` a client's connection outlives the server's: its next bytes go over a new one to the server, as
    with proxies that have pools of their own.
    """

    def __init__(self, target: int, *others: int, reconnects: bool = False) -> None:
        self._targets = cycle((target, *others))
        self._relay = self._reconnecting if reconnects else self._connected
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy to {target}", daemon=True)
        self._valves: dict[Direction, _Valve] = {direction: _Valve() for direction in BOTH}
        self._writers: set[StreamWriter] = set()
        self.connections = 0  # to the server, of those that may be replaced
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]

    @property
    def address(self) -> str:
        """Return "host:port" of the proxy."""
        return f"{HOST}:{self.port}"

    def stall(self, *directions: Direction) -> None:
        """Hold the bytes back until `flow`."""
        self._call(self._set(directions or BOTH, opened=False, drops=False))

    def drop(self, *directions: Direction) -> None:
        """Let the bytes vanish, also those held back so far, until `flow`."""
        self._call(self._set(directions or BOTH, opened=True, drops=True))

    def flow(self, *directions: Direction) -> None:
        """Let the bytes pass, first those held back."""
        self._call(self._set(directions or BOTH, opened=True, drops=False))

    def drip(self, pause: float, *directions: Direction) -> None:
        """Let the bytes pass one by one, `pause` s before each."""
        self._call(self._set(directions or BOTH, opened=True, drops=False, pause=pause))

    def reset(self) -> None:
        """End every open connection by RST, on both sides; new ones are accepted."""
        self._call(self._reset())

    def __enter__(self) -> "TcpProxy":
        self._thread.start()
        self._call(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, action: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(action, self._loop).result()

    async def _set(self, directions: tuple[Direction, ...], *, opened: bool, drops: bool, pause: float = 0) -> None:
        for direction in directions:
            valve = self._valves[direction]
            valve.drops, valve.pause = drops, pause
            (valve.open.set if opened else valve.open.clear)()

    async def _open(self) -> None:
        await self._set(BOTH, opened=True, drops=False)
        self._server = await asyncio.start_server(self._relay, sock=self._listener)

    async def _close(self) -> None:
        self._server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.wait_closed()

    async def _reset(self) -> None:
        while self._writers:
            writer = self._writers.pop()
            linger = struct.pack("ii", 1, 0)  # on, 0 s: close sends RST and forgets what was not sent
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()

    async def _connected(self, client: StreamReader, to_client: StreamWriter) -> None:
        try:
            server, to_server = await asyncio.open_connection(HOST, next(self._targets))
        except OSError:
            return to_client.close()
        ends = {to_client, to_server}
        self._writers |= ends
        try:
            await asyncio.gather(
                _pump(client, to_server, self._valves["requests"]), _pump(server, to_client, self._valves["replies"])
            )
        except (OSError, asyncio.CancelledError):
            return None  # one side was reset or has gone, or the proxy is closed; closing passes that on
        finally:
            self._writers -= ends
            for writer in ends:
                writer.close()

    async def _reconnecting(self, client: StreamReader, to_client: StreamWriter) -> None:
        self._writers.add(to_client)
        replies: asyncio.Future[None] | None = None
        try:
            while data := await client.read(65536):
                if replies is None or replies.done():
                    server, to_server = await asyncio.open_connection(HOST, next(self._targets))
                    replies = asyncio.ensure_future(self._answers(server, to_server, to_client))
                to_server.write(data)
        except OSError:
            return  # the server is away, or the client
        finally:
            self._writers.discard(to_client)
            to_client.close()
            if replies is not None:
                replies.cancel()

    async def _answers(self, server: StreamReader, to_server: StreamWriter, to_client: StreamWriter) -> None:
        self.connections += 1
        try:
            while data := await server.read(65536):
                to_client.write(data)
        except OSError:
            return
        finally:
            self.connections -= 1
            to_server.close()


async def _pump(source: StreamReader, sink: StreamWriter, valve: _Valve) -> None:
    while data := await source.read(65536):
        await valve.open.wait()
        for part in (data,) if not valve.pause else [data[i : i + 1] for i in range(len(data))]:
            if valve.pause:
                await asyncio.sleep(valve.pause)
            if not valve.drops:
                sink.write(part)
                await sink.drain()
    await valve.open.wait()
    sink.write_eof()
