# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Compiled twin of leasecache._pure_mux: the requests of many tasks over one connection.

Plain hits, and guard records that have not changed, are read where the transport has put them; of every other reply
`parse` is the judge, in both twins alike.
Every read of network bytes is bounded by the `end` that the caller passes down.
"""

import asyncio
import os

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memmove

from leasecache._hot import parse_reply
from leasecache.errors import NodeError, NodeTimeout, ProtocolError


cdef extern from *:
    """
    #include <time.h>
    static double leasecache_now(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec * 1e-9;
    }
    """
    double leasecache_now() nogil


cdef enum:
    QUIET = -1
    ANY_FLAGS = -1
    RECORD = -2  # instead of flags: the request reads the guard record
    FIRST_BUFFER = 65536
    QUEUE_LIMIT = 262144
    EARLY = 4096
    LINE_LIMIT = 2048
    LARGEST = 1073741824

cdef object _running_loop = asyncio.get_running_loop
cdef object _Cancelled = asyncio.CancelledError


cdef class _Marker:
    """Draws the numbers of marks, which are written here; see `leasecache._pure_hits.Marks`."""

    cdef unsigned long long next_number(self) except? 0:
        raise NotImplementedError


@cython.final
@cython.freelist(256)
cdef class _Promise:
    """A request on its way: what a task waits for, as it would for a future.

    A task of asyncio waits for whatever has `_asyncio_future_blocking` (Lib/asyncio/tasks.py: `__step`). A future of
    asyncio takes a handle of the event loop to go on; of these, all that are settled together take one. What a task is
    called back with tells it whether there is an error. It is `_Mux._go`, always, and the task meets what there is when
    it goes on.
    """

    def __iter__(self):
        return self

    def __next__(self):
        if self.state != WAITING:
            raise StopIteration(self.taken())
        if self.callback is not None:
            raise RuntimeError("another task waits for this answer")
        self._asyncio_future_blocking = True
        return self

    @cython.binding(False)
    def get_loop(self):
        """Return the event loop whose tasks may wait."""
        return self.mux.loop

    @cython.binding(False)
    def add_done_callback(self, callback, *, context=None):
        """Call back once, in the task's context."""
        self.callback = callback
        self.caller = PyContext_CopyCurrent() if context is None else context
        if self.state != WAITING:
            self.mux._settle(self, self.state, self.outcome)

    def cancel(self, msg=None):
        """Let the task go on with CancelledError; False when there is an answer already."""
        if self.state != WAITING:
            return False
        self.mux._settle(self, CANCELLED, msg)
        return True

    cdef object taken(self):
        """Return what was answered. Raises NodeError or CancelledError."""
        if self.state == FAILED:
            raise self.outcome
        if self.state == CANCELLED:
            raise _Cancelled() if self.outcome is None else _Cancelled(self.outcome)
        return self.outcome

    cdef int abandon(self) except -1:
        """Leave the result to the owner, also one that came just before its caller was cancelled."""
        if self.mux.loop.is_closed():  # a coroutine is thrown away that nobody can wake any more
            return 0
        if self.state == ANSWERED:
            self.mux._owner.orphaned(self.mux, self.outcome)
        self.state = CANCELLED
        self.outcome = None
        return 0


cdef _Promise _promise(_Mux mux, Py_ssize_t count, object read, object context, long long flags):
    cdef _Promise promise = _Promise.__new__(_Promise)
    promise.count = count
    promise.read = read
    promise.context = context
    promise.flags = flags
    promise.epoch = mux._epochs.latest
    promise.deadline = leasecache_now() + mux._timeout
    promise.mux = mux
    return promise


@cython.final
cdef class Pending:
    """A request on its way; awaiting it gives what its replies mean. Raises NodeError."""

    cdef _Promise _promise
    cdef object _retry

    def __await__(self):
        try:
            return (yield from self._promise)
        except NodeError:
            if self._retry is None or not (self._promise.again or self._promise.mux.died):
                raise
        except BaseException:
            self._promise.abandon()
            raise
        return (yield from self._retry(self._promise.context).__await__())

    def discard(self):
        """Leave the result to the owner: nobody waits for it."""
        self._promise.cancel()


cdef Pending _pending(_Promise promise, object retry):
    cdef Pending pending = Pending.__new__(Pending)
    pending._promise = promise
    pending._retry = retry
    return pending


