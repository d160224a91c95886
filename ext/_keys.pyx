# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Compiled twin of leasecache._pure_keys: the rendering of keys, and which node owns one."""

import datetime
import hashlib
import uuid

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.string cimport memcpy


cdef extern from *:
    """
    #include <stdint.h>
    static uint32_t leasecache_crc_table[256];
    static void leasecache_crc_begin(void) {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int bit = 0; bit < 8; bit++)
                c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
            leasecache_crc_table[i] = c;
        }
    }
    static uint32_t leasecache_crc32(const char *data, Py_ssize_t size) {
        uint32_t c = 0xFFFFFFFFu;
        while (size--)
            c = leasecache_crc_table[(c ^ (unsigned char)*data++) & 0xFF] ^ c >> 8;
        return ~c;
    }
    /* The finaliser of SplitMix64, Steele et al. 2014. */
    static uint64_t leasecache_mix(uint64_t x) {
        x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
        x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
        return x ^ x >> 31;
    }
    """
    void leasecache_crc_begin()
    unsigned int leasecache_crc32(const char *data, Py_ssize_t size)
    unsigned long long leasecache_mix(unsigned long long x)


cdef enum:
    KIND_INT = 0
    KIND_STR = 1
    KIND_BOOL = 2
    KIND_UUID = 3
    KIND_DATE = 4
    KIND_BYTES = 5
    KEY_LIMIT = 220
    KEY_HEAD = 187
    KEY_ROOM = 512

cdef tuple _EXPECTED = ("int", "str", "bool", "UUID", "date", "bytes")
cdef object _UUID = uuid.UUID
cdef object _DATE = datetime.date
cdef object _DATETIME = datetime.datetime
cdef object _blake2b = hashlib.blake2b
cdef const char *_HEX = b"0123456789ABCDEF"
cdef unsigned char[256] _PLAIN  # what stands for itself in an encoded field


cdef void _begin_tables() noexcept:
    cdef const unsigned char *plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~-"
    while plain[0]:
        _PLAIN[plain[0]] = 1
        plain += 1
    leasecache_crc_begin()


_begin_tables()


