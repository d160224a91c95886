"""The event triggers that say in the log itself that a publication or table has changed.

A publication that loses a table goes on without an error and without its changes, so nothing in the stream would tell.
`pg_logical_emit_message` puts the command's tag between the transactions where it belongs. It is sent whatever the
command changed: for `ALTER PUBLICATION ... DROP TABLE` Postgres lists no objects that one could look at. Temporary
tables alone are left out, as applications make and drop them all the time. A rewrite (`ALTER TABLE ... TYPE ... USING
...`) changes rows without sending them, and names its table.
https://www.postgresql.org/docs/current/event-triggers.html
"""

from leasecache.rules import RuleSet

NAMES = {  # event → trigger
    "ddl_command_end": "leasecache_ddl",
    "sql_drop": "leasecache_drop",
    "table_rewrite": "leasecache_rewrite",
}
FUNCTION = "public.leasecache_ddl()"
REWRITE = "REWRITE "
_LOSING = {"CREATE PUBLICATION", "ALTER PUBLICATION", "DROP PUBLICATION", "DROP OWNED"}

BODY = """
declare
  rewritten oid;
begin
  if tg_event = 'table_rewrite' then
    rewritten := pg_event_trigger_table_rewrite_oid();
    perform pg_logical_emit_message(true, 'leasecache.ddl', 'REWRITE ' || n.nspname || '.' || c.relname)
       from pg_class c join pg_namespace n on n.oid = c.relnamespace
      where c.oid = coalesce(pg_partition_root(rewritten), rewritten);
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


def triggers_ddl(present: frozenset[str]) -> list[str]:
    """Return the statements after which every event has its trigger; `present` are the events that have it."""
    if present == NAMES.keys():
        return []
    options = "returns event_trigger language plpgsql set search_path = pg_catalog"
    function = f"create or replace function {FUNCTION} {options} as $${BODY}$$"
    return [function, *(_trigger(event) for event in NAMES if event not in present)]


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
    if tag.startswith(REWRITE):
        return tag.removeprefix(REWRITE) in {f"{rule.schema}.{rule.table}" for rule in rules.rules}
    return tag in _LOSING
