"""What the other compiled modules use of leasecache._hot: replies, and exchanges over a wire."""


cdef struct Mark:
    char text[12]  # "f" and the client flags of a plain hit, as the server prints them
    Py_ssize_t size
    unsigned long flags


cdef void mark_flags(Mark *mark, unsigned long flags) noexcept


cdef class Reply:
    cdef readonly bytes code
    cdef readonly bytes value
    cdef readonly unsigned long flags
    cdef readonly unsigned long long cas
    cdef readonly long long ttl
    cdef readonly long opaque
    cdef readonly bint won, stale, taken


cdef class Wire:
    cdef object _sock
    cdef int _fd
    cdef double _timeout
    cdef char *_data
    cdef Py_ssize_t _size, _room

    cdef object ask(self, const char *request, Py_ssize_t size, const Mark *mark)
    cdef list ask_many(self, const char *request, Py_ssize_t size, Py_ssize_t count, const Mark *mark)
    cdef object ask_guarded_one(self, const char *request, Py_ssize_t size, const Mark *mark, bytes expected)
    cdef list ask_guarded(
        self, const char *request, Py_ssize_t size, Py_ssize_t count, const Mark *mark, bytes expected
    )
    cdef int _send_and_receive(self, const char *request, Py_ssize_t size, double deadline) except -1
    cdef list _collect(self, Py_ssize_t count, const Mark *mark, double deadline, bint first, bytes expected)
    cdef bint _starts_with(self, bytes expected, Py_ssize_t position)
    cdef int _finish(self, Py_ssize_t position) except -1
    cdef int _send(self, const char *data, Py_ssize_t size, Py_ssize_t sent, double deadline) except -1
    cdef int _receive(self, double deadline, bint first) except -1
    cdef int _await(self, short events, double deadline) except -1
    cdef int _check(self, int failure) except -1
    cdef int _resize(self, Py_ssize_t room) except -1
