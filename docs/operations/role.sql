-- The role that the daemon runs as: run this once per database, on the primary, as its owner or a superuser.
-- Give it a password (\password leasecache) or a client certificate; the setup page has the lines of pg_hba.conf.

do $$
begin
  if not exists (select from pg_roles where rolname = 'leasecache') then
    create role leasecache;
  end if;
end $$;

-- REPLICATION reads the changes of every table that a publication names. It needs no SELECT on any table.
alter role leasecache login replication nosuperuser nocreatedb nocreaterole connection limit 20;

-- pg_monitor sees when a standby has crashed and gone back in time, and how far it has replayed.
grant pg_monitor to leasecache;

do $$
begin
  execute format('grant connect on database %I to leasecache', current_database());
  -- A slot on a standby waits for a record that an idle primary writes only when it is asked for; there from 16 on.
  if to_regprocedure('pg_catalog.pg_log_standby_snapshot()') is not null then
    grant execute on function pg_catalog.pg_log_standby_snapshot() to leasecache;
  end if;
end $$;
