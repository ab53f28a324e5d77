"""Sub-modules that are reachable as attributes and loaded when they are first used."""

import importlib
import pkgutil
import sys
from collections.abc import Callable
from types import ModuleType


def submodules(package: str) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` (PEP 562) of a package whose modules load on demand."""
    module = sys.modules[package]
    names = {m.name for m in pkgutil.iter_modules(module.__path__) if not m.name.startswith("_")}

    def load(name: str) -> ModuleType:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return importlib.import_module(f"{package}.{name}")

    return load, lambda: sorted({*vars(module), *names})
