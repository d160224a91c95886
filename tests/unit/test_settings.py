"""The daemon's settings: what is accepted, and how what is not is named."""

import json
from pathlib import Path

import pytest

from leasecache.errors import ConfigError
from leasecache.invalidation.launch import read_configuration
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
        ("[cache]", 'gate = "snapshto"\n[cache]', ("source.gate", "did you mean snapshot")),
        ("[cache]", 'gate = "replay"\n[cache]', ("source.gate", "replay", "not available")),
        ("[cache]", 'readers = ["host=b"]\n[cache]', ("source.readers", "not available")),
        ("[source]", "source = 1\n[x]", ("leasecache.toml", "[x]")),
        ("[source]", "[source", ("leasecache.toml", "not TOML")),
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
    _, rules, _, store = read_configuration(configuration(tmp_path, namespace))
    assert (rules.namespace, store.namespace, rules.rules) == ("shop", "shop", (RULE,))


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
    [(None, "cannot read"), ("{", "not JSON"), ("[]", "version 1"), ('{"version": 2}', "version 1")],
)
def test_a_bad_rules_file(tmp_path: Path, content: str | None, fault: str) -> None:
    """A rules file that cannot be used is a ConfigError."""
    path = configuration(tmp_path, "shop")
    (tmp_path / "rules.json").unlink()
    if content is not None:
        (tmp_path / "rules.json").write_text(content)
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
