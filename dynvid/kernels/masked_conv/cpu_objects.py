"""Native code: compiled once, kept on disk for this processor, loaded into this process."""

import hashlib
import os
import pathlib
import platform
from collections.abc import Callable

import llvmlite
import llvmlite.binding as llvm

from dynvid.files import cached_bytes
from dynvid.kernels.masked_conv.cpu_code import AVX2, AVX512, NEON, Host

llvm.initialize_native_target()
llvm.initialize_native_asmprinter()

_ENGINES: list[llvm.ExecutionEngine] = []  # what is loaded stays


def folder() -> pathlib.Path:
    """Where compiled code is kept: `DYNVID_CACHE`, else the user's own folder for such things."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("DYNVID_CACHE") or pathlib.Path(base, "dynvid"))


def host() -> Host | None:
    """The register tile of this processor; None of one that nothing was written for."""
    features = llvm.get_host_cpu_features()
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        if all(features.get(name) for name in ("avx512f", "avx512vl", "avx512dq")):
            return AVX512
        return AVX2 if features.get("avx2") and features.get("fma") else None
    return NEON if machine in ("aarch64", "arm64") else None


def target_machine() -> llvm.TargetMachine:
    """What code is generated for: this very processor."""
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        codemodel="jitdefault",
        jit=True,
    )


def compile_module(module: llvm.ModuleRef) -> bytes:
    """Optimises a module and makes an object file of it."""
    module.verify()
    machine = target_machine()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(3))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def load(name: str, source: str, build: Callable[[], llvm.ModuleRef]) -> llvm.ExecutionEngine:
    """Loads compiled code, from disk where it is there.

    Args:
      name: What the file is called.
      source: All that the code follows from, besides the processor and the compiler.
      build: Makes the module.

    Returns:
      The engine, to ask for addresses; what it loaded stays for as long as the process.
    """
    machine = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    versions = f"{llvmlite.__version__} {platform.system()}"
    key = hashlib.sha256("\n".join((source, machine, versions)).encode()).hexdigest()[:24]
    path = folder() / f"{name}-{key}.o"
    code = cached_bytes(path, lambda: compile_module(build()))
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target_machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _ENGINES.append(engine)
    return engine
