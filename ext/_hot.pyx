# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Compiled twin of leasecache._pure: the meta-protocol reply reader and the wire.

Every read of network bytes is bounded by the `end` that the caller passes down; nothing reads past it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memmove, strerror

from leasecache.errors import NodeError, NodeTimeout, ProtocolError


cdef extern from *:
    """
    #include <poll.h>
    #include <sys/socket.h>
    #include <sys/time.h>
    #include <time.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0
    #endif
    #define LEASECACHE_SEND (MSG_NOSIGNAL | MSG_DONTWAIT)
    #define LEASECACHE_LONGEST 1e6
    static double leasecache_monotonic(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return now.tv_sec + now.tv_nsec * 1e-9;
    }
    static int leasecache_wait(int fd, short events, double seconds) {
        struct pollfd waited = {fd, events, 0};
        if (seconds > LEASECACHE_LONGEST)
            seconds = LEASECACHE_LONGEST;
        return poll(&waited, 1, (int)(seconds * 1000) + 1);
    }
    static int leasecache_limit(int fd, double seconds) {
        struct timeval limit;
        if (seconds > LEASECACHE_LONGEST)
            seconds = LEASECACHE_LONGEST;
        limit.tv_sec = (long)seconds;
        limit.tv_usec = (long)((seconds - (double)(long)seconds) * 1e6);
        if (limit.tv_sec == 0 && limit.tv_usec == 0)
            limit.tv_usec = 1;
        return setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    }
    """
    ctypedef long ssize_t
    ssize_t c_send "send"(int, const void *, size_t, int) nogil
    ssize_t c_recv "recv"(int, void *, size_t, int) nogil
    const int LEASECACHE_SEND
    const short POLLIN
    const short POLLOUT
    double leasecache_monotonic() nogil
    int leasecache_wait(int fd, short events, double seconds) nogil
    int leasecache_limit(int fd, double seconds) nogil


cdef enum:
    LINE_LIMIT = 2048
    FIRST_BUFFER = 65536
    LARGEST_READ = 262144


@cython.freelist(64)
cdef class Reply:
    """One reply of the meta protocol (memcached doc/protocol.txt, "Meta Commands")."""

    def __init__(self, bytes code, bytes value=None):
        self.code = code
        self.value = value
        self.flags = 0
        self.cas = 0
        self.ttl = -1
        self.opaque = -1


cdef Reply _ABSENT = Reply(b"NF")  # nobody can change it, and deletions of what is not there are answered by thousands
cdef dict _CODES = {code: code for code in (b"HD", b"EN", b"NF", b"NS", b"EX", b"MN")}


cdef Reply _read_reply(const char *data, Py_ssize_t end, Py_ssize_t *position):
    """Read the reply at `*position` and move it behind; None while bytes are missing."""
    cdef Py_ssize_t start = position[0]
    cdef Py_ssize_t line_end = _line_end(data, start, end)
    cdef Py_ssize_t space, size, at
    cdef Reply reply
    cdef unsigned long long number
    if line_end < 0:
        if end - start > LINE_LIMIT + 1:  # one byte more may be the CR of a line that is just short enough
            raise ProtocolError("reply line is longer than the protocol allows")
        return None
    if line_end - start == 2 and data[start] == c'N' and data[start + 1] == c'F':
        position[0] = line_end + 2
        return _ABSENT
    space = start
    while space < line_end and data[space] != c' ':
        space += 1
    if space - start == 2 and data[start] == c'V' and data[start + 1] == c'A':
        at = min(space + 1, line_end)
        size = _token_end(data, at, line_end)
        number = _number(data, at, size, (1ULL << 30) + 1)  # more cannot be stored, whatever -I says
        reply = Reply.__new__(Reply, b"VA")
        reply.code = b"VA"
        reply.ttl = reply.opaque = -1
        _read_flags(reply, data, size, line_end)
        at = line_end + 2
        size = <Py_ssize_t>number
        if end - at < size + 2:
            return None
        if data[at + size] != c'\r' or data[at + size + 1] != c'\n':
            raise ProtocolError("value is not followed by CRLF")
        reply.value = PyBytes_FromStringAndSize(data + at, size)
        position[0] = at + size + 2
        return reply
    code = data[start:space]
    position[0] = line_end + 2
    if code in _CODES:
        reply = Reply(_CODES[code])
        _read_flags(reply, data, space, line_end)
        return reply
    if code == b"ME" or code == b"SERVER_ERROR":
        return Reply(code, data[min(space + 1, line_end):line_end])
    raise ProtocolError(f"unexpected reply {data[start:min(line_end, start + 80)]!r}")


