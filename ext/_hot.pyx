# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Compiled twin of leasecache._pure: key rendering, the meta-protocol reply reader and the wire.

Every read of network bytes is bounded by the `end` that the caller passes down; nothing reads past it.
"""

import datetime
import hashlib
import uuid

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memchr, memcmp, memcpy, memmove, strerror

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
    KIND_INT = 0
    KIND_STR = 1
    KIND_BOOL = 2
    KIND_UUID = 3
    KIND_DATE = 4
    KIND_BYTES = 5
    KEY_LIMIT = 220
    KEY_HEAD = 187
    LINE_LIMIT = 2048
    FIRST_BUFFER = 16384
    LARGEST_READ = 262144

cdef tuple _EXPECTED = ("int", "str", "bool", "UUID", "date", "bytes")
cdef object _UUID = uuid.UUID
cdef object _DATE = datetime.date
cdef object _DATETIME = datetime.datetime
cdef object _blake2b = hashlib.blake2b
cdef const char *_HEX = b"0123456789ABCDEF"


cdef inline bint _is_plain(unsigned char c) noexcept nogil:
    return (c'a' <= c <= c'z') or (c'A' <= c <= c'Z') or (c'0' <= c <= c'9') or c == c'.' or c == c'_' or c == c'~' or c == c'-'


cdef inline bint _is_digit(unsigned char c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef inline bint _is_hex(unsigned char c) noexcept nogil:
    return (c'0' <= c <= c'9') or (c'a' <= c <= c'f')


@cython.freelist(16)
cdef class _Buffer:
    """Bytes under construction; on the stack of its owner while short."""

    cdef char short_room[512]
    cdef char *data
    cdef Py_ssize_t size, room

    def __cinit__(self):
        self.data = self.short_room
        self.room = sizeof(self.short_room)
        self.size = 0

    def __dealloc__(self):
        if self.data != self.short_room:
            PyMem_Free(self.data)

    cdef int reserve(self, Py_ssize_t more) except -1:
        cdef Py_ssize_t wanted = self.size + more
        cdef char *grown
        if wanted <= self.room:
            return 0
        wanted = max(wanted, self.room * 2)
        grown = <char *>PyMem_Malloc(wanted)
        if grown == NULL:
            raise MemoryError()
        memcpy(grown, self.data, self.size)
        if self.data != self.short_room:
            PyMem_Free(self.data)
        self.data = grown
        self.room = wanted
        return 0

    cdef int put(self, const char *data, Py_ssize_t size) except -1:
        self.reserve(size)
        memcpy(self.data + self.size, data, size)
        self.size += size
        return 0

    cdef int put_bytes(self, bytes data) except -1:
        return self.put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef int put_encoded(self, const unsigned char *text, Py_ssize_t size) except -1:
        cdef Py_ssize_t i
        cdef unsigned char c
        cdef char *out
        self.reserve(3 * size)
        out = self.data + self.size
        for i in range(size):
            c = text[i]
            if _is_plain(c):
                out[0] = <char>c
                out += 1
            else:
                out[0] = c'%'
                out[1] = _HEX[c >> 4]
                out[2] = _HEX[c & 15]
                out += 3
        self.size = out - self.data
        return 0

    cdef int put_encoded_bytes(self, object text) except -1:
        if not isinstance(text, bytes):  # a subclass of bytes will do, which the type `bytes` of Cython refuses
            raise TypeError("expected bytes")
        return self.put_encoded(<const unsigned char *>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))

    cdef int put_int(self, object value) except -1:
        cdef long long small
        cdef unsigned long long rest
        cdef char digits[24]
        cdef Py_ssize_t at = sizeof(digits)
        try:
            small = value
        except OverflowError:
            return self.put_bytes(b"%d" % value)
        rest = (<unsigned long long>0) - <unsigned long long>small if small < 0 else <unsigned long long>small
        while True:
            at -= 1
            digits[at] = <char>(c'0' + rest % 10)
            rest //= 10
            if rest == 0:
                break
        if small < 0:
            at -= 1
            digits[at] = c'-'
        return self.put(digits + at, sizeof(digits) - at)

    cdef bytes finish(self):
        cdef bytes key = PyBytes_FromStringAndSize(self.data, self.size)
        return key if self.size < KEY_LIMIT else shorten(key)


def percent_encode(bytes text not None):
    """Percent-encode every byte outside A-Za-z0-9._~- with upper-case hex digits."""
    cdef _Buffer out = _Buffer()
    out.put_encoded(<const unsigned char *>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    return PyBytes_FromStringAndSize(out.data, out.size)


def shorten(bytes key not None):
    """Return `key`, or its first 187 bytes, `~` and the BLAKE2b-128 of the whole when it exceeds 220 bytes."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(key)
    if size < KEY_LIMIT or (size == KEY_LIMIT and not _looks_shortened(PyBytes_AS_STRING(key))):
        return key
    return key[:KEY_HEAD] + b"~" + _blake2b(key, digest_size=16).hexdigest().encode()


