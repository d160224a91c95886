"""The triggers that say in the log itself that a publication or table has changed.

A publication that loses a table goes on without an error and without its changes, so nothing in the stream would tell.
`pg_logical_emit_message` puts the command's tag between the transactions where it belongs. It is sent whatever the
command changed: for `ALTER PUBLICATION ... DROP TABLE` Postgres lists no objects that one could look at. Temporary
tables alone are left out, as applications make and drop them all the time. A rewrite (`ALTER TABLE ... TYPE ... USING
...`) changes rows without sending them, and names its table. So does a TRUNCATE of one partition, which is not sent
where partitions go under the name of their root; there is no event for it, each partition has a trigger of its own.
https://www.postgresql.org/docs/current/event-triggers.html
"""

from collections.abc import Sequence

from leasecache.rules import RuleSet

NAMES = {  # event → trigger
    "ddl_command_end": "leasecache_ddl",
    "sql_drop": "leasecache_drop",
    "table_rewrite": "leasecache_rewrite",
}
FUNCTION = "public.leasecache_ddl()"
TRUNCATE_NAME = "leasecache_truncate"
TRUNCATE_FUNCTION = f"public.{TRUNCATE_NAME}()"
REWRITE, TRUNCATE = "REWRITE ", "TRUNCATE "
_ILLEGIBLE = "\N{REPLACEMENT CHARACTER}"  # part of a name in a database that is not in UTF-8
_LOSING = {
    *("CREATE PUBLICATION", "ALTER PUBLICATION", "DROP PUBLICATION", "DROP OWNED"),
    "ALTER SCHEMA",  # for a while its tables may have had another name
    "ALTER TYPE",  # the values of an enum may have other names now, in rows that nobody has written
}

_TELL = """perform pg_logical_emit_message(true, 'leasecache.ddl', '{what}' || n.nspname || '.' || c.relname)
     from (select {table} union select relid from pg_partition_ancestors({table})) t (relid)
     join pg_class c on c.oid = t.relid join pg_namespace n on n.oid = c.relnamespace;"""  # whichever of them is sent

BODY = f"""
begin
  if tg_event = 'table_rewrite' then
    {_TELL.format(what=REWRITE, table="pg_event_trigger_table_rewrite_oid()")}
    return;
  end if;
  if tg_event = 'sql_drop' then
    if tg_tag <> 'DROP TABLE' or not exists (select from pg_event_trigger_dropped_objects() where not is_temporary) then
      return;
    end if;
  elsif tg_tag = 'DROP TABLE' then
    return;
  elsif tg_tag in ('CREATE TABLE', 'CREATE TABLE AS', 'CREATE INDEX') then
    if not exists (select from pg_event_trigger_ddl_commands() where schema_name is distinct from 'pg_temp') then
      return;
    end if;
  end if;
  perform pg_logical_emit_message(true, 'leasecache.ddl', tg_tag);
end """
TRUNCATE_BODY = f"""
begin
  {_TELL.format(what=TRUNCATE, table="tg_relid")}
  return null;
end """


def triggers_ddl(present: frozenset[str]) -> list[str]:
    """Return the statements after which every event has its trigger; `present` are the events that have it."""
    if present == NAMES.keys():
        return []
    function = _function(FUNCTION, "event_trigger", BODY)
    return [function, *(_trigger(event) for event in NAMES if event not in present)]


def truncate_ddl(partitions: Sequence[str]) -> list[str]:
    """Return the statements after which each of these partitions, named as in SQL, says when it is truncated."""
    if not partitions:
        return []
    return [_function(TRUNCATE_FUNCTION, "trigger", TRUNCATE_BODY), *map(_truncate_trigger, partitions)]


def _function(signature: str, returns: str, body: str) -> str:
    options = f"returns {returns} language plpgsql set search_path = pg_catalog"
    return f"create or replace function {signature} {options} as $${body}$$"


def _truncate_trigger(partition: str) -> str:
    return (
        f"drop trigger if exists {TRUNCATE_NAME} on {partition}; "
        f"create trigger {TRUNCATE_NAME} after truncate on {partition} execute function {TRUNCATE_FUNCTION}; "
        f"alter table {partition} enable always trigger {TRUNCATE_NAME}"
    )


def _trigger(event: str) -> str:
    # One text, run as one transaction. "always": also for those who replay the commands of another server.
    name = NAMES[event]
    return (
        f"drop event trigger if exists {name}; "
        f"create event trigger {name} on {event} execute function {FUNCTION}; "
        f"alter event trigger {name} enable always"
    )


def loses(tag: str, rules: RuleSet) -> bool:
    """Return whether changes can have been lost around a command, whatever a look at the catalogues finds later."""
    for what in (REWRITE, TRUNCATE):
        if tag.startswith(what):
            table = tag.removeprefix(what)
            return _ILLEGIBLE in table or table in {f"{rule.schema}.{rule.table}" for rule in rules.rules}
    return tag in _LOSING
