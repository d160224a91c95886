"""What the other compiled modules use of leasecache._mux: requests of readers, and what becomes of them."""


cdef enum State:
    WAITING
    ANSWERED  # `outcome` is what the replies mean
    FAILED  # … is the error
    CANCELLED  # … is the message of the cancellation


cdef class _Marker:
    cdef unsigned long long next_number(self) except? 0


cdef class _Promise:
    cdef public bint _asyncio_future_blocking
    cdef State state
    cdef object outcome
    cdef object read, context  # of a reader: its key
    cdef object callback, caller
    cdef _Mux mux
    cdef list replies
    cdef Py_ssize_t count, most  # `most` replies before MN, of a request that is answered quietly
    cdef long long flags, epoch
    cdef double deadline
    cdef object guard, known  # of a guarded request; `known` is the record under whose generation it was asked
    cdef _Promise record  # … the reading of the record before it, whose outcome is Known, None or the error
    cdef bint again  # it may be answered when it is asked anew

    cdef object taken(self)
    cdef int abandon(self) except -1


cdef class _Mux:
    cdef readonly object loop, mark, closed
    cdef readonly long long born
    cdef long long _most  # bytes of a value
    cdef readonly bint open, died
    cdef double _timeout
    cdef str _name
    cdef object _owner, _epochs
    cdef object _parse, _transport, _timer, _error
    cdef list _queue  # of _Promise; those before `_first` have been answered
    cdef Py_ssize_t _first
    cdef _Promise _record  # among what waits to be sent
    cdef list _waiters
    cdef object _go  # a future that is done: an exact one is what a task looks at fastest
    cdef list _settled  # of _Promise: their tasks are to go on
    cdef bint _flushing, _paused, _served, _resuming
    cdef char *_out
    cdef Py_ssize_t _out_size, _out_room
    cdef bytearray _room
    cdef object _view
    cdef Py_ssize_t _filled

    cdef int _renew(self, Py_ssize_t room) except -1
    cdef int _put(self, const char *data, Py_ssize_t size) except -1
    cdef int _put_mark(self) except -1
    cdef int _resize_out(self, Py_ssize_t room) except -1
    cdef int _send(self) except -1
    cdef int _guard(self, _Promise promise, _Guarded guarded) except -1
    cdef int _add(self, _Promise promise) except -1
    cdef int _pop(self) except -1
    cdef Py_ssize_t _take(self, const char *data, Py_ssize_t end) except -1
    cdef int _see(self, _Promise record, object reply) except -1
    cdef int _read(self, _Promise promise, object reply) except -1
    cdef int _judge(self, _Promise promise, object answer) except -1
    cdef int _give(self, _Promise promise, object result) except -1
    cdef int _settle(self, _Promise promise, State state, object outcome) except -1
    cdef int _close_when_done(self) except -1
    cdef int _end(self, object error, bint failed) except -1
    cdef object _gone(self)
    cdef object _named(self, error)


cdef class _Guarded:
    cdef object guard, trust
    cdef object known  # as the guard has found it usable
    cdef bytes request, prefix, reply

    cdef bint usable(self) except -1


cdef class MuxReader:
    cdef dict _muxes
    cdef bytes _head, _middle, _end
    cdef long long _flags
    cdef object _read, _retry
    cdef _Guarded _guarded  # None = its requests are not

    cdef _Promise ask(self, bytes key)  # None when there is no connection that could take it
