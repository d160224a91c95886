"""Import targets: `"app.caching:cache"` names an attribute of a module of the application."""

import importlib
import os
import sys
from typing import Any

from leasecache.errors import ConfigError, LeasecacheError


def import_attribute(target: str) -> Any:
    """Return what `target` ("module:attribute") names. Raises ConfigError in one line, whatever the import raised."""
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise ConfigError(f'{target!r} is not "module:attribute", such as "app.caching:cache"')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # an installed script does not look there, an application usually lives there
    try:
        found = importlib.import_module(module_name)
        for name in attribute.split("."):
            found = getattr(found, name)
    except LeasecacheError as error:  # a declaration of the application that we refuse, with its fix
        raise ConfigError(f"cannot import {target}: {error}") from None
    except ImportError as error:
        raise ConfigError(f"cannot import {target}: {error}; run where the application can be imported") from None
    except Exception as error:  # the application's own code runs here, and may raise anything
        fault = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"cannot import {target}: {fault}") from None
    return found