cdef bint _looks_shortened(const char *key) noexcept:
    cdef Py_ssize_t i
    if key[KEY_HEAD] != c'~':
        return False
    for i in range(KEY_HEAD + 1, KEY_LIMIT):
        if not _is_hex(<unsigned char>key[i]):
            return False
    return True


cdef class Renderer:
    """Renders the keys of one template, from Python arguments or from Postgres text, to the same bytes."""

    cdef str _function
    cdef tuple _literals, _names, _nullable, _enums, _kinds
    cdef Py_ssize_t _count

    def __cinit__(
        self,
        str function not None,
        tuple literals not None,
        tuple names not None,
        tuple kinds not None,
        tuple nullable not None,
        tuple enums not None,
    ):
        if len(literals) != len(names) + 1 or not len(names) == len(kinds) == len(nullable) == len(enums):
            raise ValueError("literals, names, kinds, nullable and enums do not fit together")
        if not all(type(literal) is bytes for literal in literals):
            raise TypeError("literals must be bytes")
        if not all(0 <= kind <= KIND_BYTES for kind in kinds):
            raise ValueError("a kind is unknown")
        self._function = function
        self._literals = literals
        self._names = names
        self._kinds = kinds
        self._nullable = nullable
        self._enums = enums
        self._count = len(names)

    def from_python(self, tuple values not None):
        """Render the key of typed Python arguments. Raises TypeError naming function and field."""
        cdef _Buffer out = _Buffer()
        cdef Py_ssize_t i
        if len(values) != self._count:
            raise TypeError(f"{self._function}: the key takes {self._count} fields, not {len(values)}")
        out.put_bytes(<bytes>self._literals[0])
        for i in range(self._count):
            self._put_python(out, i, values[i])
            out.put_bytes(<bytes>self._literals[i + 1])
        return out.finish()

    def from_text(self, columns):
        """Render the key of Postgres text output, None for NULL. Raises ValueError on text not of the kind."""
        cdef _Buffer out = _Buffer()
        cdef Py_ssize_t i
        cdef bytes text
        if len(columns) != self._count:
            raise ValueError(f"{self._function}: the key takes {self._count} fields, not {len(columns)}")
        out.put_bytes(<bytes>self._literals[0])
        for i in range(self._count):
            text = columns[i]
            if text is None:
                out.put(b"!", 1)
            elif not _put_text(out, self._kinds[i], text):
                raise ValueError(f"{self._function}: {text[:80]!r} is not the Postgres text of field {self._names[i]}")
            out.put_bytes(<bytes>self._literals[i + 1])
        return out.finish()

    cdef int _put_python(self, _Buffer out, Py_ssize_t i, object value) except -1:
        cdef int kind = self._kinds[i]
        cdef object enum = self._enums[i]
        cdef Py_ssize_t size
        cdef const char *text
        if value is None and self._nullable[i]:
            return out.put(b"!", 1)
        if enum is not None:
            if not isinstance(value, enum):
                raise self._type_error(i, value, enum.__name__)
            value = value.value
        if kind == KIND_INT and isinstance(value, int) and not isinstance(value, bool):
            return out.put_int(value)
        if kind == KIND_STR and isinstance(value, str):
            try:
                text = PyUnicode_AsUTF8AndSize(value, &size)
            except UnicodeEncodeError:
                raise ValueError(f"{self._function}: key field {self._names[i]!r} holds a lone surrogate") from None
            return out.put_encoded(<const unsigned char *>text, size)
        if kind == KIND_BOOL and isinstance(value, bool):
            return out.put(b"t" if value else b"f", 1)
        if kind == KIND_UUID and isinstance(value, _UUID):
            return out.put_encoded_bytes(str(value).encode())
        if kind == KIND_DATE and isinstance(value, _DATE) and not isinstance(value, _DATETIME):
            return out.put_encoded_bytes(value.isoformat().encode())
        if kind == KIND_BYTES and isinstance(value, bytes):
            return out.put_encoded_bytes(value)
        raise self._type_error(i, value, _EXPECTED[kind])

    cdef object _type_error(self, Py_ssize_t i, object value, str expected):
        return TypeError(
            f"{self._function}: key field {self._names[i]!r} must be {expected}, not {type(value).__name__}"
        )


cdef bint _put_text(_Buffer out, int kind, bytes text) except -1:
    cdef const unsigned char *data = <const unsigned char *>PyBytes_AS_STRING(text)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    if kind == KIND_STR or kind == KIND_DATE:
        out.put_encoded(data, size)
    elif kind == KIND_INT and _is_int_text(data, size):
        out.put(<const char *>data, size)
    elif kind == KIND_BOOL and size == 1 and (data[0] == c't' or data[0] == c'f'):
        out.put(<const char *>data, 1)
    elif kind == KIND_UUID and _is_uuid_text(data, size):
        out.put(<const char *>data, size)
    elif kind == KIND_BYTES and _is_hex_text(data, size):
        out.put_encoded_bytes(bytes.fromhex(text[2:].decode()))
    else:
        return False
    return True


