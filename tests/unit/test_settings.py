"""The daemon's settings: what is accepted, and how what is not is named."""

import json
from pathlib import Path

import pytest

from leasecache.errors import ConfigError
from leasecache.invalidation.configuration import read_configuration
from leasecache.invalidation.settings import Settings, import_rules, load_rules, load_settings
from leasecache.rules import Rule, RuleSet

GOOD = """
[source]
dsn = "postgresql://leasecache@replica/app"
slot = "leasecache_dc2"
publication = "leasecache"
[cache]
url = "memcached://10.2.0.1:11211?namespace=shop"
[rules]
import = ["app.caching:cache"]
[status]
listen = "127.0.0.1:9187"
"""
RULE = Rule(
    function="get_media",
    template="media:{media_id}",
    kinds={"media_id": "int"},
    schema="public",
    table="media",
    fields={"media_id": "id"},
)


def load(tmp_path: Path, text: str, **environment: str) -> Settings:
    """Load settings from a file with `text`."""
    path = tmp_path / "leasecache.toml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, environment)


def test_a_whole_file(tmp_path: Path) -> None:
    """Every documented key arrives, and what is left out has its default."""
    settings = load(tmp_path, GOOD)
    assert settings.source.dsn == "postgresql://leasecache@replica/app"
    assert (settings.source.slot, settings.source.publication) == ("leasecache_dc2", "leasecache")
    assert (settings.source.gate, settings.source.readers) == ("auto", ())
    assert settings.cache.url == "memcached://10.2.0.1:11211?namespace=shop"
    assert (settings.rules.imports, settings.rules.file) == (("app.caching:cache",), None)
    assert settings.status.address == ("127.0.0.1", 9187)


def test_the_environment_goes_over_the_file(tmp_path: Path) -> None:
    """A variable replaces the file's value; lists are comma-separated."""
    settings = load(
        tmp_path, GOOD, LEASECACHE_SOURCE_SLOT="other", LEASECACHE_RULES_IMPORT="a:b, c:d", LEASECACHE_IMPL="c"
    )
    assert (settings.source.slot, settings.rules.imports) == ("other", ("a:b", "c:d"))


