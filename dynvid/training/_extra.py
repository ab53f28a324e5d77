"""What only training needs is imported when it is needed."""

import importlib
from types import ModuleType


def require(name: str) -> ModuleType:
    """Imports a module of the extra `train`.

    Raises:
      ImportError: Where its package is missing; the message says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'training needs the package {name.partition(".")[0]}: pip install "dynvid[train]"'
        ) from error