cdef Py_ssize_t _line_end(const char *data, Py_ssize_t start, Py_ssize_t end) noexcept:
    """Return where the CRLF of the line stands, or −1 when it is not within the limit."""
    cdef Py_ssize_t last = min(end, start + LINE_LIMIT + 2)
    cdef const char *found
    cdef Py_ssize_t at = start
    while at < last - 1:
        found = <const char *>memchr(data + at, c'\r', last - 1 - at)
        if found == NULL:
            return -1
        at = found - data
        if data[at + 1] == c'\n':
            return at
        at += 1
    return -1


cdef void mark_flags(Mark *mark, unsigned long flags) noexcept:
    mark.flags = flags
    mark.size = snprintf(mark.text, sizeof(mark.text), b"f%lu", flags)


cdef Py_ssize_t _plain(const char *data, Py_ssize_t at, Py_ssize_t end, const Mark *mark, Py_ssize_t *value) noexcept:
    """Return where the plain hit that begins at `at` ends, and in `*value` where its value begins.

    −1 when it is anything but `VA <size> c<cas> <mark> t<ttl>` with its whole value: `_read_reply` then decides.
    """
    cdef Py_ssize_t size = 0
    cdef Py_ssize_t digits
    if end - at < 16 + mark.size or data[at] != c'V' or data[at + 1] != c'A' or data[at + 2] != c' ':
        return -1
    at += 3
    digits = _digits(data, at, end, 9)
    if digits == 0:
        return -1
    for at in range(at, at + digits):
        size = 10 * size + data[at] - c'0'
    at += 1
    if end - at < 2 or data[at] != c' ' or data[at + 1] != c'c':
        return -1
    digits = _digits(data, at + 2, end, 19)
    at += 2 + digits
    if digits == 0 or end - at < 3 + mark.size or data[at] != c' ' or memcmp(data + at + 1, mark.text, mark.size):
        return -1
    at += 1 + mark.size
    if data[at] != c' ' or data[at + 1] != c't':
        return -1
    at += 2
    if end - at >= 2 and data[at] == c'-' and data[at + 1] == c'1':
        at += 2
    else:
        digits = _digits(data, at, end, 9)
        if digits == 0:
            return -1
        at += digits
    if end - at < size + 4 or data[at] != c'\r' or data[at + 1] != c'\n':
        return -1
    value[0] = at + 2
    at += 2 + size
    return at + 2 if data[at] == c'\r' and data[at + 1] == c'\n' else -1


cdef inline Py_ssize_t _digits(const char *data, Py_ssize_t at, Py_ssize_t end, Py_ssize_t most) noexcept:
    """Return how many digits stand at `at`; 0 when there are more than `most`."""
    cdef Py_ssize_t stop = at
    while stop < end and c'0' <= data[stop] <= c'9':
        stop += 1
    return stop - at if stop - at <= most else 0


cdef Py_ssize_t _token_end(const char *data, Py_ssize_t at, Py_ssize_t end) noexcept:
    while at < end and data[at] != c' ':
        at += 1
    return at