def test_the_environment_alone() -> None:
    """Without a file the environment says everything."""
    environment = {
        "LEASECACHE_SOURCE_DSN": "host=db",
        "LEASECACHE_SOURCE_SLOT": "s",
        "LEASECACHE_SOURCE_PUBLICATION": "p",
        "LEASECACHE_CACHE_URL": "memcached://h",
        "LEASECACHE_RULES_FILE": "rules.json",
    }
    settings = load_settings(None, environment)
    assert (settings.source.dsn, settings.rules.file, settings.status.address) == ("host=db", "rules.json", None)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("slot =", "slto =", ("leasecache.toml", "source.slto", "did you mean slot")),
        ('slot = "leasecache_dc2"', "", ("leasecache.toml", "source.slot", "missing", "LEASECACHE_SOURCE_SLOT")),
        ('"leasecache_dc2"', "7", ("leasecache.toml", "source.slot", "string", "integer")),
        ('"leasecache_dc2"', '""', ("source.slot", "empty")),
        ('"leasecache_dc2"', '"Bad-Slot"', ("source.slot", "Bad-Slot")),
        ('["app.caching:cache"]', '"app.caching:cache"', ("rules.import", "list of strings", "a string")),
        ('["app.caching:cache"]', "[1]", ("rules.import", "list of strings")),
        ('import = ["app.caching:cache"]', "", ("rules", "import", "file")),
        ("[cache]", "[cahce]", ("leasecache.toml", "[cahce]", "did you mean cache")),
        ('"127.0.0.1:9187"', '"9187"', ("status.listen", "host:port")),
        ('"127.0.0.1:9187"', '"h:99999"', ("status.listen", "host:port")),
        ("[cache]", 'gate = "replay"\n[cache]', ("source.gate", "source.readers")),
        ("[cache]", 'gate = "snapshto"\n[cache]', ("source.gate", "did you mean snapshot")),
        ("[cache]", 'readers = "host=b"\n[cache]', ("source.readers", "list of strings", "a string")),
        ("[cache]", 'readers = [""]\n[cache]', ("source.readers", "list of strings", "an empty string")),
        ("[status]", '[guard]\nslots = ["shard 1"]\n[status]', ("guard.slots 'shard 1'", "a slot name has")),
        ("[rules]", "[guard]\nttl = '60'\n[rules]", ("leasecache.toml: guard.ttl", "a number, 0 to 86400", "a string")),
        ("[rules]", "[guard]\nttl = true\n[rules]", ("guard.ttl", "a boolean")),
        ("[rules]", "[guard]\nttl = nan\n[rules]", ("guard.ttl", "not nan")),
        ("[rules]", "[guard]\nttl = -1\n[rules]", ("guard.ttl", "not -1")),
        ("[rules]", "[guard]\nttl = 1.5\n[rules]", ("guard.ttl", "0, or 2 s or more")),
        ("[rules]", "[journal]\nlimit = 0\n[rules]", ("journal.limit", "an integer, 1 or more, not 0")),
        ("[rules]", "[journal]\nlimit = 1.5\n[rules]", ("journal.limit", "an integer", "a float")),
        ("[rules]", "[limits]\ntransaction_keys = 0\n[rules]", ("limits.transaction_keys", "1 or more")),
        ("[rules]", "[drift]\nevery = 0\n[rules]", ("drift.every", "0.1 to 86400", "not 0")),
        ("[source]", "source = 1\n[x]", ("leasecache.toml", "[x]")),
        ("[source]", "[source", ("leasecache.toml", "not TOML")),
        ("[source]", "x = " + "[" * 100_000 + "\n[source]", ("leasecache.toml", "not TOML")),
        ('publication = "leasecache"', 'publication = "a\\u0000b"', ("source.publication", "printable")),
        ('publication = "leasecache"', f'publication = "{"x" * 64}"', ("source.publication", "63 bytes")),
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, named: tuple[str, ...]) -> None:
    """A fault is a ConfigError in one line that names file, key and what belongs there."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert all(part in str(caught.value) for part in named), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_none(tmp_path: Path) -> None:
    """A value where a table belongs is named."""
    with pytest.raises(ConfigError, match=r"source must be a table"):
        load(tmp_path, "source = 1")


def test_a_misspelt_variable() -> None:
    """A variable of a known table with an unknown key is refused, with the nearest name."""
    with pytest.raises(ConfigError, match="did you mean LEASECACHE_SOURCE_DSN"):
        load_settings(None, {"LEASECACHE_SOURCE_DNS": "x"})


def test_numbers(tmp_path: Path) -> None:
    """Numbers come from the file or a variable, and have defaults."""
    text = GOOD + "[guard]\nttl = 0\n[journal]\nlimit = 16\n[limits]\ntransaction_keys = 5\n[drift]\nevery = 1.5\n"
    settings = load(tmp_path, text)
    assert (settings.guard.ttl, settings.journal.limit, settings.journal.directory) == (0.0, 16, None)
    assert (settings.limits.transaction_keys, settings.drift.every) == (5, 1.5)
    over = load(tmp_path, text, LEASECACHE_GUARD_TTL="2.5", LEASECACHE_JOURNAL_LIMIT="7", LEASECACHE_CACHE_MORE="a,b")
    assert (over.guard.ttl, over.journal.limit, over.cache.more) == (2.5, 7, ("a", "b"))
    plain = load(tmp_path, GOOD)
    assert (plain.guard.ttl, plain.journal.limit, plain.limits.transaction_keys) == (60.0, 256, 100_000)
    assert (plain.drift.every, plain.cache.more) == (30.0, ())


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("GUARD_TTL", "soon", "LEASECACHE_GUARD_TTL must be a number, 0 to 86400, not a string"),
        ("GUARD_TTL", "inf", "LEASECACHE_GUARD_TTL must be a number, 0 to 86400, not inf"),
        ("JOURNAL_LIMIT", "1.5", "LEASECACHE_JOURNAL_LIMIT must be an integer, 1 or more, not a float"),
        ("JOURNAL_LIMIT", "", "LEASECACHE_JOURNAL_LIMIT must be an integer, 1 or more, not an empty string"),
        ("RULES_FILE", "", "LEASECACHE_RULES_FILE must be a non-empty string, not an empty string"),
    ],
)
def test_a_variable_of_the_wrong_type(tmp_path: Path, variable: str, text: str, says: str) -> None:
    """A variable that is no number, or out of range, is named with what belongs there."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD, **{f"LEASECACHE_{variable}": text})
    assert str(caught.value) == says


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_file(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing or not text is named."""
    path = tmp_path / "gone.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"gone\.toml"):
        load_settings(path, {})


def test_secrets_are_not_in_the_repr(tmp_path: Path) -> None:
    """A DSN with a password does not show when settings are printed."""
    assert "hush" not in repr(load(tmp_path, GOOD.replace("leasecache@", "leasecache:hush@")))


def configuration(tmp_path: Path, namespace: str | None, rules: tuple[Rule, ...] = (RULE,)) -> Path:
    """Write a configuration whose rules were made under `namespace`."""
    document = RuleSet(namespace=namespace, rules=rules).to_json()
    (tmp_path / "rules.json").write_text(json.dumps(document), encoding="utf-8")
    path = tmp_path / "leasecache.toml"
    path.write_text(GOOD.replace('import = ["app.caching:cache"]', 'file = "rules.json"'), encoding="utf-8")
    return path


@pytest.mark.parametrize("namespace", ["shop", None])
def test_rules_get_the_namespace_of_the_cache(tmp_path: Path, namespace: str | None) -> None:
    """Rules are rendered under the namespace of the cache's URL; a file is found beside the configuration."""
    _, rules, _, (store,) = read_configuration(configuration(tmp_path, namespace))
    assert (rules.namespace, store.namespace, rules.rules) == ("shop", "shop", (RULE,))


def test_several_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further caches are opened in their order, and must be others under the same namespace."""
    path = configuration(tmp_path, "shop")

    def stores(more: str) -> list[str | None]:
        monkeypatch.setenv("LEASECACHE_CACHE_MORE", more)
        return [store.namespace for store in read_configuration(path).stores]

    assert stores("redis://h:6379/0?namespace=shop, memcached://h:1?namespace=shop") == ["shop"] * 3
    for more, fault in [
        ("redis://h:6379/0?namespace=blog", r"cache\.more\[0\] has namespace 'blog', cache\.url has 'shop'"),
        ("redis://h:6379/0?namespace=shop,memory://", r"cache\.more\[1\].*only caches on the network"),
        ("gopher://h", r"cache\.more\[0\]: .*scheme"),
        ("memcached://10.2.0.1:11211?namespace=shop", "twice"),
    ]:
        with pytest.raises(ConfigError, match=fault):
            stores(more)


def test_rules_of_another_namespace(tmp_path: Path) -> None:
    """Rules made under another namespace would never match, and are refused."""
    with pytest.raises(ConfigError, match=r"'shop'.*'blog'.*never match"):
        read_configuration(configuration(tmp_path, "blog"))


def test_no_rules(tmp_path: Path) -> None:
    """A daemon without rules has nothing to do, and says what to do."""
    with pytest.raises(ConfigError, match="depends_on"):
        read_configuration(configuration(tmp_path, "shop", ()))


@pytest.mark.parametrize("url", ["memory://", "null://"])
def test_a_cache_that_no_daemon_reaches(tmp_path: Path, url: str) -> None:
    """A cache inside a process cannot be invalidated from another one."""
    path = configuration(tmp_path, None)
    path.write_text(path.read_text().replace("memcached://10.2.0.1:11211?namespace=shop", url))
    with pytest.raises(ConfigError, match=r"cache\.url"):
        read_configuration(path)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "cannot read"),
        ("{", "not JSON"),
        ("[]", "version 1"),
        ('{"version": 2}', "version 1"),
        ("[" * 100_000, "nested too deep"),
        ("9" * 5000, "not JSON"),
        ('"\xff"', "not JSON"),  # no UTF-8, as written below
        (" " * (16 << 20) + "{}", "larger than 16 MiB"),
    ],
)
def test_a_bad_rules_file(tmp_path: Path, content: str | None, fault: str) -> None:
    """A rules file that cannot be used is a ConfigError."""
    path = configuration(tmp_path, "shop")
    (tmp_path / "rules.json").unlink()
    if content is not None:
        (tmp_path / "rules.json").write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError, match=fault):
        read_configuration(path)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("nothing", "module:attribute"),
        (":x", "module:attribute"),
        ("no_such_module_at_all:cache", "no_such_module_at_all"),
        ("json:cache", "has no attribute 'cache'"),
        ("json:dumps", "function, not a Cache"),
        ("faulty_application:cache", "KeyError: 'SECRET'"),
    ],
)
def test_a_bad_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, fault: str) -> None:
    """Whatever an import raises is a ConfigError in one line that names the target."""
    (tmp_path / "faulty_application.py").write_text("import os\nos.environ['SECRET']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=fault) as caught:
        import_rules(target)
    assert target.partition(":")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_imports_and_a_file_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules of several caches and a file are followed together, when their namespaces agree."""
    (tmp_path / "an_application.py").write_text(
        "from leasecache.rules import Rule, RuleSet\n"
        "class Cache:\n"
        "    def __init__(self, namespace):\n"
        "        where = {'schema': 'public', 'table': 't', 'fields': {'x': 'x'}}\n"
        "        rule = Rule(function='f', template='f:{x}', kinds={'x': 'int'}, **where)\n"
        "        self.rules = RuleSet(namespace=namespace, rules=(rule,))\n"
        "one, other = Cache('shop'), Cache('blog')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    path = configuration(tmp_path, "shop")
    both = GOOD.replace('["app.caching:cache"]', '["an_application:one"]\nfile = "rules.json"')
    path.write_text(both)
    assert [rule.function for rule in read_configuration(path).rules.rules] == ["f", "get_media"]
    path.write_text(both.replace("application:one", "application:other"))
    with pytest.raises(ConfigError, match="blog, shop"):
        load_rules(load_settings(path, {}).rules, tmp_path)
