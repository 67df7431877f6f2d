"""Names of a package that are imported when first used (PEP 562), so that importing the package stays cheap."""

from __future__ import annotations

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