cdef int _read_flags(Reply reply, const char *data, Py_ssize_t at, Py_ssize_t end) except -1:
    """Read the flags; `at` is the blank before the first one, or the end of the line."""
    cdef Py_ssize_t stop
    cdef char flag
    while at < end:
        at += 1
        stop = _token_end(data, at, end)
        flag = data[at] if stop > at else 0
        if flag == c'f':
            reply.flags = _number(data, at + 1, stop, 1ULL << 32)
        elif flag == c'c':
            reply.cas = _number(data, at + 1, stop, 0)
        elif flag == c't':
            if stop - at == 3 and data[at + 1] == c'-' and data[at + 2] == c'1':
                reply.ttl = -1
            else:
                reply.ttl = _number(data, at + 1, stop, 1ULL << 32)
        elif flag == c'O':
            reply.opaque = _number(data, at + 1, stop, 1ULL << 31)
        elif stop - at == 1 and flag == c'W':
            reply.won = True
        elif stop - at == 1 and flag == c'X':
            reply.stale = True
        elif stop - at == 1 and flag == c'Z':
            reply.taken = True
        else:
            raise ProtocolError(f"unexpected flag {data[at:min(stop, at + 80)]!r} in a reply")
        at = stop
    return 0


cdef unsigned long long _number(const char *data, Py_ssize_t at, Py_ssize_t stop, unsigned long long limit) except? 0:
    """Read decimal digits as a number below `limit`; a limit of 0 means 2**64."""
    cdef unsigned long long number = 0
    cdef unsigned long long digit
    cdef Py_ssize_t i
    cdef bint good = 0 < stop - at <= 20
    if good:
        for i in range(at, stop):
            if not c'0' <= data[i] <= c'9':
                good = False
                break
            digit = data[i] - c'0'
            if number > (0xFFFFFFFFFFFFFFFFULL - digit) // 10:
                good = False
                break
            number = number * 10 + digit
    if not good or (limit and number >= limit):
        raise ProtocolError(f"expected a number below {limit or 2**64}, got {data[at:min(stop, at + 80)]!r}")
    return number


cdef bint _is_plain(Reply reply, const Mark *mark):
    if reply.flags != mark.flags or reply.won or reply.stale or reply.taken:
        return False
    return reply.value is not None and reply.code == b"VA"


def parse_reply(bytes data not None, Py_ssize_t start):
    """Read the reply that begins at `start`: (reply, where the next begins), or None while bytes are missing."""
    cdef Py_ssize_t position = start
    if not 0 <= start <= PyBytes_GET_SIZE(data):
        raise ValueError("start is outside the data")
    reply = _read_reply(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &position)
    return None if reply is None else (reply, position)