cdef class _Mux:
    def __cinit__(self, *args, **kwargs):
        self._out_room = FIRST_BUFFER
        self._out = <char *>PyMem_Malloc(self._out_room)
        if self._out == NULL:
            raise MemoryError()

    def __init__(
        self,
        str name,
        owner,
        epochs,
        long long born,
        mark,
        double timeout,
        parse=parse_reply,
        long long most=LARGEST,
    ):
        self.loop = _running_loop()
        self._owner = owner
        self._epochs = epochs
        self.born = born
        self.mark = mark
        self._timeout = timeout
        self.closed = self.loop.create_future()
        self._name = name
        self._parse = parse
        self._most = most
        self._queue = []
        self._waiters = []
        self._settled = []
        self._go = self.loop.create_future()
        self._go.set_result(None)
        self._renew(FIRST_BUFFER)

    def __dealloc__(self):
        PyMem_Free(self._out)

    @property
    def idle(self):
        """Whether nothing waits for an answer."""
        return self._first == len(self._queue)

    @property
    def full(self):
        """Whether so much waits to be sent that a caller should wait for `drained` first."""
        return self._out_size >= QUEUE_LIMIT

    def ask(self, bytes request not None, Py_ssize_t count, read, context):
        """Send a request; awaited, it gives what `read` makes of its `count` replies, or of those before MN.

        Raises NodeError when the connection is gone.
        """
        cdef _Promise promise
        if not self.open:
            raise self._gone()
        promise = _promise(self, count, read, context, ANY_FLAGS)
        promise.replies = []
        promise.most = request.count(b"\n")
        self._put(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request))
        self._add(promise)
        return _pending(promise, None)

    def drained(self):
        """Return a future that is done when the transport has taken what waits. Raises NodeError like a request."""
        waiter = self.loop.create_future()
        if self.open:
            self._waiters.append(waiter)
        else:
            waiter.set_exception(self._gone())
        return waiter

    def close(self):
        """End the connection when what was asked has been answered; `closed` is done then."""
        self.open = False
        if self._first == len(self._queue):
            self._end(NodeError("connection closed"), False)

    def detach(self):
        """Let go of the connection in a forked child, where the parent goes on using it."""
        self.open = False
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, self._transport.get_extra_info("socket").fileno())  # unlike close, no event loop is told
        os.close(null)

    def connection_made(self, transport):
        """Take over a connection that has been greeted."""
        self._transport = transport
        self.open = True

    def get_buffer(self, sizehint):
        """Return where the transport puts what it receives."""
        cdef Py_ssize_t room = PyByteArray_GET_SIZE(self._room)
        cdef bytearray smaller = self._room
        if self._filled == 0:
            if room > 4 * FIRST_BUFFER:
                self._renew(FIRST_BUFFER)
            return self._view
        if self._filled == room:
            self._renew(2 * room)
            memcpy(PyByteArray_AS_STRING(self._room), PyByteArray_AS_STRING(smaller), self._filled)
        return self._view[self._filled:]

    def buffer_updated(self, Py_ssize_t nbytes):
        """Give every reply that is complete to whoever asked for it."""
        cdef char *data = PyByteArray_AS_STRING(self._room)
        cdef Py_ssize_t position = 0, taken
        if self._error is not None:
            return
        self._filled += nbytes
        try:
            while self._error is None and position < self._filled:
                taken = self._take(data + position, self._filled - position)
                if taken == 0:
                    break
                position += taken
        except ProtocolError as error:
            self._end(error, True)
        self._filled -= position
        if position and self._filled:
            memmove(data, data + position, self._filled)

    def eof_received(self):
        """Let the transport close; `connection_lost` follows."""

    def connection_lost(self, error):
        """Fail what was asked and will not be answered."""
        self.died = self._error is None and self._served
        fault = f"connection broke: {error}" if error else "connection closed by the server"
        self._end(NodeError(fault), not self.died)
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self):
        """Keep requests here while the transport has enough."""
        self._paused = True

    def resume_writing(self):
        """Send what has gathered."""
        self._paused = False
        self._flush()

    def _flush(self):
        self._flushing = False
        if self._paused or self._error is not None:
            return
        if self._out_size:
            self._send()
        if self._waiters and not self._paused:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _resume(self):
        """Let the tasks go on whose requests are settled; what one raises is for the event loop, and ends no other."""
        cdef list settled = self._settled
        cdef Py_ssize_t i = 0
        cdef _Promise promise
        self._settled = []
        self._resuming = False
        try:
            while i < len(settled):
                promise = <_Promise>settled[i]
                i += 1
                callback, promise.callback = promise.callback, None
                PyContext_Enter(promise.caller)
                try:
                    callback(self._go)
                finally:
                    PyContext_Exit(promise.caller)
        finally:
            if i < len(settled):
                self._settled = settled[i:] + self._settled
                self._resuming = True
                self.loop.call_soon(self._resume)

    def _tick(self, bint grace):
        cdef double late
        self._timer = None
        if self._first == len(self._queue):
            return
        late = leasecache_now() - (<_Promise>self._queue[self._first]).deadline
        if late < 0:
            self._timer = self.loop.call_later(-late, self._tick, True)
        elif grace:  # the loop was held up for so long, and has not read what may be there
            self._timer = self.loop.call_later(min(late, self._timeout), self._tick, False)
        else:
            self._end(NodeTimeout(f"no answer within {self._timeout:g} s"), True)

    cdef int _renew(self, Py_ssize_t room) except -1:
        self._room = bytearray(room)
        self._view = memoryview(self._room)
        return 0

    cdef int _put(self, const char *data, Py_ssize_t size) except -1:
        if self._out_size + size > self._out_room:
            self._resize_out(max(2 * self._out_room, self._out_size + size))
        memcpy(self._out + self._out_size, data, size)
        self._out_size += size
        return 0

    cdef int _put_mark(self) except -1:
        cdef char text[24]
        cdef bytes mark
        if isinstance(self.mark, _Marker):
            return self._put(text, snprintf(text, sizeof(text), b" E%llu", (<_Marker>self.mark).next_number()))
        if self.mark is not bytes:  # which marks nothing
            mark = self.mark()
            self._put(PyBytes_AS_STRING(mark), PyBytes_GET_SIZE(mark))
        return 0

    cdef int _resize_out(self, Py_ssize_t room) except -1:
        cdef char *resized = <char *>PyMem_Malloc(room)
        if resized == NULL:
            raise MemoryError()
        memcpy(resized, self._out, self._out_size)
        PyMem_Free(self._out)
        self._out = resized
        self._out_room = room
        return 0

    cdef int _send(self) except -1:
        data = PyBytes_FromStringAndSize(self._out, self._out_size)
        self._record = None
        self._out_size = 0
        if self._out_room > 4 * QUEUE_LIMIT:
            self._resize_out(FIRST_BUFFER)
        self._transport.write(data)
        return 0

    cdef int _guard(self, _Promise promise, _Guarded guarded) except -1:
        """Have the record read in front of this request, or of one before it that leaves with it."""
        cdef _Promise record = self._record
        if record is None or record.guard is not guarded.trust:
            record = _promise(self, 1, guarded.guard, guarded.reply, RECORD)
            record.guard = guarded.trust
            record.known = guarded.known
            self._put(PyBytes_AS_STRING(guarded.request), PyBytes_GET_SIZE(guarded.request))
            self._queue.append(record)
            self._record = record
        promise.guard = guarded.guard
        promise.known = guarded.known
        promise.record = record
        return 0

    cdef int _add(self, _Promise promise) except -1:
        self._queue.append(promise)
        if self._out_size >= EARLY and not self._paused:
            self._send()
        elif not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)
        if self._timer is None:
            self._timer = self.loop.call_later(self._timeout, self._tick, True)
        return 0

    cdef int _pop(self) except -1:
        """Forget the oldest request; the list is shortened when half of it has been answered."""
        self._queue[self._first] = None
        self._first += 1
        if self._first == len(self._queue):
            self._queue.clear()
            self._first = 0
        elif self._first >= 1024 and 2 * self._first >= len(self._queue):
            del self._queue[:self._first]
            self._first = 0
        self._served = True
        return 0

    cdef Py_ssize_t _take(self, const char *data, Py_ssize_t end) except -1:
        """Deal with the reply at the start of `data`; return its size, 0 while bytes are missing."""
        cdef Py_ssize_t line_end = _line_end(data, min(end, LINE_LIMIT + 2))
        cdef Py_ssize_t size, whole
        cdef _Promise promise
        if self._first == len(self._queue):
            raise ProtocolError("a reply that nobody asked for")
        promise = <_Promise>self._queue[self._first]
        if promise.flags == RECORD and _begins(data, end, <bytes>promise.context):
            promise.outcome = promise.known
            self._pop()
            return PyBytes_GET_SIZE(<bytes>promise.context)
        if line_end == 0:
            if end > LINE_LIMIT + 1:
                self._parse(data[:LINE_LIMIT + 2], 0)  # raises
            return 0
        size = _value_size(data, line_end)
        if size > self._most:
            raise ProtocolError(f"a value of {size} bytes, and the server stores {self._most} at most")
        whole = line_end if size < 0 else line_end + size + 2
        if size >= 0 and whole <= end and promise.flags != ANY_FLAGS and _plain(data, line_end, promise.flags):
            if promise.record is not None and promise.record.outcome is not promise.known:
                pass  # the record has to be judged
            elif data[whole - 2] == c'\r' and data[whole - 1] == c'\n':
                self._pop()
                self._give(promise, PyBytes_FromStringAndSize(data + line_end, size))
                return whole
        parsed = self._parse(data[:whole if whole <= end else line_end], 0)
        if parsed is None:
            return 0
        if promise.flags == RECORD:
            self._see(promise, parsed[0])
        else:
            self._read(promise, parsed[0])
        return parsed[1]

    cdef int _see(self, _Promise record, object reply) except -1:
        """Note what a record that is not the known one says."""
        try:
            record.outcome = record.read.see(reply)
        except ProtocolError:
            raise
        except NodeError as error:
            record.outcome = error
        return self._pop()

    cdef int _read(self, _Promise promise, object reply) except -1:
        """Add a reply to those of its request and, if it is the last, give what they mean."""
        if promise.flags == ANY_FLAGS:
            if promise.count != QUIET or reply.code != b"MN":
                if promise.count == QUIET and len(promise.replies) == promise.most:
                    raise ProtocolError("more replies than commands")
                promise.replies.append(reply)
                if promise.count == QUIET or len(promise.replies) < promise.count:
                    return 0
        elif (
            reply.code == b"VA"
            and reply.value is not None
            and reply.flags == promise.flags
            and not (reply.won or reply.stale or reply.taken)
            and (promise.record is None or promise.record.outcome is promise.known)
        ):
            self._pop()
            return self._give(promise, reply.value)
        else:
            promise.replies = [reply]
        context = promise.context if promise.flags == ANY_FLAGS else (promise.context,)
        try:
            result = promise.read(promise.replies, promise.epoch, self.born, context)
        except ProtocolError:  # not an answer to this command: what follows may be another's
            raise
        except NodeError as error:
            self._pop()
            if promise.state == WAITING:
                self._settle(promise, FAILED, self._named(error))
        else:
            self._pop()
            if promise.record is None:
                self._give(promise, result if promise.flags == ANY_FLAGS else result[0])
            else:
                self._judge(promise, result[0])
        return self._close_when_done()

    cdef int _judge(self, _Promise promise, object answer) except -1:
        """Give the answer to a guarded request, or why it is not to be believed: then its lease is given back."""
        answer, fault, promise.again = promise.guard.judge(promise.known, promise.record.outcome, answer)
        if fault is None:
            return self._give(promise, answer)
        self._owner.orphaned(self, answer)
        if promise.state == WAITING:
            self._settle(promise, FAILED, fault)
        return 0

    cdef int _give(self, _Promise promise, object result) except -1:
        if promise.state == WAITING:
            self._settle(promise, ANSWERED, result)
        else:
            self._owner.orphaned(self, result)
        return 0 if self.open else self._close_when_done()

    cdef int _settle(self, _Promise promise, State state, object outcome) except -1:
        promise.state = state
        promise.outcome = outcome
        if promise.callback is not None:
            self._settled.append(promise)
            if not self._resuming:
                self._resuming = True
                self.loop.call_soon(self._resume)
        return 0

    cdef int _close_when_done(self) except -1:
        if not self.open and self._first == len(self._queue):
            self._end(NodeError("connection closed"), False)
        return 0

    cdef int _end(self, object error, bint failed) except -1:
        cdef _Promise promise
        if self._error is not None:
            return 0
        self.open = False
        self._error = error
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        waiting = self._queue[self._first:]
        self._owner.lost(self, error if waiting or failed else None, failed)
        self._out_size = 0
        self._queue.clear()
        self._first = 0
        for promise in waiting:
            if promise.state == WAITING:
                self._settle(promise, FAILED, self._gone())
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(self._gone())
        self._waiters.clear()
        return 0

    cdef object _gone(self):
        return self._named(self._error or NodeError("connection is closing"))

    cdef object _named(self, error):
        return type(error)(f"{self._name}: {error}")


