"""The SQL of a counter in `row` mode: its table, its triggers, and the statement that measures and mends drift.

What makes a count exact, and a repair safe, is here rather than in Python:

- Triggers run in the transaction that changes the source, so each snapshot sees both changes or neither.
- Each event has its own statement trigger: one with a transition table may name a single event only.
- Every statement takes its counter rows in the order of their keys, so that two of them cannot wait for each other.
- Drift is measured in one snapshot and then *added*. Whatever commits after that snapshot changes the source and the
  count by the same amount, so the difference stays right until it arrives. Setting the count would undo such changes.
- Everything runs under one search_path, or a `where` could mean one thing to the triggers and another to a repair.
"""

from psycopg import sql

from leasecache.errors import ConfigError
from leasecache.rules import split_table

SEARCH_PATH = "pg_catalog, pg_temp"
KEYS_PER_BATCH = 1000  # a batch holds the rows of its drifted keys from its first write to its commit
LONGEST_NAME = 63  # bytes; Postgres cuts longer names without an error, and two cut names may be the same

# The path is put back by hand: in a transaction of the caller, a local setting would outlive the block.
_DO = sql.SQL("""\
DO {block};
""")
_BLOCK = sql.SQL("""
#variable_conflict use_column
DECLARE
  callers_path text := current_setting('search_path');
BEGIN
  PERFORM set_config('search_path', {path_text}, true);
{body}
  PERFORM set_config('search_path', callers_path, true);
END
""")

# An index refuses what triggers could not keep exact: subqueries, functions that are not immutable, virtual columns.
_CHECKS = sql.SQL("""\
  IF NOT EXISTS (SELECT FROM pg_class WHERE oid = {source_text}::regclass AND relkind = 'r' AND relpersistence = 'p')
     OR EXISTS (SELECT FROM pg_inherits WHERE {source_text}::regclass IN (inhrelid, inhparent)) THEN
    RAISE EXCEPTION USING ERRCODE = 'wrong_object_type', MESSAGE = {cannot_count},
      HINT = 'Count an ordinary, logged table that is not partitioned, a partition, or part of an inheritance tree.';
  END IF;
  IF EXISTS (
    SELECT FROM pg_trigger WHERE tgfoid = to_regprocedure({track_text} || '()') AND tgrelid <> {source_text}::regclass
  ) THEN
    RAISE EXCEPTION USING ERRCODE = 'duplicate_object', MESSAGE = {counts_another},
      HINT = 'Drop its triggers there first, or choose another counter table.';
  END IF;
  CREATE TEMPORARY TABLE leasecache_check (LIKE {source} INCLUDING GENERATED) ON COMMIT DROP;
  CREATE INDEX ON pg_temp.leasecache_check ({by}) WHERE ({where});
  DROP TABLE pg_temp.leasecache_check;
""")

_TABLE = sql.SQL("""\
  CREATE SEQUENCE IF NOT EXISTS {truncations};
  IF to_regclass({counter_text}) IS NULL THEN
    CREATE TABLE {counter} WITH (fillfactor = 50) AS
      SELECT {by}, 0::bigint AS count, 0::bigint AS version FROM {source} WITH NO DATA;
    ALTER TABLE {counter} ADD PRIMARY KEY ({by}), ALTER count SET NOT NULL, ALTER version SET NOT NULL;
    ALTER SEQUENCE {truncations} OWNED BY {counter}.version;
  END IF;
  IF NOT EXISTS (
    SELECT FROM pg_index
    JOIN pg_attribute mine ON mine.attrelid = indrelid AND mine.attnum = indkey[0] AND mine.attname = {by_text}
    JOIN pg_attribute theirs ON theirs.attname = mine.attname AND theirs.atttypid = mine.atttypid
    WHERE indrelid = {counter_text}::regclass AND indisprimary AND indnkeyatts = 1
      AND theirs.attrelid = {source_text}::regclass
  ) OR 2 <> (
    SELECT count(*) FROM pg_attribute
    WHERE attrelid = {counter_text}::regclass AND attname IN ('count', 'version') AND atttypid = 'bigint'::regtype
  ) THEN
    RAISE EXCEPTION USING ERRCODE = 'duplicate_table', MESSAGE = {not_a_counter}, HINT = {counter_columns};
  END IF;
""")

# The triggers are replaced even when they exist. Their lock waits for every transaction that still counts by an
# earlier definition, so that the backfill, which comes later, measures a source that only this definition follows.
_TRIGGERS = sql.SQL("""\
  CREATE OR REPLACE FUNCTION {track}() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = {path} AS {function};
  REVOKE ALL ON FUNCTION {track}() FROM PUBLIC;
  CREATE OR REPLACE TRIGGER {on_insert} AFTER INSERT ON {source}
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {track}();
  CREATE OR REPLACE TRIGGER {on_update} AFTER UPDATE ON {source}
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION {track}();
  CREATE OR REPLACE TRIGGER {on_delete} AFTER DELETE ON {source}
    REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION {track}();
  CREATE OR REPLACE TRIGGER {on_truncate} AFTER TRUNCATE ON {source}
    FOR EACH STATEMENT EXECUTE FUNCTION {track}();
""")