cdef class Wire:
    """Request and reply over a plain socket's descriptor, the GIL released; each exchange under one deadline."""

    def __cinit__(self, *args, **kwargs):
        self._fd = -1
        self._room = FIRST_BUFFER
        self._data = <char *>PyMem_Malloc(self._room)
        if self._data == NULL:
            raise MemoryError()

    def __init__(self, sock, double timeout):
        sock.settimeout(None)
        self._sock = sock
        self._fd = sock.fileno()
        self._timeout = timeout
        if leasecache_limit(self._fd, timeout) < 0:
            raise OSError(errno, strerror(errno).decode())

    def __dealloc__(self):
        PyMem_Free(self._data)

    def close(self):
        """Close the socket; never raises."""
        self._fd = -1
        self._sock.close()

    def exchange(self, bytes request not None, Py_ssize_t count):
        """Send `request` and return its `count` replies. Raises NodeTimeout, NodeError or ProtocolError."""
        return self.ask_many(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), count, NULL)

    def exchange_quiet(self, bytes request not None):
        """Send quiet commands ended by `mn` and return the replies before its MN. Raises like `exchange`."""
        cdef Py_ssize_t most = max(1, request.count(b"\n"))
        return self.ask_many(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), -most, NULL)

    def hit(self, bytes request not None, unsigned long flags):
        """Send a lease-get; return the value if it is a plain hit with these client flags, else the reply.

        A plain hit is VA without W, X and Z. Raises like `exchange`.
        """
        cdef Mark mark
        mark_flags(&mark, flags)
        return self.ask(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), &mark)

    def hits(self, bytes request not None, Py_ssize_t count, unsigned long flags):
        """Send `count` lease-gets; return for each what `hit` returns. Raises like `exchange`."""
        cdef Mark mark
        mark_flags(&mark, flags)
        return self.ask_many(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), count, &mark)

    def guarded_hits(self, bytes request not None, Py_ssize_t count, unsigned long flags, bytes expected not None):
        """Send the read of a guard record and `count` lease-gets; return what `hits` does behind the first reply.

        That is None if it is `expected`, byte for byte. Raises like `exchange`.
        """
        cdef Mark mark
        mark_flags(&mark, flags)
        return self.ask_guarded(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), count, &mark, expected)

    cdef object ask(self, const char *request, Py_ssize_t size, const Mark *mark):
        """Send one lease-get and receive its answer: as a rule one call each, without the GIL."""
        cdef double deadline = leasecache_monotonic() + self._timeout
        cdef Py_ssize_t value = 0
        cdef Py_ssize_t end
        self._send_and_receive(request, size, deadline)
        end = _plain(self._data, 0, self._size, mark, &value)
        if end == self._size:
            return PyBytes_FromStringAndSize(self._data + value, end - 2 - value)
        return self._collect(1, mark, deadline, False, None)[0]

    cdef object ask_guarded_one(self, const char *request, Py_ssize_t size, const Mark *mark, bytes expected):
        """Send the read of a guard record and one lease-get.

        Return the value alone if the first reply is as expected and the second one a plain hit; else both.
        """
        cdef double deadline = leasecache_monotonic() + self._timeout
        cdef Py_ssize_t value = 0
        cdef Py_ssize_t end
        cdef Py_ssize_t first = PyBytes_GET_SIZE(expected)
        self._send_and_receive(request, size, deadline)
        if self._size > first and memcmp(self._data, PyBytes_AS_STRING(expected), first) == 0:
            end = _plain(self._data, first, self._size, mark, &value)
            if end == self._size:
                return PyBytes_FromStringAndSize(self._data + value, end - 2 - value)
        return self._collect(2, mark, deadline, False, expected)

    cdef list ask_guarded(
        self, const char *request, Py_ssize_t size, Py_ssize_t count, const Mark *mark, bytes expected
    ):
        """Send the read of a guard record and `count` lease-gets; return as many and one, None first if as expected."""
        cdef double deadline = leasecache_monotonic() + self._timeout
        self._size = 0
        return self._collect(count + 1, mark, deadline, self._send(request, size, 0, deadline) == 1, expected)

    cdef int _send_and_receive(self, const char *request, Py_ssize_t size, double deadline) except -1:
        """Send, and read what there is then: one call each, without the GIL, unless something is in the way."""
        cdef int fd = self._fd
        cdef char *room = self._data
        cdef Py_ssize_t free_size = self._room
        cdef ssize_t sent
        cdef ssize_t received = -1
        cdef int failure
        self._size = 0
        with nogil:
            sent = c_send(fd, request, size, LEASECACHE_SEND)
            if sent == size:
                received = c_recv(fd, room, free_size, 0)
            failure = errno
        if received > 0:
            self._size = received
        elif received == 0:
            raise NodeError("connection closed by the server")
        elif sent == size:
            self._check(failure)
        else:
            if sent < 0 and failure != EAGAIN:
                self._check(failure)
            self._send(request, size, max(sent, 0), deadline)
        return 0

    cdef list ask_many(self, const char *request, Py_ssize_t size, Py_ssize_t count, const Mark *mark):
        """Send and return `count` replies, with −n all before MN, n at most; with a mark, plain hits' values alone."""
        cdef double deadline = leasecache_monotonic() + self._timeout
        self._size = 0
        return self._collect(count, mark, deadline, self._send(request, size, 0, deadline) == 1, None)

    cdef list _collect(self, Py_ssize_t count, const Mark *mark, double deadline, bint first, bytes expected):
        """Receive `count` replies; with something expected the first is of a guard record, and None if as expected."""
        cdef list found = []
        cdef Py_ssize_t position = 0
        cdef Py_ssize_t end, value = 0
        cdef Reply reply
        cdef bint guarding
        while len(found) != count:
            guarding = expected is not None and not found
            if guarding and self._starts_with(expected, position):
                found.append(None)
                position += PyBytes_GET_SIZE(expected)
                continue
            if mark != NULL and not guarding:
                end = _plain(self._data, position, self._size, mark, &value)
                if end >= 0:
                    found.append(PyBytes_FromStringAndSize(self._data + value, end - 2 - value))
                    position = end
                    continue
            reply = _read_reply(self._data, self._size, &position)
            if reply is None:
                self._size -= position
                memmove(self._data, self._data + position, self._size)
                position = 0
                self._receive(deadline, first)
                first = False
            elif count < 0 and reply.code == b"MN":
                break
            elif count < 0 and len(found) == -count:
                raise ProtocolError("more replies than commands")
            elif mark == NULL or guarding or not _is_plain(reply, mark):
                found.append(reply)
            else:
                found.append(reply.value)
        self._finish(position)
        return found

    cdef bint _starts_with(self, bytes expected, Py_ssize_t position):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(expected)
        return self._size - position >= size and memcmp(self._data + position, PyBytes_AS_STRING(expected), size) == 0

    cdef int _finish(self, Py_ssize_t position) except -1:
        if position != self._size:
            raise ProtocolError("bytes after the last expected reply")
        if self._room > 4 * FIRST_BUFFER:
            self._resize(FIRST_BUFFER)
        return 0

    cdef int _send(self, const char *data, Py_ssize_t size, Py_ssize_t sent, double deadline) except -1:
        """Send everything behind the first `sent` bytes; return how many calls it took, those for them included.

        Never a blocking send: SO_SNDTIMEO starts anew with every buffer that a Unix socket takes.
        """
        cdef ssize_t n
        cdef int fd = self._fd
        cdef int failure
        cdef int calls = sent > 0
        while sent < size:
            if calls:
                self._await(POLLOUT, deadline)
            calls += 1
            with nogil:
                n = c_send(fd, data + sent, size - sent, LEASECACHE_SEND)
                failure = errno
            if n >= 0:
                sent += n
            elif failure != EAGAIN:
                self._check(failure)
        return calls

    cdef int _receive(self, double deadline, bint first) except -1:
        """Read what is there, waiting for it until the deadline; the first read waits by SO_RCVTIMEO alone."""
        cdef ssize_t n
        cdef int fd = self._fd
        cdef int failure
        cdef char *free_room
        cdef Py_ssize_t free_size
        if self._room - self._size < FIRST_BUFFER // 2:
            self._resize(min(self._room * 2, self._room + LARGEST_READ * 4))
        while True:
            if not first:
                self._await(POLLIN, deadline)
            free_room = self._data + self._size
            free_size = self._room - self._size
            with nogil:
                n = c_recv(fd, free_room, free_size, 0)
                failure = errno
            if n > 0:
                self._size += n
                return 0
            if n == 0:
                raise NodeError("connection closed by the server")
            self._check(failure)
            first = False

    cdef int _await(self, short events, double deadline) except -1:
        cdef int ready
        cdef int failure
        cdef int fd = self._fd
        cdef double left = deadline - leasecache_monotonic()
        while left > 0:
            with nogil:
                ready = leasecache_wait(fd, events, left)
                failure = errno
            if ready > 0:
                return 0
            if ready < 0:
                self._check(failure)
            left = deadline - leasecache_monotonic()
        raise NodeTimeout(f"no answer within {self._timeout:g} s")

    cdef int _check(self, int failure) except -1:
        if failure == EINTR:
            PyErr_CheckSignals()
            return 0
        if failure == EAGAIN:
            raise NodeTimeout(f"no answer within {self._timeout:g} s")
        raise NodeError(f"connection broke: [Errno {failure}] {strerror(failure).decode()}")

    cdef int _resize(self, Py_ssize_t room) except -1:
        cdef char *resized = <char *>PyMem_Realloc(self._data, room)
        if resized == NULL:
            raise MemoryError()
        self._data = resized
        self._room = room
        return 0
