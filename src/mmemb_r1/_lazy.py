"""Import by name, when a name is first used (PEP 562): importing the package stays cheap, and users can add parts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` for `package`.

    Args:
        package: The package's `__name__`.
        modules: Public name -> full name of the module that defines it.
    """

    def __getattr__(name: str) -> Any:
        if name not in modules:
            known = ", ".join(sorted(modules))
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {known}")
        return getattr(import_module(modules[name]), name)

    return __getattr__


def import_object(path: str) -> Any:
    """
    Import an object by its path, from installed packages or the current folder: how users bring parts of their own.

    Args:
        path: `module:name`, for example `my_workers:Summariser`.

    Raises:
        ValueError: if the path is not of this form, or there is no such module or name in it.

    >>> import_object("collections:OrderedDict").__name__
    'OrderedDict'
    """
    module, colon, name = path.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{path!r} is no import path; write module:name, for example my_workers:Summariser.")
    if (folder := os.getcwd()) not in sys.path:  # a console script does not look there by itself
        sys.path.append(folder)
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} can't be imported: {error}") from error
