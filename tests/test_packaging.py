"""What is built from the tree, and that it works where it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOT_SOURCE = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", ".hypothesis")
ENVIRON = {
    name: value for name, value in os.environ.items() if not name.startswith(("LEASECACHE_", "PYTHON", "COVERAGE"))
}
FAST = {"CFLAGS": "-O0"}  # what is tested is the packing


def run(
    *command: object, cwd: Path, env: Mapping[str, str] = {}, check: bool = True
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a clean environment and return what it said."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**ENVIRON, **env}, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def build(tree: Path, *options: str, env: Mapping[str, str]) -> None:
    """Build a source tree into its dist/ with the packages that are installed here."""
    run(sys.executable, "-m", "build", "--no-isolation", *options, cwd=tree, env=env)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with an sdist, and a wheel that was built from that sdist, of a copy of this tree as it is."""
    tree = tmp_path_factory.mktemp("packaging") / "tree"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=NOT_SOURCE)
    build(tree, env={**FAST, "LEASECACHE_EXT": "required"})
    return tree / "dist"


@pytest.fixture(scope="module")
def sdist(dist: Path) -> Path:
    """The built sdist."""
    (found,) = dist.glob("*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The built wheel."""
    (found,) = dist.glob("*.whl")
    return found


def install(wheel: Path, where: Path) -> Path:
    """Install a wheel into a new virtual environment that borrows our dependencies; return its Python."""
    venv.create(where, with_pip=False)
    python = where / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=where)
    (site,) = where.glob("lib/python*/site-packages")
    # A .pth adds the folder, not what its own .pth files do: the editable leasecache of the tree stays out of sight.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment with the wheel installed."""
    return install(wheel, tmp_path_factory.mktemp("installed"))


SHOW = (
    "import leasecache, leasecache.invalidation.router, leasecache._accel as accel;"
    "cache = leasecache.Cache.from_url('memory://');"
    "f = cache.cached('f:{a}', ttl=60)(__import__('app').f);"
    "print(accel.IMPL, f.key(5).decode(), leasecache.__file__, leasecache.invalidation.__file__)"
)


def show(python: Path, cwd: Path, env: Mapping[str, str] = {}) -> list[str]:
    """Use the installed package; return the implementation, a key, and where the two packages are."""
    (cwd / "app.py").write_text("def f(a: int) -> int:\n    return a\n")
    return run(python, "-c", SHOW, cwd=cwd, env=env).stdout.split()


def names(sdist: Path) -> set[str]:
    """Return the files of an sdist, without its top folder."""
    with tarfile.open(sdist) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_sdist_is_complete(sdist: Path) -> None:
    """Everything that builds, tests and explains is in the sdist."""
    packed = names(sdist)
    sources = [*ROOT.glob("leasecache/**/*.py*"), *ROOT.glob("invalidation/**/*.py"), *ROOT.glob("ext/*.pyx")]
    sources += [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/golden/*"), ROOT / "setup.py", ROOT / "LICENSE"]
    wanted = {str(path.relative_to(ROOT)) for path in sources if "__pycache__" not in path.parts and path.is_file()}
    assert {name for name in wanted if not name.startswith("leasecache/invalidation/")} - packed == set()


def test_sdist_has_no_leftovers(sdist: Path) -> None:
    """Nothing generated, compiled or cached is in the sdist, and the daemon is in it once."""
    packed = names(sdist)
    assert [name for name in packed if name.endswith((".c", ".so", ".pyc")) or "__pycache__" in name] == []
    assert [name for name in packed if name.startswith(("build/", ".", "leasecache/invalidation/"))] == []


def test_wheel_contents(wheel: Path) -> None:
    """The wheel holds the package, the daemon within it, the extension, the types, and nothing beside."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    modules = {f"leasecache/invalidation/{path.name}" for path in ROOT.glob("invalidation/*.py")}
    stubs = {f"leasecache/{path.name}" for path in ROOT.glob("leasecache/_*.pyi")}
    stubs |= {f"leasecache/invalidation/{path.name}" for path in ROOT.glob("invalidation/_*.pyi")}
    assert modules | stubs | {"leasecache/py.typed", "leasecache/lab/__init__.py"} <= packed
    assert len([name for name in packed if name.endswith(".so")]) == len(stubs) == len([*ROOT.glob("ext/*.pyx")])
    assert {name.split("/")[0].split("-")[0] for name in packed} == {"leasecache"}
    assert [name for name in packed if name.endswith((".pyx", ".c", ".pyc"))] == []


def test_installed(python: Path, tmp_path: Path) -> None:
    """Installed outside the tree, the package runs compiled, and the daemon is where it belongs."""
    impl, key, package, daemon = show(python, tmp_path)
    assert (impl, key) == ("c", "f:5")
    assert Path(package).is_relative_to(python.parent.parent)
    assert Path(daemon).parent == Path(package).parent / "invalidation"


def test_python_can_be_chosen(python: Path, tmp_path: Path) -> None:
    """LEASECACHE_IMPL=python runs the pure twin, c the compiled one."""
    assert show(python, tmp_path, {"LEASECACHE_IMPL": "python"})[:2] == ["python", "f:5"]
    assert show(python, tmp_path, {"LEASECACHE_IMPL": "c"})[:2] == ["c", "f:5"]


def test_nonsense_is_refused(python: Path, tmp_path: Path) -> None:
    """Any other LEASECACHE_IMPL is an ImportError that names the two choices."""
    done = run(python, "-c", "import leasecache", cwd=tmp_path, env={"LEASECACHE_IMPL": "rust"}, check=False)
    assert done.returncode == 1
    assert "ImportError: LEASECACHE_IMPL='rust' is neither 'c' nor 'python'" in done.stderr


def test_the_pytest_plugin(python: Path, tmp_path: Path) -> None:
    """Where the wheel is installed, pytest has the fixture without being told."""
    test = "import app, leasecache\ncache = leasecache.Cache()\nf = cache.cached('f:{a}', ttl=60)(app.f)\n"
    test += "def test(leasecache_memory):\n    leasecache_memory(cache)\n    assert f(1) == 1\n"
    (tmp_path / "app.py").write_text("def f(a: int) -> int:\n    return a\n")
    (tmp_path / "test_app.py").write_text(test)
    assert "1 passed" in run(python, "-m", "pytest", "-p", "no:cacheprovider", cwd=tmp_path).stdout


def test_no_global_invalidation(python: Path, tmp_path: Path) -> None:
    """There is no package `invalidation` of its own: not installed, and in the tree it says what to import."""
    installed = run(python, "-c", "import invalidation", cwd=tmp_path, check=False)
    in_tree = run(sys.executable, "-c", "import invalidation", cwd=ROOT, check=False)
    assert "ModuleNotFoundError: No module named 'invalidation'" in installed.stderr
    assert "ImportError: import leasecache.invalidation" in in_tree.stderr


def test_without_a_compiler(sdist: Path, tmp_path: Path) -> None:
    """Where nothing can be compiled, the sdist installs and runs pure; choosing c there is an ImportError."""
    shutil.unpack_archive(sdist, tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (tree,) = tmp_path.glob("leasecache-*")
    build(tree, "--wheel", env={"CC": "false"})
    (built,) = tree.glob("dist/*.whl")
    python = install(built, tmp_path / "installed")
    assert show(python, tmp_path)[:2] == ["python", "f:5"]
    done = run(python, "-c", "import leasecache", cwd=tmp_path, env={"LEASECACHE_IMPL": "c"}, check=False)
    assert "No module named 'leasecache._h" in done.stderr
