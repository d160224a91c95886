"""What the other compiled modules use of leasecache._keys: text under construction, rendered keys, the ring."""

from libc.string cimport memcpy


cdef struct Text:
    char *data  # `room` bytes, the first `size` of them written
    Py_ssize_t size, room
    char *heap  # `data` once it has outgrown its owner's room, else NULL


cdef int grow(Text *text, Py_ssize_t more) except -1
cdef void drop(Text *text) noexcept  # free what `grow` has taken; every owner's last word


cdef inline void begin(Text *text, char *room, Py_ssize_t size) noexcept:
    text.data = room
    text.room = size
    text.size = 0
    text.heap = NULL


cdef inline int put(Text *text, const char *data, Py_ssize_t size) except -1:
    if text.room - text.size < size:
        grow(text, size)
    memcpy(text.data + text.size, data, size)
    text.size += size
    return 0


cdef int put_number(Text *text, unsigned long long number) except -1


cdef struct Field:
    int kind
    bint nullable
    const char *literal  # that follows the field
    Py_ssize_t literal_size


cdef struct Column:
    const unsigned char *data  # Postgres text, NULL for NULL
    Py_ssize_t size


cdef class Renderer:
    cdef str _function
    cdef tuple _literals, _names, _enums
    cdef Field *_fields
    cdef Py_ssize_t _count

    cdef int render(self, Text *out, tuple values) except -1
    cdef int _render_only(self, Text *out, object value) except -1
    cdef int _put_python(self, Text *out, Py_ssize_t i, object value) except -1
    cdef object _type_error(self, Py_ssize_t i, object value, str expected)
    cdef bint render_columns(self, Text *out, const Column *row, const Py_ssize_t *positions) except -1


cdef class Ring:
    cdef unsigned long long *_seeds
    cdef double *_weights
    cdef Py_ssize_t _count
    cdef bint _even

    cdef Py_ssize_t find(self, const char *key, Py_ssize_t size) noexcept
