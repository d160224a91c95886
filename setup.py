"""Extensions and the package mapping; everything else is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

COMPILED = ("_keys", "_hot", "_hits", "_mux", "invalidation._pgoutput")

extensions = cythonize(
    [Extension(f"leasecache.{name}", [f"ext/{name.rpartition('.')[2]}.pyx"]) for name in COMPILED],
    include_path=["ext"],
    build_dir="build/cython",
    language_level=3,
)
for extension in extensions:  # cythonize drops Extension.optional
    extension.optional = os.environ.get("LEASECACHE_EXT") != "required"

setup(
    ext_modules=extensions,
    packages=[
        *find_packages(include=["leasecache", "leasecache.*"], exclude=["leasecache.invalidation*"]),
        "leasecache.invalidation",
    ],
    package_dir={"leasecache.invalidation": "invalidation"},
    package_data={"leasecache": ["py.typed", "*.pyi"]},
)