# A snapshot older than the TRUNCATE may miss counter rows that exist. An UPDATE would leave those as they are.
_FUNCTION = sql.SQL("""
#variable_conflict use_column
BEGIN
  IF TG_OP = 'INSERT' THEN
{add_inserted};
  ELSIF TG_OP = 'DELETE' THEN
{add_deleted};
  ELSIF TG_OP = 'UPDATE' THEN
{add_updated};
  ELSIF current_setting('transaction_isolation') IN ('repeatable read', 'serializable') THEN
    PERFORM nextval({truncations_text});
    TRUNCATE {counter};
  ELSE
    UPDATE {counter} SET count = 0, version = {epoch} * (SELECT nextval({truncations_text}));
  END IF;
  RETURN NULL;
END
""")

# A count may pass below zero: clamping it there would make a passing drift a lasting one.
_ADD = sql.SQL("""\
    INSERT INTO {counter} AS stored ({by}, count, version)
    SELECT key, n, {first_version} FROM ({changes}) AS changes
    ORDER BY key
    ON CONFLICT ({by}) DO UPDATE SET count = stored.count + excluded.count, version = stored.version + 1""")

_NET = sql.SQL("""
      SELECT key, sum(n) AS n FROM (
        {rows}
      ) AS changed_rows
      GROUP BY key HAVING sum(n) <> 0
    """)
_COUNTED = sql.SQL("{by} IS NOT NULL AND ({where})")
_INSERTED = sql.SQL("SELECT {by} AS key, 1 AS n FROM new_rows WHERE {counted}")
_DELETED = sql.SQL("SELECT {by} AS key, -1 AS n FROM old_rows WHERE {counted}")

# A TRUNCATE may remove counter rows, and their versions with them, so each one begins a range of 2^40 new versions.
_EPOCH = sql.SQL("1099511627776")
_FIRST_VERSION = sql.SQL("(SELECT {epoch} * CASE WHEN is_called THEN last_value ELSE 0 END + 1 FROM {truncations})")

_MEASURE = sql.SQL("""\
      SELECT key, sum(stored)::bigint AS stored, sum(actual)::bigint AS actual FROM (
        SELECT {by} AS key, 0 AS stored, count(*) AS actual FROM {source} WHERE {counted} AND {span} GROUP BY {by}
        UNION ALL
        SELECT {by}, count, 0 FROM {counter} WHERE {span}
      ) AS counts
      GROUP BY key HAVING sum(stored) <> sum(actual)""")
_DIFFERENCES = sql.SQL("SELECT key, actual - stored AS n FROM {drift} AS drift")

# A part of a WITH sees the snapshot of the whole statement, so `drift` is what was there before `mended` added it.
_MEND = sql.SQL("""\
WITH drift AS MATERIALIZED (
{measure}
), mended AS (
{add}
)
SELECT key, stored, actual FROM drift""")

# Two repairs at a time would both add the same difference. This lock lets reads and counted writes pass.
_EXCLUDE_REPAIRS = sql.SQL("LOCK TABLE {counter} IN SHARE UPDATE EXCLUSIVE MODE")
_BACKFILL = sql.SQL("  {exclude_repairs};\n{add};")

# Without an index every batch would read the whole source: then there are no bounds, and one batch takes all keys.
_BOUNDS = sql.SQL("""\
SELECT key::text FROM (
  SELECT key, row_number() OVER (ORDER BY key) AS place FROM (
    SELECT {by} AS key FROM {counter} UNION SELECT {by} FROM {source} WHERE {by} IS NOT NULL
  ) AS keys
) AS places
WHERE place % {keys_per_batch} = 0 AND EXISTS (
  SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
  WHERE indrelid = {source_text}::regclass AND indisvalid AND indpred IS NULL AND attname = {by_text}
)
ORDER BY place""")

_READ = sql.SQL("SELECT count FROM {counter} WHERE {by} = ")


