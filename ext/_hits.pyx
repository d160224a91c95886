# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Compiled twin of leasecache._pure_hits: the short way of a plain hit, from a call's arguments to its value.

Between two lines of C there is neither another thread nor a signal: those come only while a wire waits, and in what is
called by its Python name.
"""

import time

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport get_value
from cpython.dict cimport PyDict_GetItemWithError
from cpython.ref cimport PyObject

from leasecache._hot cimport Mark, Wire, mark_flags
from leasecache._keys cimport Renderer, Ring, Text, begin, drop, put, put_number
from leasecache._mux cimport ANSWERED, CANCELLED, FAILED, WAITING, MuxReader, _Marker, _Promise

from leasecache.errors import NodeError


cdef extern from *:
    """
    /* What the compiler of Cython has no slot for: a result that comes without a StopIteration, let alone a traceback. */
    typedef PyObject *(*leasecache_step)(PyObject *self, PyObject *value, int *yielded);
    static leasecache_step leasecache_serving_step;

    static PySendResult leasecache_serving_send(PyObject *self, PyObject *value, PyObject **result) {
        int yielded = 0;
        *result = leasecache_serving_step(self, value, &yielded);
        return *result == NULL ? PYGEN_ERROR : yielded ? PYGEN_NEXT : PYGEN_RETURN;
    }

    static PyObject *leasecache_serving_next(PyObject *self) {
        int yielded = 0;
        PyObject *stop, *result = leasecache_serving_step(self, Py_None, &yielded);
        if (result == NULL || yielded)
            return result;
        stop = PyObject_CallOneArg(PyExc_StopIteration, result);
        Py_DECREF(result);
        if (stop != NULL) {
            PyErr_SetObject(PyExc_StopIteration, stop);
            Py_DECREF(stop);
        }
        return NULL;
    }

    static void leasecache_fill_slots(PyObject *type, leasecache_step step) {
        PyTypeObject *serving = (PyTypeObject *)type;
        leasecache_serving_step = step;
        serving->tp_iternext = leasecache_serving_next;
        serving->tp_as_async->am_send = leasecache_serving_send;
    #ifdef Py_TPFLAGS_HAVE_AM_SEND
        serving->tp_flags |= Py_TPFLAGS_HAVE_AM_SEND;
    #endif
        PyType_Modified(serving);
    }

    static PyObject *leasecache_go_on(PyObject *iterator, PyObject *value, int *yielded) {
        PyObject *result;
        *yielded = PyIter_Send(iterator, value, &result) == PYGEN_NEXT;
        return result;
    }
    """
    ctypedef object (*leasecache_step)(object, object, int *)
    void leasecache_fill_slots(object, leasecache_step)
    object leasecache_go_on(object iterator, object value, int *yielded)


cdef enum:
    HEAD = 3  # "mg "
    ROOM = 512
    CHUNK = 32768
    OVERHEAD = 64


cdef inline int _begin_request(Text *text, char *room) except -1:
    begin(text, room, ROOM)
    return put(text, b"mg ", HEAD)


cdef inline bytes _key(const Text *text, Py_ssize_t end):
    return PyBytes_FromStringAndSize(text.data + HEAD, end - HEAD)


cdef class Tally:
    """Counts the plain hits of one function."""

    cdef public long long hits


@cython.final
cdef class Marks(_Marker):
    """Draws the marks by which random numbers of ours become CAS numbers."""

    cdef object _bits
    cdef unsigned long long _fixed

    def __init__(self, bits, unsigned long long fixed):
        self._bits = bits
        self._fixed = fixed

    def __call__(self):
        """Return the next mark."""
        return b" E%d" % self.next_number()

    cdef unsigned long long next_number(self) except? 0:
        return <unsigned long long>self._bits(62) | self._fixed


cdef class ConnectionState:
    """The fields of a connection that readers look at."""

    cdef public object wire, mark
    cdef public long long epoch, term
    cdef public bint pooled


cdef class PoolState:
    """The fields of a pool that readers look at."""

    cdef public list idle
    cdef public long long term, waiting


cdef class EpochState:
    """The field of the count of connections that readers look at."""

    cdef public long long latest


cdef class ProbeState:
    """The field of a node's back-off that readers look at."""

    cdef public double delay


