"""Capture pgoutput messages from a real server: `python -m tests.golden.capture_pgoutput 16 18`.

Each line of `pgoutput_<version>.txt` is the message as hex, a blank, and what it decodes to.
"""

import sys
import time
from pathlib import Path

from leasecache.invalidation.pgoutput import Commit, decode
from leasecache.invalidation.source import Replication
from leasecache.invalidation.stream import Data, parse_frame
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
    "create publication leasecache for all tables",
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
        while sum(isinstance(decode(payload), Commit) for payload in payloads) < len(SCRIPT) - 2:
            frames = [parse_frame(frame) for frame in replication.read(1000)]
            payloads += [frame.payload for frame in frames if isinstance(frame, Data)]
            time.sleep(0.01)
        replication.close()
        return payloads


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        lines = [f"{payload.hex()} {decode(payload)!r}\n" for payload in capture(int(argument))]
        (HERE / f"pgoutput_{argument}.txt").write_text("".join(lines), encoding="utf-8")