class CounterSQL:
    """The statements of one counter; every name is quoted, `where` is the developer's own SQL.

    `table` and `of` are `name` or `schema.name`; no schema means `public`. Raises ConfigError for a name that
    Postgres would cut.
    """

    def __init__(self, *, table: str, of: str, by: str, where: str | None) -> None:
        schema, name = split_table(table)
        self._parts: dict[str, sql.Composable] = {
            "by": _identifier(by),
            "by_text": sql.Literal(by),
            "where": sql.SQL(f"\n{where}\n" if where else "true"),  # on its own line: it may end in a comment
            "path": sql.SQL(SEARCH_PATH),
            "path_text": sql.Literal(SEARCH_PATH),
            "epoch": _EPOCH,
            "keys_per_batch": sql.Literal(KEYS_PER_BATCH),
            "cannot_count": sql.Literal(f"counter {table!r} cannot count {of!r}"),
            "counts_another": sql.Literal(f"counter {table!r} counts another table than {of!r}"),
            "not_a_counter": sql.Literal(f"table {table!r} is there already and is no counter of {of!r}"),
            "counter_columns": sql.Literal(
                f"It needs {by!r} as its primary key, of the same type as there, and count and version as bigint."
            ),
        }
        self._name("counter", schema, name)
        self._name("track", schema, f"{name}_track")
        self._name("truncations", schema, f"{name}_truncations")
        self._name("source", *split_table(of))
        for event in ("insert", "update", "delete", "truncate"):
            self._parts[f"on_{event}"] = _identifier(f"{schema}.{name}.{event}")
        for part, template in {"counted": _COUNTED, "first_version": _FIRST_VERSION}.items():
            self._parts[part] = self._fill(template)

    def declare(self) -> str:
        """Return the block that checks the declaration and creates table, function and triggers, or nothing at all."""
        body = sql.Composed([self._fill(_CHECKS), self._fill(_TABLE), self._fill(_TRIGGERS, function=self._function())])
        return self._block(body)

    def backfill(self) -> str:
        """Return the block that mends every key in one transaction."""
        measured = sql.SQL("(\n{}\n)").format(self.measure())
        return self._block(self._fill(_BACKFILL, exclude_repairs=self.exclude_repairs(), add=self._add_drift(measured)))

    def read(self) -> bytes:
        """Return the query of one count; its parameter is the key."""
        return self._fill(_READ).as_bytes().replace(b"%", b"%%") + b"%s"

    def bounds(self) -> sql.Composed:
        """Return the query of the keys, as text, that end a batch."""
        return self._fill(_BOUNDS)

    def measure(self, low: str | None = None, high: str | None = None) -> sql.Composed:
        """Return the query of the keys above `low` and up to `high` that drifted: key, stored, actual."""
        return self._fill(_MEASURE, span=self._span(low, high))

    def mend(self, low: str | None = None, high: str | None = None) -> sql.Composed:
        """Return the statement that adds what `measure` finds, and returns it."""
        return self._fill(_MEND, measure=self.measure(low, high), add=self._add_drift(sql.SQL("drift")))

    def exclude_repairs(self) -> sql.Composed:
        """Return the statement that lets one repair run at a time, to be run before the snapshot of `mend`."""
        return self._fill(_EXCLUDE_REPAIRS)

    def _function(self) -> sql.SQL:
        inserted, deleted = self._fill(_INSERTED), self._fill(_DELETED)
        updated = sql.SQL("\n        UNION ALL\n        ").join([inserted, deleted])
        return _dollar_quoted(
            self._fill(
                _FUNCTION,
                add_inserted=self._add_rows(inserted),
                add_deleted=self._add_rows(deleted),
                add_updated=self._add_rows(updated),
            )
        )

    def _add_rows(self, rows: sql.Composable) -> sql.Composed:
        return self._fill(_ADD, changes=self._fill(_NET, rows=rows))

    def _add_drift(self, drift: sql.Composable) -> sql.Composed:
        return self._fill(_ADD, changes=self._fill(_DIFFERENCES, drift=drift))

    def _span(self, low: str | None, high: str | None) -> sql.Composable:
        limits = [(sql.SQL(" > "), low), (sql.SQL(" <= "), high)]
        terms = [self._parts["by"] + operator + sql.Literal(key) for operator, key in limits if key is not None]
        return sql.SQL(" AND ").join(terms) if terms else sql.SQL("true")

    def _block(self, body: sql.Composable) -> str:
        return self._fill(_DO, block=_dollar_quoted(self._fill(_BLOCK, body=body))).as_string()

    def _name(self, part: str, schema: str, name: str) -> None:
        identifier = _identifier(schema, name)
        self._parts |= {part: identifier, f"{part}_text": sql.Literal(identifier.as_string())}

    def _fill(self, template: sql.SQL, **more: sql.Composable) -> sql.Composed:
        return template.format(**self._parts, **more)


def _identifier(*names: str) -> sql.Identifier:
    for name in names:
        if not name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            raise ConfigError(f"counter: {name!r} must be 1 to {LONGEST_NAME} bytes long; choose other names")
    return sql.Identifier(*names)


def _dollar_quoted(body: sql.Composable) -> sql.SQL:
    """Quote as `$counter$…$counter$`, with a tag that the body does not hold."""
    text, tag = body.as_string(), "$counter$"
    while tag in text:
        tag = f"{tag[:-1]}_$"
    return sql.SQL(f"{tag}{text}{tag}")
