# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""Compiled twin of leasecache.invalidation._pure_pgoutput: the short way from frames to the keys that they touch.

Whatever is not regular in every byte is left alone and goes the long way, by leasecache.invalidation.pgoutput and
router, which say what is wrong with it or what it means. So there is one place for errors, and here is none.
"""

import ctypes
import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Clear, PyDict_GetItem, PyDict_Next, PyDict_SetDefault, PyDict_SetItem, PyDict_Size
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawFree, PyMem_RawMalloc, PyMem_Realloc
from cpython.ref cimport PyObject
from libc.string cimport memcmp, memcpy

from leasecache._keys cimport Column, Renderer, Text, begin, drop


cdef enum:
    FIRST_ROOM = 256  # frames
    MOST_COLUMNS = 1664  # Postgres's MaxTupleAttributeNumber
    KEY_ROOM = 512
    KEY_LIMIT = 220  # bytes of a function's logical key
    KEEPALIVE = 18  # bytes
    EVERY_UPDATE = -1


cdef struct Cursor:
    const unsigned char *at
    const unsigned char *end


cdef inline const unsigned char *_take(Cursor *cursor, Py_ssize_t size) noexcept nogil:
    """Return where the next `size` bytes are, NULL when there are not so many: the one place where bytes are taken."""
    cdef const unsigned char *at = cursor.at
    if size < 0 or cursor.end - at < size:
        return NULL
    cursor.at = at + size
    return at


cdef inline unsigned long long _number(const unsigned char *at, int size) noexcept nogil:
    """Return the big-endian number of bytes that have been taken."""
    cdef unsigned long long number = 0
    cdef int i
    for i in range(size):
        number = number << 8 | at[i]
    return number


cdef struct Row:
    Column *columns  # room for MOST_COLUMNS
    unsigned char *kinds  # "n" null, "u" unchanged, "t" text


cdef bint _take_row(Cursor *cursor, Row *row, Py_ssize_t width) noexcept nogil:
    """Take a tuple of `width` columns, or of any number when it is negative; False when it is not regular."""
    cdef const unsigned char *at = _take(cursor, 2)
    cdef unsigned char kind
    cdef Py_ssize_t count, i
    if at == NULL:
        return False
    count = <short>_number(at, 2)
    if count < 0 or count > MOST_COLUMNS or (width >= 0 and count != width):
        return False
    for i in range(count):
        at = _take(cursor, 1)
        if at == NULL:
            return False
        kind = row.kinds[i] = at[0]
        row.columns[i].data = NULL
        row.columns[i].size = 0
        if kind == c't':
            at = _take(cursor, 4)
            if at == NULL:
                return False
            row.columns[i].size = <int>_number(at, 4)
            row.columns[i].data = _take(cursor, row.columns[i].size)
            if row.columns[i].data == NULL:
                return False
        elif kind != c'n' and kind != c'u':
            return False
    return True


cdef bint _equal(const Row *one, const Row *other, Py_ssize_t i) noexcept nogil:
    if one.kinds[i] != other.kinds[i] or one.columns[i].size != other.columns[i].size:
        return False
    return one.kinds[i] != c't' or not memcmp(one.columns[i].data, other.columns[i].data, one.columns[i].size)


cdef class _Route:
    """A rule, against the columns of one relation."""

    cdef Renderer renderer
    cdef object stale_for  # a float
    cdef object counted  # under what rendered keys are counted
    cdef Py_ssize_t *fields
    cdef Py_ssize_t *matters
    cdef Py_ssize_t field_count, matter_count
    cdef bint covered
    cdef Py_ssize_t keys, settled_keys  # rendered for the open transaction, and for those that are complete

    def __cinit__(self, object route, str table, Py_ssize_t width):
        rule = route.rule
        matters = route.matters
        self.renderer = route.renderer
        self.stale_for = float(rule.stale_for)
        self.counted = (rule.function, table)
        self.covered = route.covered
        self.fields = _positions(route.fields, width)
        self.field_count = len(route.fields)
        self.matters = _positions(matters or (), width)
        self.matter_count = EVERY_UPDATE if matters is None else len(matters)

    def __dealloc__(self):
        PyMem_Free(self.fields)
        PyMem_Free(self.matters)

    cdef bint matter(self, const Row *old, const Row *new) noexcept nogil:
        """Tell whether an update of which both rows are known concerns this rule."""
        cdef Py_ssize_t i
        if self.matter_count == EVERY_UPDATE:
            return True
        for i in range(self.matter_count):
            if new.kinds[self.matters[i]] != c'u' and not _equal(new, old, self.matters[i]):
                return True
        return False

    cdef bint touch(self, dict keys, const Row *row) except -1:
        """Add the key of a row; False when the stream does not tell it."""
        cdef char room[KEY_ROOM]
        cdef Text text
        cdef Py_ssize_t i
        for i in range(self.field_count):
            if row.kinds[self.fields[i]] == c'u':
                return False
        begin(&text, room, sizeof(room))
        try:
            if not self.renderer.render_columns(&text, row.columns, self.fields):
                return False
            _add(keys, PyBytes_FromStringAndSize(text.data, text.size), self.stale_for)
        finally:
            drop(&text)
        return True


cdef Py_ssize_t *_positions(object positions, Py_ssize_t width) except NULL:
    cdef Py_ssize_t *made = <Py_ssize_t *>PyMem_Malloc(max(len(positions), 1) * sizeof(Py_ssize_t))
    cdef Py_ssize_t i
    if made == NULL:
        raise MemoryError()
    for i in range(len(positions)):
        made[i] = positions[i]
        if not 0 <= made[i] < width:
            PyMem_Free(made)
            raise ValueError("a column is outside of its relation")
    return made


cdef int _add(dict keys, bytes key, object stale_for) except -1:
    cdef object known = <object>PyDict_SetDefault(keys, key, stale_for)
    if known is not stale_for and stale_for < known:
        PyDict_SetItem(keys, key, stale_for)
    return 0


def merge(dict keys not None, dict more not None):
    """Add `more` to `keys`, each with the s it may be served stale; of two times for one key the shorter holds."""
    cdef PyObject *key
    cdef PyObject *stale_for
    cdef Py_ssize_t at = 0
    if not keys:
        keys.update(more)
        return
    while PyDict_Next(more, &at, &key, &stale_for):
        _add(keys, <object>key, <object>stale_for)


def name(dict groups not None, dict keys not None, bytes prefix, bint plain):
    """Add what `keys` are called on a node to `groups`, by their s: with a prefix, as they are (`plain`), or both.

    A key that would be too long for memcached with a prefix is no function's, and has none.
    """
    cdef PyObject *key
    cdef PyObject *stale_for
    cdef PyObject *known = NULL
    cdef Py_ssize_t at = 0
    cdef list group = None
    while PyDict_Next(keys, &at, &key, &stale_for):
        if stale_for != known:
            known = stale_for
            group = groups.setdefault(<object>stale_for, [])
        if prefix is not None and PyBytes_GET_SIZE(<bytes>key) <= KEY_LIMIT:
            group.append(prefix + <bytes>key)
        if plain:
            group.append(<bytes>key)


cdef class _Plan:
    """What changes of one relation touch; without routes they are counted only."""

    cdef str table  # None = without rules
    cdef tuple routes
    cdef Py_ssize_t width
    cdef unsigned char[MOST_COLUMNS] identity  # 1 for columns that old tuples carry
    cdef Py_ssize_t rows, settled_rows  # of the open transaction, and of those that are complete

    def __cinit__(self, object target):
        cdef Py_ssize_t i
        self.table = None
        self.routes = ()
        self.width = -1
        if target is None:
            return
        if not 0 <= target.width <= MOST_COLUMNS:
            raise ValueError("a relation has too many columns")
        self.table = target.table
        self.width = target.width
        self.routes = tuple([_Route(route, self.table, self.width) for route in target.routes])
        for i in range(self.width):
            self.identity[i] = i in target.keys

    cdef bint insert(self, Cursor *cursor, Row *new, dict keys) except -1:
        cdef _Route route
        if not _take_letter(cursor, c'N') or not _take_row(cursor, new, self.width) or cursor.at != cursor.end:
            return False
        for route in self.routes:
            if not route.touch(keys, new):
                return False
        for route in self.routes:
            route.keys += 1
        return True

    cdef bint update(self, Cursor *cursor, Row *old, Row *new, dict keys) except -1:
        cdef const unsigned char *kind = _take(cursor, 1)
        cdef bint moved
        cdef _Route route
        cdef Py_ssize_t i
        if kind == NULL:
            return False
        moved = kind[0] == c'K' or kind[0] == c'O'
        if moved:
            if not _take_row(cursor, old, self.width) or not _take_letter(cursor, c'N'):
                return False
        elif kind[0] != c'N':
            return False
        if not _take_row(cursor, new, self.width) or cursor.at != cursor.end:
            return False
        if not self.routes:
            return True
        for route in self.routes:
            if not route.covered:
                return False
        # which of the routes an update concerns is asked before unchanged values are filled in
        concerned = [route for route in self.routes if kind[0] != c'O' or (<_Route>route).matter(old, new)]
        if moved:
            for i in range(self.width):
                if new.kinds[i] == c'u' and self.identity[i]:
                    new.kinds[i] = old.kinds[i]
                    new.columns[i] = old.columns[i]
        for route in concerned:
            if not route.touch(keys, new) or (moved and not route.touch(keys, old)):
                return False
        for route in concerned:
            route.keys += 1 + moved
        return True

    cdef bint delete(self, Cursor *cursor, Row *old, dict keys) except -1:
        cdef const unsigned char *kind = _take(cursor, 1)
        cdef _Route route
        if kind == NULL or (kind[0] != c'K' and kind[0] != c'O'):
            return False
        if not _take_row(cursor, old, self.width) or cursor.at != cursor.end:
            return False
        for route in self.routes:
            if not route.covered or not route.touch(keys, old):
                return False
        for route in self.routes:
            route.keys += 1
        return True

    cdef int settle(self) except -1:
        """Note that the open transaction is complete."""
        cdef _Route route
        self.settled_rows += self.rows
        self.rows = 0
        for route in self.routes:
            route.settled_keys += route.keys
            route.keys = 0
        return 0

    cdef int report(self, object open, object complete) except -1:
        """Add what has been counted to the two Touched."""
        cdef _Route route
        if self.table is not None:
            if self.rows:
                open.table_rows[self.table] += self.rows
            if self.settled_rows:
                complete.table_rows[self.table] += self.settled_rows
        for route in self.routes:
            if route.keys:
                open.rule_keys[route.counted] += route.keys
            if route.settled_keys:
                complete.rule_keys[route.counted] += route.settled_keys
            route.keys = route.settled_keys = 0
        self.rows = self.settled_rows = 0
        return 0


cdef inline bint _take_letter(Cursor *cursor, unsigned char letter) noexcept nogil:
    cdef const unsigned char *at = _take(cursor, 1)
    return at != NULL and at[0] == letter


ctypedef int (*get_copy_data)(void *connection, char **buffer, int nonblocking) noexcept
ctypedef void (*free_memory)(void *memory) noexcept


cdef class Frames:
    """A sequence of CopyData frames as libpq hands them out."""

    cdef readonly int status
    cdef char **_data
    cdef int *_sizes
    cdef Py_ssize_t _count, _room
    cdef free_memory _free

    def __cinit__(self):
        self._room = FIRST_ROOM
        self._data = <char **>PyMem_Malloc(self._room * sizeof(char *))
        self._sizes = <int *>PyMem_Malloc(self._room * sizeof(int))
        if self._data == NULL or self._sizes == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self._count):
            self._free(self._data[i])
        PyMem_Free(self._data)
        PyMem_Free(self._sizes)

    def __len__(self):
        return self._count

    def __getitem__(self, Py_ssize_t at):
        if not 0 <= at < self._count:
            raise IndexError("no such frame")
        return PyBytes_FromStringAndSize(self._data[at], self._sizes[at])

    def collect(self, pgconn, Py_ssize_t limit):
        """Take what a connection has, up to `limit` frames in all; `status` is then libpq's last answer if below 1."""
        cdef tuple addresses = _addresses(type(pgconn))
        if addresses is None:
            self._free = PyMem_RawFree
            self._copy(pgconn, limit)
        else:
            self._free = <free_memory><size_t>addresses[1]
            self._collect(<void *><size_t>pgconn.pgconn_ptr, <get_copy_data><size_t>addresses[0], limit)

    cdef int _collect(self, void *connection, get_copy_data get, Py_ssize_t limit) except -1:
        cdef char *data
        cdef int size
        while self._count < limit:
            data = NULL
            size = get(connection, &data, 1)
            if size <= 0:
                self.status = size
                return 0
            self._keep(data, size)
        return 0

    cdef int _copy(self, object pgconn, Py_ssize_t limit) except -1:
        """Do the same through psycopg."""
        cdef bytes frame
        cdef char *data
        while self._count < limit:
            size, view = pgconn.get_copy_data(1)
            if size <= 0:
                self.status = size
                return 0
            frame = bytes(view)
            data = <char *>PyMem_RawMalloc(max(PyBytes_GET_SIZE(frame), 1))
            if data == NULL:
                raise MemoryError()
            memcpy(data, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
            self._keep(data, <int>PyBytes_GET_SIZE(frame))
        return 0

    cdef int _keep(self, char *data, int size) except -1:
        if self._count == self._room:
            try:
                self._grow()
            except BaseException:
                self._free(data)
                raise
        self._data[self._count] = data
        self._sizes[self._count] = size
        self._count += 1
        return 0

    cdef int _grow(self) except -1:
        cdef void *grown = PyMem_Realloc(self._data, 2 * self._room * sizeof(char *))
        if grown == NULL:
            raise MemoryError()
        self._data = <char **>grown
        grown = PyMem_Realloc(self._sizes, 2 * self._room * sizeof(int))
        if grown == NULL:
            raise MemoryError()
        self._sizes = <int *>grown
        self._room *= 2
        return 0


cdef dict _found = {}


cdef tuple _addresses(object kind):
    """Return where the libpq that psycopg uses has PQgetCopyData and PQfreemem: nobody may mix two libpqs.

    None when that cannot be known, as of one that is linked into psycopg.
    """
    if kind not in _found:
        try:
            module = sys.modules[kind.__module__]
            library = module.impl.pq if hasattr(module, "impl") else ctypes.CDLL(module.__file__)  # what it is linked to
            functions = (library.PQgetCopyData, library.PQfreemem)
            _found[kind] = tuple([ctypes.cast(function, ctypes.c_void_p).value for function in functions])
        except (AttributeError, KeyError, OSError):
            _found[kind] = None
    return _found[kind]


cdef class Walker:
    """Takes the frames that need no second thought: begins, commits, keepalives, changes whose keys are told."""

    cdef dict _plans  # relid → _Plan
    cdef Row _old, _new
    cdef unsigned long _last_relid
    cdef _Plan _last

    def __cinit__(self):
        self._plans = {}
        self._old.columns = <Column *>PyMem_Malloc(MOST_COLUMNS * sizeof(Column))
        self._new.columns = <Column *>PyMem_Malloc(MOST_COLUMNS * sizeof(Column))
        self._old.kinds = <unsigned char *>PyMem_Malloc(MOST_COLUMNS)
        self._new.kinds = <unsigned char *>PyMem_Malloc(MOST_COLUMNS)
        if not (self._old.columns and self._new.columns and self._old.kinds and self._new.kinds):
            raise MemoryError()

    def __dealloc__(self):
        PyMem_Free(self._old.columns)
        PyMem_Free(self._new.columns)
        PyMem_Free(self._old.kinds)
        PyMem_Free(self._new.kinds)

    def learn(self, relid, target):
        """Note the target of a relation; None = no rule names it."""
        self._last = None
        if target is not None and (target.broken or not 0 <= target.width <= MOST_COLUMNS):
            self._plans.pop(relid, None)
        else:
            self._plans[relid] = _Plan(target)

    def walk(self, frames, Py_ssize_t start, run, Py_ssize_t most_keys):
        """Take frames from `start` on into `run`; return the position of the first one that goes the long way."""
        cdef _Walk walk = _Walk(self, run, most_keys)
        cdef PyObject *frame
        cdef Frames raw
        try:
            if type(frames) is Frames:
                raw = frames
                while start < raw._count:
                    if not walk.take(<const unsigned char *>raw._data[start], raw._sizes[start]):
                        break
                    start += 1
                return start
            while start < len(frames):
                frame = <PyObject *>PyList_GET_ITEM(<list?>frames, start)
                if not PyBytes_CheckExact(<object>frame):
                    break
                if not walk.take(
                    <const unsigned char *>PyBytes_AS_STRING(<object>frame), PyBytes_GET_SIZE(<object>frame)
                ):
                    break
                start += 1
        finally:
            walk.finish()
        return start

    cdef _Plan _find(self, unsigned long relid):
        cdef PyObject *found
        if self._last is None or self._last_relid != relid:
            found = <PyObject *>PyDict_GetItem(self._plans, relid)
            if found == NULL:
                return None
            self._last = <_Plan>found
            self._last_relid = relid
        return self._last


cdef class _Walk:
    """A batch of frames on its way into a run: the run's figures, held in C meanwhile."""

    cdef Walker _walker
    cdef object _run, _open, _complete  # the Run, and its Touched
    cdef dict _keys, _complete_keys
    cdef list _xids
    cdef list _dirty, _settled  # plans with rows of the open transaction, and of complete ones
    cdef bint _begun, _plain  # plain: all that the open transaction holds is here
    cdef unsigned long long _received, _reached, _final_lsn, _end_lsn
    cdef long long _committed_at
    cdef unsigned long _xid
    cdef Py_ssize_t _rows, _settled_rows, _most_keys

    def __cinit__(self, Walker walker, object run, Py_ssize_t most_keys):
        self._walker = walker
        self._run = run
        self._most_keys = most_keys
        self._open, self._complete = run.open, run.complete
        self._keys, self._complete_keys = self._open.keys, self._complete.keys
        self._xids = run.xids
        self._dirty, self._settled = [], []
        self._begun = run.begun
        self._plain = self._open.plain
        self._received, self._final_lsn, self._end_lsn = run.received, run.final_lsn, run.end_lsn
        self._reached = run.reached
        self._committed_at = run.committed_at
        self._xid = run.xid
        self._rows = self._settled_rows = 0

    cdef bint take(self, const unsigned char *data, Py_ssize_t size) except -1:
        """Take a frame, or leave everything as it was but keys that the long way is going to add as well."""
        cdef Cursor cursor
        cdef const unsigned char *head
        cdef const unsigned char *at
        cdef bint taken = False
        cdef unsigned char kind
        cursor.at = data
        cursor.end = data + size
        head = _take(&cursor, 25)
        at = _take(&cursor, 1)
        if head == NULL or at == NULL or head[0] != c'w':
            return self._pass(data, size)
        kind = at[0]
        if kind == c'I' or kind == c'U' or kind == c'D':
            taken = self._begun and self._change(kind, &cursor)
        elif kind == c'C':
            taken = self._begun and self._plain and self._commit(&cursor)
        elif kind == c'B':
            taken = not self._begun and self._begin(&cursor)
        if taken:
            self._received = max(self._received, _number(head + 9, 8))
        return taken

    cdef bint _pass(self, const unsigned char *data, Py_ssize_t size) noexcept:
        """Take a keepalive that comes between transactions and wants no reply."""
        cdef unsigned long long position
        if size != KEEPALIVE or data[0] != c'k' or data[KEEPALIVE - 1] != 0 or self._begun:
            return False
        position = _number(data + 1, 8)
        self._reached = max(self._reached, position)
        self._received = max(self._received, position)
        return True

    cdef bint _begin(self, Cursor *cursor) except -1:
        cdef const unsigned char *at = _take(cursor, 20)
        if at == NULL or cursor.at != cursor.end:
            return False
        self._final_lsn = _number(at, 8)
        self._xid = <unsigned long>_number(at + 16, 4)
        self._begun = True
        return True

    cdef bint _commit(self, Cursor *cursor) except -1:
        cdef const unsigned char *at = _take(cursor, 25)
        cdef unsigned long long end_lsn
        cdef long long committed_at
        cdef _Plan plan
        if at == NULL or cursor.at != cursor.end or _number(at + 1, 8) != self._final_lsn:
            return False
        end_lsn = _number(at + 9, 8)
        committed_at = <long long>_number(at + 17, 8)
        if not self._xids:
            self._committed_at = committed_at
        self._xids.append(self._xid)
        self._end_lsn = end_lsn
        self._received = max(self._received, end_lsn)
        self._begun = False
        self._reached = 0  # the commit is behind it
        self._settled_rows += self._rows
        self._rows = 0
        for plan in self._dirty:
            if not plan.settled_rows:
                self._settled.append(plan)
            plan.settle()
        self._dirty.clear()
        return self._merge()

    cdef bint _merge(self) except -1:
        """Add the keys of the open transaction to those of the complete ones."""
        cdef PyObject *key
        cdef PyObject *stale_for
        cdef Py_ssize_t at = 0
        if not self._complete_keys:
            self._keys, self._complete_keys = self._complete_keys, self._keys
            return True
        while PyDict_Next(self._keys, &at, &key, &stale_for):
            _add(self._complete_keys, <object>key, <object>stale_for)
        PyDict_Clear(self._keys)
        return True

    cdef bint _change(self, unsigned char kind, Cursor *cursor) except -1:
        cdef const unsigned char *at = _take(cursor, 4)
        cdef Walker walker = self._walker
        cdef _Plan plan
        cdef bint taken
        if at == NULL:
            return False
        plan = walker._find(<unsigned long>_number(at, 4))
        if plan is None:
            return False
        if kind == c'I':
            taken = plan.insert(cursor, &walker._new, self._keys)
        elif kind == c'U':
            taken = plan.update(cursor, &walker._old, &walker._new, self._keys)
        else:
            taken = plan.delete(cursor, &walker._old, self._keys)
        if taken:
            self._rows += 1
            if plan.table is not None:
                if not plan.rows:
                    self._dirty.append(plan)
                plan.rows += 1
            if PyDict_Size(self._keys) > self._most_keys:
                self._shed()
        return taken

    cdef int _shed(self) except -1:
        self._open.keys = self._keys
        self._open.shed(self._most_keys)
        self._keys = self._open.keys
        self._plain = False
        return 0

    cdef int finish(self) except -1:
        """Give the run its figures back."""
        cdef _Plan plan
        run = self._run
        self._open.keys, self._complete.keys = self._keys, self._complete_keys
        self._open.rows += self._rows
        self._complete.rows += self._settled_rows
        for plan in self._dirty + self._settled:
            plan.report(self._open, self._complete)
        run.begun = self._begun
        run.received, run.final_lsn, run.end_lsn = self._received, self._final_lsn, self._end_lsn
        run.reached = self._reached
        run.committed_at, run.xid = self._committed_at, self._xid
        return 0
