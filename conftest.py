"""What every test and doctest runs under; it comes before anything that imports jax.

XLA's compilations are nearly all of the tests' time. They are kept on disk, where the other worker,
the programs that tests start and the next run find them, and made without optimisation: no test is
about speed. All of it goes by environment, which is what a started program inherits.
"""

import hashlib
import os
import pathlib
import platform
import shutil

_LIMIT = 1 << 30  # bytes; a cache beyond it starts anew


def _machine() -> str:
    """A name for what compiled code may run on: another processor's would crash this one."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    kinds = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    text = "\n".join([platform.system(), platform.machine(), *sorted(kinds or lines)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cache() -> pathlib.Path:
    folder = pathlib.Path(__file__).parent / ".xla_cache"
    if "PYTEST_XDIST_WORKER" not in os.environ and folder.is_dir():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if size > _LIMIT:
            shutil.rmtree(folder)
    return folder / _machine()


os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_cache()))
os.environ.setdefault("DYNVID_CACHE", str(_cache() / "kernels"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    )