cdef class RecordState:
    """The fields of a guard record that readers look at; they never change."""

    cdef public bytes head, prefix, reply
    cdef public frozenset marks


cdef class TrustState:
    """The field of a node's trust that readers look at."""

    cdef public RecordState known


cdef class _Reader:
    cdef object fetch(self, Text *text):
        """Return the value of a plain hit, or the answer, for the key that stands behind "mg "."""
        raise NotImplementedError

    cdef object _fetch_key(self, bytes key):
        cdef char room[ROOM]
        cdef Text text
        _begin_request(&text, room)
        try:
            put(&text, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
            return self.fetch(&text)
        finally:
            drop(&text)


@cython.final
cdef class NodeReader(_Reader):
    """Reads keys from one memcached server: plain hits over an idle connection, all else by `rest`."""

    cdef PoolState _pool
    cdef ProbeState _probe
    cdef EpochState _epochs
    cdef object _rest
    cdef bytes _tail
    cdef Mark _mark
    cdef TrustState _trust  # None: requests are not guarded
    cdef bytes _guard

    def __init__(
        self,
        PoolState pool not None,
        ProbeState probe not None,
        EpochState epochs not None,
        bytes tail not None,
        unsigned long flags,
        rest,
        TrustState trust=None,
        bytes guard=None,
    ):
        self._trust = trust
        self._guard = guard
        self._pool = pool
        self._probe = probe
        self._epochs = epochs
        self._tail = tail
        self._rest = rest
        mark_flags(&self._mark, flags)

    def __call__(self, bytes key not None):
        """Return the value of a plain hit, or the answer. Raises NodeError."""
        return self._fetch_key(key)

    def many(self, keys):
        """Return the value of each plain hit, or the answer, with one round trip per 32 KiB of requests."""
        cdef list asked = list(keys)
        cdef list found = []
        cdef Py_ssize_t begun = 0
        cdef Py_ssize_t size = 0
        cdef Py_ssize_t i
        for i in range(len(asked)):
            size += PyBytes_GET_SIZE(<bytes?>asked[i]) + OVERHEAD
            if size > CHUNK and i > begun:
                found += self._answers(asked[begun:i])
                begun, size = i, PyBytes_GET_SIZE(<bytes>asked[i]) + OVERHEAD
        if begun == 0:
            return self._answers(asked) if asked else found
        found += self._answers(asked[begun:])
        return found

    cdef object fetch(self, Text *text):
        cdef Py_ssize_t end = text.size
        cdef ConnectionState connection
        cdef long long epoch
        cdef object found
        if self._trust is not None:
            return self._fetch_guarded(text)
        connection = self._take()
        if connection is None:
            return self._rest((_key(text, end),), None, None, 0, None)[0]
        epoch = self._epochs.latest  # before the request is sent: a later connection may be to a restarted server
        try:
            self._put_tail(text, connection.mark)
            found = self._ask(connection, text)
        except NodeError as error:
            found = error
        except BaseException:  # a signal, a greenlet's timeout: half an answer may be left on the wire
            (<object>self._pool).discard(connection)
            raise
        if type(found) is bytes:
            self._give_back(connection)
            return found
        if not isinstance(found, NodeError):
            found = [found]
        return self._rest((_key(text, end),), connection, found, epoch, None)[0]

    cdef object _fetch_guarded(self, const Text *text):
        """Do the same under the record that was read last; the answer tells whether it is still so."""
        cdef RecordState known = self._usable()
        cdef ConnectionState connection = None if known is None else self._take()
        cdef long long epoch = 0
        cdef object found = None
        cdef char room[ROOM]
        cdef Text request
        if connection is not None:
            epoch = self._epochs.latest
            begin(&request, room, ROOM)
            try:
                put(&request, PyBytes_AS_STRING(known.head), PyBytes_GET_SIZE(known.head))
                put(&request, text.data + HEAD, text.size - HEAD)
                self._put_tail(&request, connection.mark)
                found = self._ask_guarded(connection.wire, &request, known)
            except NodeError as error:
                found = error
            except BaseException:
                (<object>self._pool).discard(connection)
                raise
            finally:
                drop(&request)
            if type(found) is bytes:
                self._give_back(connection)
                return found
        found = self._rest((_key(text, text.size),), connection, found, epoch, known)[0]
        if isinstance(found, NodeError):  # the guard's: of many keys each has its own
            raise found
        return found

    cdef object _ask_guarded(self, object wire, const Text *request, RecordState known):
        """Return a plain hit's value alone, or both replies; the record's is None if it is as `known` has it."""
        cdef object found
        if type(wire) is Wire:
            found = (<Wire>wire).ask_guarded_one(request.data, request.size, &self._mark, known.reply)
            if type(found) is bytes:
                return found
        else:
            asked = PyBytes_FromStringAndSize(request.data, request.size)
            found = wire.guarded_hits(asked, 1, self._mark.flags, known.reply)
        return found[1] if found[0] is None and type(found[1]) is bytes else found  # it came in pieces, say

    cdef RecordState _usable(self):
        """Return the record under whose generation to ask; None = it has to be read first."""
        cdef RecordState known = self._trust.known
        return known if known is not None and self._guard in known.marks else None

    cdef object _ask(self, ConnectionState connection, const Text *text):
        cdef object wire = connection.wire
        if type(wire) is Wire:
            return (<Wire>wire).ask(text.data, text.size, &self._mark)
        return wire.hit(PyBytes_FromStringAndSize(text.data, text.size), self._mark.flags)

    cdef ConnectionState _take(self):
        """Return an idle connection; None when there is none, or the node is left alone."""
        cdef list idle = self._pool.idle
        if self._probe.delay != 0 or not idle:
            return None
        return idle.pop()

    cdef int _give_back(self, ConnectionState connection) except -1:
        """Do what `release` of the pool does, of a connection that was idle before."""
        if connection.term != self._pool.term or self._pool.waiting:
            (<object>self._pool).release(connection)
        else:
            self._pool.idle.append(connection)
        return 0

    cdef int _put_tail(self, Text *text, object mark) except -1:
        cdef bytes marked
        put(text, PyBytes_AS_STRING(self._tail), PyBytes_GET_SIZE(self._tail))
        if type(mark) is Marks:
            put(text, b" E", 2)
            put_number(text, (<Marks>mark).next_number())
        elif mark is not bytes:  # which marks nothing
            marked = mark()
            put(text, PyBytes_AS_STRING(marked), PyBytes_GET_SIZE(marked))
        return put(text, b"\r\n", 2)

    cdef object _answers(self, list keys):
        cdef RecordState known = None if self._trust is None else self._usable()
        cdef ConnectionState connection = None if self._trust is not None and known is None else self._take()
        cdef long long epoch
        cdef object found
        cdef Py_ssize_t i
        if connection is None:
            return self._rest(keys, None, None, 0, None)
        epoch = self._epochs.latest
        try:
            found = self._ask_many(connection, keys, known)
        except NodeError as error:
            return self._rest(keys, connection, error, epoch, known)
        except BaseException:
            (<object>self._pool).discard(connection)
            raise
        for i in range(len(<list>found)):
            if type((<list>found)[i]) is not bytes and not (i == 0 and known is not None and (<list>found)[i] is None):
                return self._rest(keys, connection, found, epoch, known)
        self._give_back(connection)
        return found if known is None else (<list>found)[1:]

    cdef object _ask_many(self, ConnectionState connection, list keys, RecordState known):
        cdef char room[ROOM]
        cdef Text text
        cdef object wire = connection.wire
        cdef object mark = connection.mark
        cdef bytes key
        begin(&text, room, ROOM)
        try:
            for key in keys:
                if known is not None and text.size == 0:
                    put(&text, PyBytes_AS_STRING(known.head), PyBytes_GET_SIZE(known.head))
                else:
                    put(&text, b"mg ", HEAD)
                    if known is not None:
                        put(&text, PyBytes_AS_STRING(known.prefix), PyBytes_GET_SIZE(known.prefix))
                put(&text, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
                self._put_tail(&text, mark)
            if known is not None:
                return self._ask_many_guarded(wire, &text, len(keys), known)
            if type(wire) is Wire:
                return (<Wire>wire).ask_many(text.data, text.size, len(keys), &self._mark)
            return wire.hits(PyBytes_FromStringAndSize(text.data, text.size), len(keys), self._mark.flags)
        finally:
            drop(&text)

    cdef object _ask_many_guarded(self, object wire, const Text *text, Py_ssize_t count, RecordState known):
        if type(wire) is Wire:
            return (<Wire>wire).ask_guarded(text.data, text.size, count, &self._mark, known.reply)
        return wire.guarded_hits(PyBytes_FromStringAndSize(text.data, text.size), count, self._mark.flags, known.reply)


@cython.final
cdef class RingReader(_Reader):
    """Reads each key from the node that owns it."""

    cdef Ring _ring
    cdef tuple _readers

    def __init__(self, Ring ring not None, readers):
        self._ring = ring
        self._readers = tuple(readers)
        if len(self._readers) != len(ring):
            raise ValueError("as many readers as nodes")

    def __call__(self, bytes key not None):
        """Return what the reader of the key's owner returns."""
        return self._fetch_key(key)

    cdef object fetch(self, Text *text):
        cdef object reader = self.owner(text.data + HEAD, text.size - HEAD)
        if isinstance(reader, _Reader):
            return (<_Reader>reader).fetch(text)
        return reader(_key(text, text.size))

    cdef object owner(self, const char *key, Py_ssize_t size):
        return self._readers[self._ring.find(key, size)]


@cython.final
cdef class Item:
    """What a store in memory holds under a key."""

    cdef public unsigned long flags
    cdef public bytes value
    cdef public long long cas
    cdef public double expires
    cdef public bint stale, taken

    def __init__(self, unsigned long flags, bytes value not None, long long cas, double expires):
        self.flags = flags
        self.value = value
        self.cas = cas
        self.expires = expires


@cython.final
cdef class MemoryReader(_Reader):
    """Reads keys from a store in this process: plain hits without its lock, all else by `rest`."""

    cdef object _items, _touch, _clock, _rest
    cdef unsigned long _flags
    cdef double _ahead

    def __init__(self, items, clock, double refresh_ahead, unsigned long flags, rest):
        self._items = items
        self._touch = items.move_to_end
        self._clock = clock
        self._ahead = refresh_ahead
        self._flags = flags
        self._rest = rest

    def __call__(self, bytes key not None):
        """Return the value of a plain hit, or the answer."""
        return self._find(key)

    cdef object fetch(self, Text *text):
        return self._find(_key(text, text.size))

    cdef object _find(self, bytes key):
        # The clock comes first, as it may be Python. From the look to the touch there is C alone, so no other thread.
        cdef double now = time.monotonic() if self._clock is None else self._clock()
        cdef PyObject *found = PyDict_GetItemWithError(self._items, key)
        cdef Item item
        cdef double left
        if found != NULL:
            item = <object>found
            left = item.expires - now
            if left > 0 and not item.stale and item.flags == self._flags and (left >= self._ahead or item.taken):
                self._touch(key)
                return item.value
        return self._rest(key)


@cython.final
cdef class Bypass:
    """Tells whether calls in this context must neither be served nor fill."""

    cdef object _switch, _in_transaction

    def __init__(self, switch, in_transaction):
        self._switch = switch
        self._in_transaction = in_transaction

    def __call__(self):
        """Return true inside `Cache.bypass` and while the application is in a transaction."""
        return self.holds()

    cdef bint holds(self) except -1:
        if get_value(self._switch):
            return True
        return self._in_transaction is not None and bool(self._in_transaction())


cdef class _Route:
    """What a call needs of one store; a thread that has one goes on with it, whatever others bind."""

    cdef object bound, driver, read, load
    cdef Renderer renderer


@cython.final
cdef class Call:
    """Calls one cached function: plain hits are served here, whatever else a call turns out to be, by `otherwise`."""

    cdef object _runtime, _bypassed, _bind, _values, _otherwise
    cdef Py_ssize_t _direct
    cdef Tally _stats
    cdef _Route _route

    def __init__(self, runtime, bind, values, Py_ssize_t direct, Tally stats not None, otherwise):
        self._runtime = runtime
        self._bypassed = runtime.bypassed
        self._bind = bind
        self._values = values
        self._direct = direct
        self._stats = stats
        self._otherwise = otherwise

    def __call__(self, load, Py_ssize_t skip, tuple args not None, dict kwargs not None):
        """Return the value; the first `skip` arguments are not in the key."""
        return self._serve(load, skip, args, kwargs)

    def of(self, load, Py_ssize_t skip):
        """Return this as a function of its arguments alone."""
        return _Served.__new__(_Served, self, load, skip)

    def many(self, list arguments not None):
        """Return (bound, {argument: value} of the plain hits, (argument, key, answer) of the others).

        None when an argument does not have the key's parameters in order.
        """
        cdef _Route route = self._routed()
        cdef list keys
        if not self._are_direct(arguments):
            return None
        keys = route.renderer.from_many(arguments)
        return self._sorted(route, arguments, keys, list(route.bound.read_many(keys)))

    cdef bint _are_direct(self, list arguments) except -1:
        cdef object argument
        for argument in arguments:
            if (len(<tuple>argument) if isinstance(argument, tuple) else 1) != self._direct:
                return False
        return True

    cdef tuple _sorted(self, _Route route, list arguments, list keys, list answers):
        cdef list rest = []
        cdef dict found = {}
        cdef object answer, value
        cdef Py_ssize_t i
        if len(answers) != len(keys):
            raise ValueError("as many answers as keys")
        for i in range(len(keys)):
            answer = answers[i]
            if type(answer) is bytes:
                try:
                    value = answer if route.load is bytes else route.load(answer)
                except Exception:
                    pass
                else:
                    found[arguments[i]] = value
                    continue
            rest.append((arguments[i], keys[i], answer))
        self._stats.hits += len(found)
        return route.bound, found, rest

    cdef object _serve(self, object load, Py_ssize_t skip, tuple args, dict kwargs):
        cdef _Route route
        cdef object key, found, value
        cdef tuple values
        cdef char room[ROOM]
        cdef Text text
        cdef Py_ssize_t end
        if self._is_bypassed():
            return load(*args, **kwargs)
        route = self._routed()
        values = args if self._is_direct(skip, args, kwargs) else self._values(args[skip:], kwargs)
        _begin_request(&text, room)
        try:
            route.renderer.render(&text, values)
            end = text.size
            try:
                if isinstance(route.read, _Reader):
                    found = (<_Reader>route.read).fetch(&text)
                else:
                    found = route.read(_key(&text, end))
            except NodeError as error:
                found = error
            if type(found) is bytes:
                try:
                    value = found if route.load is bytes else route.load(found)
                except Exception:  # what is loaded runs code of the value's class; whatever it raises is a miss
                    pass
                else:
                    self._stats.hits += 1
                    return value
            key = _key(&text, end)
        finally:
            drop(&text)
        return self._otherwise(route.bound, load, args, kwargs, key, found)

    cdef inline bint _is_bypassed(self) except -1:
        return (<Bypass>self._bypassed).holds() if type(self._bypassed) is Bypass else self._bypassed()

    cdef inline bint _is_direct(self, Py_ssize_t skip, tuple args, dict kwargs) except -1:
        return not skip and len(args) == self._direct and not kwargs

    cdef _Route _routed(self):
        cdef _Route route = self._route
        if route is None or route.driver is not self._runtime.active:
            route = _Route.__new__(_Route)
            route.bound, route.renderer, route.load = self._bind()
            route.driver = route.bound.driver
            route.read = route.bound.read
            self._route = route
        return route


@cython.final
cdef class _Served:
    cdef Call _call
    cdef object _load
    cdef Py_ssize_t _skip

    def __cinit__(self, Call call not None, load, Py_ssize_t skip):
        self._call = call
        self._load = load
        self._skip = skip

    def __call__(self, *args, **kwargs):
        return self._call._serve(self._load, self._skip, args, kwargs)


@cython.final
cdef class AsyncCall:
    """Calls one cached coroutine function, as `Call` does a function; what it returns is to be awaited at once."""

    cdef Call _call

    def __init__(self, runtime, bind, values, Py_ssize_t direct, Tally stats not None, otherwise):
        self._call = Call(runtime, bind, values, direct, stats, otherwise)

    def serve(self, load, Py_ssize_t skip, tuple args not None, dict kwargs not None):
        """Return an awaitable of the value; the first `skip` arguments are not in the key."""
        cdef Call call = self._call
        cdef _Route route
        cdef bytes key
        cdef _Promise promise
        cdef _Serving serving
        if call._is_bypassed():
            return load(*args, **kwargs)
        route = call._routed()
        key = route.renderer.from_python(args if call._is_direct(skip, args, kwargs) else call._values(args[skip:], kwargs))
        promise = self._ask(route.read, key)
        if promise is None:
            return self._served(route, load, args, kwargs, key)
        serving = _Serving.__new__(_Serving)
        serving._of = self
        serving._promise = promise
        serving._route = route
        serving._load = load
        serving._args = args
        serving._kwargs = kwargs
        return serving

    async def many(self, list arguments not None):
        """Return (bound, {argument: value} of the plain hits, (argument, key, answer) of the others).

        None when an argument does not have the key's parameters in order.
        """
        cdef _Route route = self._call._routed()
        cdef list keys
        if not self._call._are_direct(arguments):
            return None
        keys = route.renderer.from_many(arguments)
        return self._call._sorted(route, arguments, keys, list(await route.bound.read_many(keys)))

    cdef _Promise _ask(self, object read, bytes key):
        """Send a request if a connection is open; None when something else has to be done first."""
        if type(read) is RingReader:
            read = (<RingReader>read).owner(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return (<MuxReader>read).ask(key) if type(read) is MuxReader else None

    async def _served(self, _Route route, load, args, kwargs, key):
        try:
            found = await route.bound.read(key)
        except NodeError as error:
            found = error
        if type(found) is bytes:
            try:
                value = route.load(found)
            except Exception:  # whatever it raises is a miss
                pass
            else:
                self._call._stats.hits += 1
                return value
        return await self._call._otherwise(route.bound, load, args, kwargs, key, found)


@cython.final
@cython.freelist(256)
cdef class _Serving:
    """A call whose request is on its way; it is its own iterator."""

    cdef AsyncCall _of
    cdef _Promise _promise  # None: what became of the call is for `_inner`
    cdef object _inner
    cdef _Route _route
    cdef object _load
    cdef tuple _args
    cdef dict _kwargs

    def __await__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        """Go on."""
        cdef int yielded = 0
        value = self.step(value, &yielded)
        if yielded:
            return value
        raise StopIteration(value)

    cdef object step(self, object value, int *yielded):
        """Return what the task is to wait for, or the result."""
        cdef _Promise promise = self._promise
        if promise is None:
            return leasecache_go_on(self._inner, value, yielded)
        if promise.state == WAITING:
            yielded[0] = True
            return promise.__next__()
        self._promise = None
        found = promise.outcome
        if promise.state == ANSWERED and type(found) is bytes:
            try:
                value = found if self._route.load is bytes else self._route.load(found)
            except Exception:  # what is loaded runs code of the value's class; whatever it raises is a miss
                pass
            else:
                self._of._call._stats.hits += 1
                return value
        elif promise.state == CANCELLED:
            return promise.taken()  # raises
        if promise.state == FAILED and (promise.again or promise.mux.died):  # anew, it may be answered
            going_on = self._of._served(self._route, self._load, self._args, self._kwargs, promise.context)
        else:
            going_on = self._of._call._otherwise(
                self._route.bound, self._load, self._args, self._kwargs, promise.context, found
            )
        self._inner = going_on.__await__()
        return leasecache_go_on(self._inner, None, yielded)

    def throw(self, kind, value=None, trace=None):
        """Go on with an error: nobody waits for the answer any more."""
        cdef _Promise promise = self._promise
        if promise is None:
            if value is None and trace is None:
                return self._inner.throw(kind)
            return self._inner.throw(kind, value, trace)
        promise.abandon()
        raise kind, value, trace

    def close(self):
        """End it: nobody waits for the answer any more."""
        cdef _Promise promise = self._promise
        if promise is None:
            self._inner.close()
        else:
            promise.abandon()


cdef object _step(object serving, object value, int *yielded):
    return (<_Serving>serving).step(value, yielded)


leasecache_fill_slots(_Serving, _step)
