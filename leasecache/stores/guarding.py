"""Guarded lease-gets over a multiplexed connection: what is asked under which record, and what is believed."""

from collections.abc import Callable, Sequence
from typing import Any

from leasecache._accel import Reply, parse_reply
from leasecache.errors import GuardError, NodeError, ProtocolError
from leasecache.lease import Answer, Ask, Lease
from leasecache.stores import meta
from leasecache.stores.conversation import Conversation
from leasecache.stores.trust import ATTEMPTS, Known, Trust


class Guarding:
    """The guard of one function's requests to one node, as a `MuxReader` wants it."""

    def __init__(self, trust: Trust, mark: bytes) -> None:
        """`trust` is the node's, `mark` the function's."""
        self.trust = trust
        self.request = meta.read_record(trust.key)
        self._mark = mark

    def usable(self) -> Known | None:
        """Return the record read last when it vouches for the function; None = it has to be read first."""
        return self.trust.usable(self._mark)

    def see(self, reply: Reply) -> Known | None:
        """Return the record that a reply shows, None when there is none. Raises NodeError."""
        return self.trust.read(meta.record([reply], 0, 0, None))

    def judge(
        self, asked: Known, seen: Known | NodeError | None, answer: Answer
    ) -> tuple[Answer, NodeError | None, bool]:
        """Return an answer, why it is not to be believed (None: it is), and whether to ask anew.

        It was asked for under the generation of `asked`, and `seen` is what the server had for a record before it.
        """
        return issued(answer, asked.generation), *self._verdict(asked, seen)

    async def find(self, key: bytes, conversation: Conversation) -> bytes:
        """Read the record, and return what a key is called on the node. Raises GuardError."""
        reply = await conversation.ask(self.request, _whole_reply)
        return self.trust.judge(meta.record([reply], 0, 0, None), self._mark).prefix + key

    def _verdict(self, asked: Known, seen: Known | NodeError | None) -> tuple[NodeError | None, bool]:
        if isinstance(seen, NodeError):
            return type(seen)(f"memcached {self.trust.node}: {seen}"), False
        try:
            known = self.trust.judge(None if seen is None else seen.raw, self._mark)
        except GuardError as error:
            return error, False
        return (None, False) if known.generation == asked.generation else (self.trust.unsettled(), True)


class GuardedBatch:
    """Lease-gets of one node in one request, repeated until the generation they were made under holds."""

    def __init__(self, trust: Trust, asks: Sequence[Ask]) -> None:
        """Take guarded and unguarded ones."""
        self.answers: list[Answer | NodeError] = [trust.unsettled()] * len(asks)
        self._trust = trust
        self._asks = asks
        self._marks = {ask.mark for ask in asks}
        self._left = list(range(len(asks)))
        self._plain: list[int] = []  # unguarded ones of the last request, which come first
        self._asked: list[int] = []  # all of it, in its order
        self._known: Known | None = None  # what it was made under
        self._requests = 0

    def begin(self, known: Known | None = None) -> bool:
        """Prepare the next request; False when there is nothing more to ask.

        `known` is the record that it has been made under already; None = it is to be made under the one read last.
        """
        if not self._left or self._requests > ATTEMPTS:  # the first may have to read the record alone
            return False
        self._requests += 1
        self._known = self._trust.known if known is None else known
        marks = frozenset() if self._known is None else self._known.marks
        if self._marks <= marks:
            self._asked = self._left
        else:
            self._plain = [i for i in self._left if self._asks[i].mark is None]
            self._asked = self._plain + [i for i in self._left if self._asks[i].mark in marks]
        return True

    def request(self, mark: Callable[[], bytes]) -> bytes:
        """Return it for a connection that marks its commands so."""
        prefix = b"" if self._known is None else self._known.prefix
        asks, at = [self._asks[i] for i in self._asked], len(self._plain)
        return b"".join(
            [
                *[meta.lease_get(ask.key, ask.lease_for, ask.refresh_ahead, mark()) for ask in asks[:at]],
                meta.read_record(self._trust.key),
                *[meta.lease_get(prefix + ask.key, ask.lease_for, ask.refresh_ahead, mark()) for ask in asks[at:]],
            ]
        )

    @property
    def count(self) -> int:
        """The number of replies to it."""
        return len(self._asked) + 1

    def read(self, replies: Sequence[Reply], epoch: int, born: int, context: None) -> list[Any]:
        """Return the record, and what the other replies mean, in the order of the request. Raises NodeError."""
        keys, at = [self._asks[i].key for i in self._asked], len(self._plain)
        generation = 0 if self._known is None else self._known.generation
        return [
            meta.record(replies[at : at + 1], epoch, born, None),
            *meta.read_answers(replies[:at], epoch, born, keys[:at]),
            *meta.read_answers(replies[at + 1 :], epoch, born, keys[at:], generation),
        ]

    def fail(self, error: NodeError) -> None:
        """Note that the node did not answer the last request."""
        for i in self._left:
            self.answers[i] = error
        self._left = []

    @property
    def won(self) -> list[Answer | NodeError]:
        """What has been believed so far."""
        return [answer for answer in self.answers if isinstance(answer, Lease)]

    def take(self, found: Sequence[Any]) -> list[Lease]:
        """Sort what `read` has made of the replies; return the leases that nobody may use."""
        verdicts = {mark: self._verdict(found[0], mark) for mark in self._marks}
        whole = self._asked is self._left and len(self._left) == len(self._asks)
        if whole and all(verdict is True for verdict in verdicts.values()):  # as a rule
            self.answers, self._left = [*found[1:]], []
            return []
        answers = dict(zip(self._asked, found[1:], strict=True))
        waiting, self._left = self._left, []
        for i in waiting:
            verdict = verdicts[self._asks[i].mark]
            if verdict is True and i in answers:
                self.answers[i] = answers[i]
            elif isinstance(verdict, GuardError):
                self.answers[i] = verdict
            else:
                self._left.append(i)
        return [a for i, a in answers.items() if type(a) is Lease and a is not self.answers[i]]

    def _verdict(self, raw: bytes | None, mark: bytes | None) -> GuardError | bool:
        """Tell whether the answers of a function are to be believed, False = to be asked for anew; or why not."""
        if mark is None:
            return True
        try:
            known = self._trust.judge(raw, mark)
        except GuardError as error:
            return error
        return self._known is not None and known.generation == self._known.generation


def issued(answer: Answer, generation: int) -> Answer:
    """Return an answer whose token names the generation under which it was asked for."""
    if answer.token is None:
        return answer
    return answer._replace(token=answer.token._replace(generation=generation))


def _whole_reply(data: bytes) -> Reply | None:
    parsed = parse_reply(data, 0)
    if parsed is not None and parsed[1] != len(data):
        raise ProtocolError("more than a guard record")
    return None if parsed is None else parsed[0]