cdef inline bint _is_digit(unsigned char c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef inline bint _is_hex(unsigned char c) noexcept nogil:
    return (c'0' <= c <= c'9') or (c'a' <= c <= c'f')


cdef int grow(Text *text, Py_ssize_t more) except -1:
    cdef Py_ssize_t room = max(text.size + more, text.room * 2)
    cdef char *grown = <char *>PyMem_Malloc(room)
    if grown == NULL:
        raise MemoryError()
    memcpy(grown, text.data, text.size)
    PyMem_Free(text.heap)
    text.data = text.heap = grown
    text.room = room
    return 0


cdef void drop(Text *text) noexcept:
    PyMem_Free(text.heap)
    text.heap = NULL


cdef int put_number(Text *text, unsigned long long number) except -1:
    cdef char digits[24]
    cdef Py_ssize_t at = sizeof(digits)
    while True:
        at -= 1
        digits[at] = <char>(c'0' + number % 10)
        number //= 10
        if number == 0:
            break
    return put(text, digits + at, sizeof(digits) - at)


cdef int _put_bytes(Text *text, bytes data) except -1:
    return put(text, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef int _put_encoded(Text *text, const unsigned char *data, Py_ssize_t size) except -1:
    cdef Py_ssize_t i
    cdef unsigned char c
    cdef char *out
    if text.room - text.size < 3 * size:
        grow(text, 3 * size)
    out = text.data + text.size
    for i in range(size):
        c = data[i]
        if _PLAIN[c]:
            out[0] = <char>c
            out += 1
        else:
            out[0] = c'%'
            out[1] = _HEX[c >> 4]
            out[2] = _HEX[c & 15]
            out += 3
    text.size = out - text.data
    return 0


cdef int _put_encoded_bytes(Text *text, object data) except -1:
    if not isinstance(data, bytes):  # a subclass of bytes will do, which the type `bytes` of Cython refuses
        raise TypeError("expected bytes")
    return _put_encoded(text, <const unsigned char *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))


cdef int _put_int(Text *text, object value) except -1:
    cdef int beyond
    cdef long long small = PyLong_AsLongLongAndOverflow(value, &beyond)
    if beyond:
        return _put_bytes(text, b"%d" % value)
    if small < 0:
        put(text, b"-", 1)
        return put_number(text, (<unsigned long long>0) - <unsigned long long>small)
    return put_number(text, <unsigned long long>small)


cdef int _shorten_from(Text *text, Py_ssize_t start) except -1:
    """Shorten the key that begins at `start`."""
    cdef bytes key
    if text.size - start >= KEY_LIMIT:
        key = shorten(PyBytes_FromStringAndSize(text.data + start, text.size - start))
        text.size = start
        _put_bytes(text, key)
    return 0


def percent_encode(bytes text not None):
    """Percent-encode every byte outside A-Za-z0-9._~- with upper-case hex digits."""
    cdef char room[KEY_ROOM]
    cdef Text out
    begin(&out, room, sizeof(room))
    try:
        _put_encoded(&out, <const unsigned char *>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        return PyBytes_FromStringAndSize(out.data, out.size)
    finally:
        drop(&out)


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


def delete_requests(keys, Py_ssize_t most):
    """Return requests that delete these keys quietly, each of at most `most` bytes or for one key."""
    cdef char room[KEY_ROOM]
    cdef Text out
    cdef Py_ssize_t size
    cdef list requests = []
    begin(&out, room, sizeof(room))
    try:
        for key in keys:
            size = PyBytes_GET_SIZE(<bytes?>key)
            if out.size and out.size + size + 7 > most:
                requests.append(PyBytes_FromStringAndSize(out.data, out.size))
                out.size = 0
            put(&out, b"md ", 3)
            put(&out, PyBytes_AS_STRING(<bytes>key), size)
            put(&out, b" q\r\n", 4)
        if out.size:
            requests.append(PyBytes_FromStringAndSize(out.data, out.size))
        return requests
    finally:
        drop(&out)


cdef class Renderer:
    """Renders the keys of one template, from Python arguments or from Postgres text, to the same bytes."""

    def __cinit__(
        self,
        str function not None,
        tuple literals not None,
        tuple names not None,
        tuple kinds not None,
        tuple nullable not None,
        tuple enums not None,
    ):
        cdef Py_ssize_t i
        if len(literals) != len(names) + 1 or not len(names) == len(kinds) == len(nullable) == len(enums):
            raise ValueError("literals, names, kinds, nullable and enums do not fit together")
        if not all(type(literal) is bytes for literal in literals):
            raise TypeError("literals must be bytes")
        if not all(0 <= kind <= KIND_BYTES for kind in kinds):
            raise ValueError("a kind is unknown")
        self._function = function
        self._literals = literals
        self._names = names
        self._enums = enums
        self._count = len(names)
        self._fields = <Field *>PyMem_Malloc(max(self._count, 1) * sizeof(Field))
        if self._fields == NULL:
            raise MemoryError()
        for i in range(self._count):
            self._fields[i].kind = kinds[i]
            self._fields[i].nullable = bool(nullable[i])
            self._fields[i].literal = PyBytes_AS_STRING(<bytes>literals[i + 1])
            self._fields[i].literal_size = PyBytes_GET_SIZE(<bytes>literals[i + 1])

    def __dealloc__(self):
        PyMem_Free(self._fields)

    def from_python(self, tuple values not None):
        """Render the key of typed Python arguments. Raises TypeError naming function and field."""
        cdef char room[KEY_ROOM]
        cdef Text out
        begin(&out, room, sizeof(room))
        try:
            self.render(&out, values)
            return PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            drop(&out)

    def from_many(self, list arguments not None):
        """Render a key of each; one that is no tuple is the only field. Raises like `from_python`."""
        cdef char room[KEY_ROOM]
        cdef Text out
        cdef list keys = []
        cdef object values
        begin(&out, room, sizeof(room))
        try:
            for values in arguments:
                out.size = 0
                if isinstance(values, tuple):
                    self.render(&out, values if type(values) is tuple else tuple(values))
                elif self._count == 1:
                    self._render_only(&out, values)
                else:
                    self.render(&out, (values,))
                keys.append(PyBytes_FromStringAndSize(out.data, out.size))
        finally:
            drop(&out)
        return keys

    def from_text(self, columns):
        """Render the key of Postgres text output, None for NULL. Raises ValueError on text not of the kind."""
        cdef char room[KEY_ROOM]
        cdef Text out
        cdef Py_ssize_t i
        cdef bytes text
        if len(columns) != self._count:
            raise ValueError(f"{self._function}: the key takes {self._count} fields, not {len(columns)}")
        begin(&out, room, sizeof(room))
        try:
            _put_bytes(&out, <bytes>self._literals[0])
            for i in range(self._count):
                text = columns[i]
                if text is None:
                    put(&out, b"!", 1)
                elif not _put_text(
                    &out, self._fields[i].kind, <const unsigned char *>PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)
                ):
                    raise ValueError(
                        f"{self._function}: {text[:80]!r} is not the Postgres text of field {self._names[i]}"
                    )
                put(&out, self._fields[i].literal, self._fields[i].literal_size)
            _shorten_from(&out, 0)
            return PyBytes_FromStringAndSize(out.data, out.size)
        finally:
            drop(&out)

    cdef bint render_columns(self, Text *out, const Column *row, const Py_ssize_t *positions) except -1:
        """Append the key of the columns at `positions` of a row; False when one is not of its field's kind."""
        cdef Py_ssize_t start = out.size
        cdef Py_ssize_t i
        cdef const Column *column
        _put_bytes(out, <bytes>self._literals[0])
        for i in range(self._count):
            column = &row[positions[i]]
            if column.data == NULL:
                put(out, b"!", 1)
            elif not _put_text(out, self._fields[i].kind, column.data, column.size):
                return False
            put(out, self._fields[i].literal, self._fields[i].literal_size)
        _shorten_from(out, start)
        return True

    cdef int render(self, Text *out, tuple values) except -1:
        """Append the key of `values`."""
        cdef Py_ssize_t start = out.size
        cdef Py_ssize_t i
        if len(values) != self._count:
            raise TypeError(f"{self._function}: the key takes {self._count} fields, not {len(values)}")
        _put_bytes(out, <bytes>self._literals[0])
        for i in range(self._count):
            self._put_python(out, i, values[i])
            put(out, self._fields[i].literal, self._fields[i].literal_size)
        return _shorten_from(out, start)

    cdef int _render_only(self, Text *out, object value) except -1:
        """Append the key whose only field is `value`."""
        cdef Py_ssize_t start = out.size
        _put_bytes(out, <bytes>self._literals[0])
        self._put_python(out, 0, value)
        put(out, self._fields[0].literal, self._fields[0].literal_size)
        return _shorten_from(out, start)

    cdef int _put_python(self, Text *out, Py_ssize_t i, object value) except -1:
        cdef int kind = self._fields[i].kind
        cdef object enum = self._enums[i]
        cdef Py_ssize_t size
        cdef const char *text
        if kind == KIND_INT and PyLong_CheckExact(value) and enum is None:
            return _put_int(out, value)
        if value is None and self._fields[i].nullable:
            return put(out, b"!", 1)
        if enum is not None:
            if not isinstance(value, enum):
                raise self._type_error(i, value, enum.__name__)
            value = value.value
        if kind == KIND_STR and isinstance(value, str):
            try:
                text = PyUnicode_AsUTF8AndSize(value, &size)
            except UnicodeEncodeError:
                raise ValueError(f"{self._function}: key field {self._names[i]!r} holds a lone surrogate") from None
            return _put_encoded(out, <const unsigned char *>text, size)
        if kind == KIND_INT and isinstance(value, int) and not isinstance(value, bool):
            return _put_int(out, value)
        if kind == KIND_BOOL and isinstance(value, bool):
            return put(out, b"t" if value else b"f", 1)
        if kind == KIND_UUID and isinstance(value, _UUID):
            return _put_encoded_bytes(out, str(value).encode())
        if kind == KIND_DATE and isinstance(value, _DATE) and not isinstance(value, _DATETIME):
            return _put_encoded_bytes(out, value.isoformat().encode())
        if kind == KIND_BYTES and isinstance(value, bytes):
            return _put_encoded_bytes(out, value)
        raise self._type_error(i, value, _EXPECTED[kind])

    cdef object _type_error(self, Py_ssize_t i, object value, str expected):
        return TypeError(
            f"{self._function}: key field {self._names[i]!r} must be {expected}, not {type(value).__name__}"
        )


cdef bint _put_text(Text *out, int kind, const unsigned char *data, Py_ssize_t size) except -1:
    if kind == KIND_STR or kind == KIND_DATE:
        _put_encoded(out, data, size)
    elif kind == KIND_INT and _is_int_text(data, size):
        put(out, <const char *>data, size)
    elif kind == KIND_BOOL and size == 1 and (data[0] == c't' or data[0] == c'f'):
        put(out, <const char *>data, 1)
    elif kind == KIND_UUID and _is_uuid_text(data, size):
        put(out, <const char *>data, size)
    elif kind == KIND_BYTES and _is_hex_text(data, size):
        _put_hex(out, data + 2, size - 2)
    else:
        return False
    return True


cdef int _put_hex(Text *out, const unsigned char *digits, Py_ssize_t size) except -1:
    """Append the bytes that hex digits stand for, encoded."""
    cdef Py_ssize_t i
    cdef unsigned char byte
    for i in range(0, size, 2):
        byte = <unsigned char>(_digit(digits[i]) << 4 | _digit(digits[i + 1]))
        _put_encoded(out, &byte, 1)
    return 0


cdef inline int _digit(unsigned char c) noexcept nogil:
    return c - c'0' if c <= c'9' else c - c'a' + 10


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


cdef class Ring:
    """Says which node owns a key: weighted rendezvous hashing, in whole numbers but for one division."""

    def __cinit__(self, seeds, weights):
        cdef Py_ssize_t i
        if len(seeds) != len(weights) or not seeds:
            raise ValueError("a ring takes as many weights as seeds, at least one")
        if not all(weight > 0 for weight in weights):
            raise ValueError("weights must be above 0")
        self._count = len(seeds)
        self._seeds = <unsigned long long *>PyMem_Malloc(self._count * sizeof(unsigned long long))
        self._weights = <double *>PyMem_Malloc(self._count * sizeof(double))
        if self._seeds == NULL or self._weights == NULL:
            raise MemoryError()
        for i in range(self._count):
            self._seeds[i] = seeds[i]
            self._weights[i] = weights[i]
        self._even = len(set(weights)) == 1

    def __dealloc__(self):
        PyMem_Free(self._seeds)
        PyMem_Free(self._weights)

    def __len__(self):
        return self._count

    def owner(self, bytes key not None):
        """Return the position of the node that owns `key`."""
        return self.find(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    cdef Py_ssize_t find(self, const char *key, Py_ssize_t size) noexcept:
        cdef unsigned long long hashed, number, best = 0
        cdef double score, highest = 0
        cdef Py_ssize_t i, found = 0
        if self._count == 1:
            return 0
        hashed = leasecache_crc32(key, size)
        for i in range(self._count):
            number = leasecache_mix(self._seeds[i] ^ hashed)
            score = 1 if self._even else self._weights[i] / <double>_rarity(number)
            if score > highest or (score == highest and number > best):
                found, best, highest = i, number, score
        return found


cdef unsigned long long _rarity(unsigned long long number) noexcept:
    """Return −log2(number / 2^64) in units of 2^-31, bit by bit, so that every machine finds the same."""
    cdef unsigned long long mantissa, fraction = 0
    cdef int exponent = 63
    cdef int i
    if number == 0:
        return 64ULL << 31
    while not number >> 63:
        number <<= 1
        exponent -= 1
    mantissa = number >> 32
    for i in range(31):
        mantissa = mantissa * mantissa >> 31
        fraction <<= 1
        if mantissa >> 32:
            mantissa >>= 1
            fraction |= 1
    return ((<unsigned long long>(64 - exponent)) << 31) - fraction