cdef bint _is_int_text(const unsigned char *text, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i = 0
    if size == 1 and text[0] == c'0':
        return True
    if size > 0 and text[0] == c'-':
        i = 1
    if i >= size or not (c'1' <= text[i] <= c'9'):
        return False
    for i in range(i + 1, size):
        if not _is_digit(text[i]):
            return False
    return True


cdef bint _is_uuid_text(const unsigned char *text, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i
    if size != 36:
        return False
    for i in range(36):
        if i == 8 or i == 13 or i == 18 or i == 23:
            if text[i] != c'-':
                return False
        elif not _is_hex(text[i]):
            return False
    return True


cdef bint _is_hex_text(const unsigned char *text, Py_ssize_t size) noexcept:
    cdef Py_ssize_t i
    if size < 2 or size % 2 or text[0] != c'\\' or text[1] != c'x':
        return False
    for i in range(2, size):
        if not _is_hex(text[i]):
            return False
    return True


@cython.freelist(64)
cdef class Reply:
    """One reply of the meta protocol (memcached doc/protocol.txt, "Meta Commands")."""

    cdef readonly bytes code
    cdef readonly bytes value
    cdef readonly unsigned long flags
    cdef readonly unsigned long long cas
    cdef readonly long long ttl
    cdef readonly long opaque
    cdef readonly bint won, stale, taken

    def __init__(self, bytes code, bytes value=None):
        self.code = code
        self.value = value
        self.flags = 0
        self.cas = 0
        self.ttl = -1
        self.opaque = -1


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
    space = start
    while space < line_end and data[space] != c' ':
        space += 1
    if space - start == 2 and data[start] == c'V' and data[start + 1] == c'A':
        at = min(space + 1, line_end)
        size = _token_end(data, at, line_end)
        number = _number(data, at, size, 1ULL << 31)
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
            if not _is_digit(<unsigned char>data[i]):
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


def parse_reply(bytes data not None, Py_ssize_t start):
    """Read the reply that begins at `start`: (reply, where the next begins), or None while bytes are missing."""
    cdef Py_ssize_t position = start
    if not 0 <= start <= PyBytes_GET_SIZE(data):
        raise ValueError("start is outside the data")
    reply = _read_reply(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &position)
    return None if reply is None else (reply, position)


cdef class Wire:
    """Request and reply over a plain socket's descriptor, the GIL released; each exchange under one deadline."""

    cdef object _sock
    cdef int _fd
    cdef double _timeout
    cdef char *_data
    cdef Py_ssize_t _size, _room

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
        return self._converse(request, count)

    def exchange_quiet(self, bytes request not None):
        """Send quiet commands ended by `mn` and return the replies before its MN. Raises like `exchange`."""
        return self._converse(request, -1)

    def hit(self, bytes request not None, unsigned long flags):
        """Send a lease-get; return the value if it is a plain hit with these client flags, else the reply.

        A plain hit is VA without W, X and Z. Raises like `exchange`.
        """
        cdef Reply reply = <Reply>self._converse(request, 1)[0]
        if reply.value is None or reply.flags != flags or reply.won or reply.stale or reply.taken:
            return reply
        return reply if reply.code != b"VA" else reply.value

    cdef list _converse(self, bytes request, Py_ssize_t count):
        cdef list replies = []
        cdef Py_ssize_t position = 0
        cdef double deadline = leasecache_monotonic() + self._timeout
        cdef bint first
        cdef Reply reply
        self._size = 0
        first = self._send(PyBytes_AS_STRING(request), PyBytes_GET_SIZE(request), deadline) == 1
        while count != 0:
            self._receive(deadline, first)
            first = False
            while True:
                reply = _read_reply(self._data, self._size, &position)
                if reply is None:
                    break
                if count < 0 and reply.code == b"MN":
                    self._finish(position)
                    return replies
                replies.append(reply)
                if len(replies) == count:
                    self._finish(position)
                    return replies
            self._size -= position
            memmove(self._data, self._data + position, self._size)
            position = 0
        return replies

    cdef int _finish(self, Py_ssize_t position) except -1:
        if position != self._size:
            raise ProtocolError("bytes after the last expected reply")
        if self._room > 4 * FIRST_BUFFER:
            self._resize(FIRST_BUFFER)
        return 0

    cdef int _send(self, const char *data, Py_ssize_t size, double deadline) except -1:
        """Send everything; return how many calls it took.

        Never a blocking send: SO_SNDTIMEO starts anew with every buffer that a Unix socket takes.
        """
        cdef Py_ssize_t sent = 0
        cdef ssize_t n
        cdef int fd = self._fd
        cdef int failure
        cdef int calls = 0
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