class Mux(_Mux, asyncio.BufferedProtocol):
    """Sends the requests of all tasks of one event loop over one connection and gives each its replies."""

    __slots__ = ()


@cython.final
cdef class _Guarded:
    """How the requests of a reader are guarded, with what it needs of the record that is known."""

    def __cinit__(self, guard):
        self.guard = guard
        self.trust = guard.trust
        self.request = guard.request

    cdef bint usable(self) except -1:
        """Tell whether the record that is known can vouch for the function."""
        if self.known is None or self.known is not self.trust.known:
            self.known = self.guard.usable()
            if self.known is not None:
                self.prefix, self.reply = self.known.prefix, self.known.reply
        return self.known is not None


cdef class MuxReader:
    """Lease-gets with the same terms; called with a key it gives an awaitable, of the value alone for a plain hit."""

    def __init__(self, dict muxes not None, tuple request not None, long long flags, read, retry, guard=None):
        self._muxes = muxes
        self._head, self._middle, self._end = request
        self._flags = flags
        self._read = read
        self._retry = retry
        self._guarded = None if guard is None else _Guarded.__new__(_Guarded, guard)

    def __call__(self, bytes key not None):
        cdef _Promise promise = self.ask(key)
        return self._retry(key) if promise is None else _pending(promise, self._retry)

    cdef _Promise ask(self, bytes key):
        cdef object found = self._muxes.get(_running_loop())
        cdef _Mux mux
        cdef _Promise promise
        if found is None:
            return None
        mux = <_Mux?>found
        if not mux.open or mux._out_size >= QUEUE_LIMIT:
            return None
        if self._guarded is not None and not self._guarded.usable():
            return None
        promise = _promise(mux, 1, self._read, key, self._flags)
        if self._guarded is not None:
            mux._guard(promise, self._guarded)
        mux._put(PyBytes_AS_STRING(self._head), PyBytes_GET_SIZE(self._head))
        if self._guarded is not None:
            mux._put(PyBytes_AS_STRING(self._guarded.prefix), PyBytes_GET_SIZE(self._guarded.prefix))
        mux._put(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        mux._put(PyBytes_AS_STRING(self._middle), PyBytes_GET_SIZE(self._middle))
        mux._put_mark()
        mux._put(PyBytes_AS_STRING(self._end), PyBytes_GET_SIZE(self._end))
        mux._add(promise)
        return promise


cdef bint _begins(const char *data, Py_ssize_t end, bytes expected) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(expected)
    return size <= end and memcmp(data, PyBytes_AS_STRING(expected), size) == 0


cdef Py_ssize_t _line_end(const char *data, Py_ssize_t end) noexcept:
    """Return where the first line has ended, 0 when it has not."""
    cdef Py_ssize_t at = 0
    cdef const char *found
    while at < end:
        found = <const char *>memchr(data + at, c'\n', end - at)
        if found == NULL:
            return 0
        at = found - data + 1
        if at > 1 and data[at - 2] == c'\r':
            return at
    return 0


cdef Py_ssize_t _value_size(const char *line, Py_ssize_t end) noexcept:
    """Return the size that a VA line states, −1 for any other line or one that is not as it should be."""
    cdef Py_ssize_t at = 3, size = 0
    if end < 6 or line[0] != c'V' or line[1] != c'A' or line[2] != c' ':
        return -1
    while at < 14 and c'0' <= line[at] <= c'9':
        size = size * 10 + (line[at] - c'0')
        at += 1
    return size if 3 < at < 14 and (line[at] == c' ' or line[at] == c'\r') else -1


cdef bint _plain(const char *line, Py_ssize_t end, long long flags) noexcept:
    """Tell whether a VA line is a plain hit's, with these client flags; False when `parse` should look closer."""
    cdef Py_ssize_t at = 3
    cdef Py_ssize_t digits
    cdef long long number
    cdef long long found = 0
    cdef char flag
    while c'0' <= line[at] <= c'9':
        at += 1
    while line[at] == c' ':
        flag = line[at + 1]
        at += 2
        if flag == c't' and line[at] == c'-' and line[at + 1] == c'1':
            at += 2
            continue
        if flag != c'c' and flag != c'f' and flag != c't':
            return False
        number = digits = 0
        while c'0' <= line[at] <= c'9':
            if digits < 10:
                number = number * 10 + (line[at] - c'0')
            digits += 1
            at += 1
        if digits == 0 or digits > (19 if flag == c'c' else 9 if flag == c't' else 10):
            return False
        if flag == c'f':
            found = number
    return at == end - 2 and found == flags
