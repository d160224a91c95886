"""The event triggers that say in the log itself that a publication or table has changed.

A publication that loses a table goes on without an error and without its changes, so nothing in the stream would tell.
`pg_logical_emit_message` puts the command's tag between the transactions where it belongs. It is sent whatever the
command changed: for `ALTER PUBLICATION ... DROP TABLE` Postgres lists no objects that one could look at. A rewrite
(`ALTER TABLE ... TYPE ... USING ...`) changes rows without sending them, and names its table.
https://www.postgresql.org/docs/current/event-triggers.html
"""

from leasecache.rules import RuleSet

NAMES = {"ddl_command_end": "leasecache_ddl", "table_rewrite": "leasecache_rewrite"}  # event → trigger
FUNCTION = "public.leasecache_ddl()"
REWRITE = "REWRITE "
_LOSING = {"CREATE PUBLICATION", "ALTER PUBLICATION", "DROP PUBLICATION", "DROP OWNED"}

BODY = """
declare
  rewritten oid;
begin
  if tg_event <> 'table_rewrite' then
    perform pg_catalog.pg_logical_emit_message(true, 'leasecache.ddl', tg_tag);
    return;
  end if;
  rewritten := pg_catalog.pg_event_trigger_table_rewrite_oid();
  perform pg_catalog.pg_logical_emit_message(true, 'leasecache.ddl', 'REWRITE ' || n.nspname || '.' || c.relname)
     from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.oid = coalesce(pg_catalog.pg_partition_root(rewritten), rewritten);
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
