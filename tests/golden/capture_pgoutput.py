"""Capture pgoutput messages from a real server: `python -m tests.golden.capture_pgoutput 16 18`.

Each line of `pgoutput_<version>.txt` is the message as hex, a blank, and what it decodes to.
"""

import sys
import time
from pathlib import Path

from leasecache.invalidation.lsn import parse_lsn
from leasecache.invalidation.pgoutput import decode
from leasecache.invalidation.source import Replication
from leasecache.invalidation.stream import Data, Keepalive, parse_frame, status_update
from leasecache.lab import PostgresServer

HERE = Path(__file__).parent
PREPARE = (
    "create table media (id int primary key, title text, big text)",
    "alter table media alter column big set storage external",
    "create table comments (id int primary key, media_id int not null, body text)",
    "create unique index comments_media on comments (media_id, id)",
    "alter table comments replica identity using index comments_media",
    "create table tags (media_id int, name text)",
    "alter table tags replica identity full",
    "create type mood as enum ('sad', 'ok')",
    "create table people (id uuid primary key, mood mood, born date, raw bytea, fine bool)",
    "create table logs (id int primary key, line text)",
    "alter table logs replica identity nothing",
    "create table parts (id int, part int) partition by list (part)",
    "create table parts_1 partition of parts for values in (1)",
    "create table parts_2 partition of parts for values in (2)",
    "alter table parts_1 replica identity full",
    "alter table parts_2 replica identity full",
    "create table replies (id int primary key, parent int references replies on delete cascade)",
    'create schema "Schéma 1"',
    'create table "Schéma 1"."Käse;""" ("Größe" int primary key, "drop" text)',
    "create publication leasecache for all tables with (publish_via_partition_root)",
)
SCRIPT = (
    "insert into media values (1, 'a', repeat('x', 3000)), (2, null, 'ü')",
    "update media set title = 'b' where id = 1",  # big arrives as unchanged
    "update media set id = 3 where id = 1",  # the old key arrives, big does not
    "delete from media where id = 2",
    "insert into comments values (1, 7, 'hi')",
    "update comments set body = 'ho' where id = 1",
    "update comments set media_id = 8 where id = 1",  # the old index columns arrive
    "delete from comments where id = 1",
    "insert into tags values (7, 'x')",
    "update tags set name = 'y' where media_id = 7",
    "delete from tags",
    "insert into people values ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'ok', '2024-02-29', '\\x00ff', true)",
    "truncate media, tags restart identity cascade",
    "select pg_logical_emit_message(true, 'leasecache', 'a key')",
    "select pg_logical_emit_message(false, 'other', 'noise')",
    "begin; insert into tags values (null, ''); savepoint s; insert into tags values (1, 'x'); rollback to s; commit",
    "begin; insert into logs values (1, 'x'); prepare transaction 'two'",
    "commit prepared 'two'",
    "insert into parts values (1, 1)",
    "update parts set part = 2",
    "insert into replies values (1, null), (2, 1), (3, 2)",
    "delete from replies where id = 1",
    'insert into "Schéma 1"."Käse;""" values (1, null)',
    'update "Schéma 1"."Käse;""" set "Größe" = 2',
    "alter table tags rename name to label",
    "update tags set label = 'z'",
    "select pg_logical_emit_message(true, '', decode('00ff', 'hex'))",
    "alter table media add column more int",
    "insert into media values (9, 'z', null, 1)",
)


def capture(version: int) -> list[bytes]:
    """Return the messages that a server of `version` sends for SCRIPT."""
    with PostgresServer(version) as server:
        for statement in PREPARE:
            server.query(statement)
        server.create_logical_slot("golden")
        for statement in SCRIPT:
            server.query(statement)
        replication = Replication(server.dsn())
        replication.start("golden", "leasecache")
        payloads: list[bytes] = []
        written, position = parse_lsn(server.value("select pg_current_wal_lsn()::text")), 0
        while position < written:
            frames = [parse_frame(frame) for frame in replication.read(1000)]
            payloads += [frame.payload for frame in frames if isinstance(frame, Data)]
            position = max([position, *(frame.wal_end for frame in frames if isinstance(frame, Keepalive))])
            replication.send(status_update(0, time.time(), reply_requested=True))
            time.sleep(0.01)
        replication.close()
        return payloads


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        lines = [f"{payload.hex()} {decode(payload)!r}\n" for payload in capture(int(argument))]
        (HERE / f"pgoutput_{argument}.txt").write_text("".join(lines), encoding="utf-8")
