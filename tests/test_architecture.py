"""The house: who imports whom, and who touches files. Read from the sources, nothing is run."""

import ast
import graphlib
import pathlib
from collections.abc import Iterator

import pytest

import dynvid

ROOT = pathlib.Path(dynvid.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

# What each part of `dynvid` may import. Parts are sub-packages and single modules; `models.zoo`,
# what --model takes, stands above the weights and the tasks that it joins; `systems.registry`, what
# --system takes, above the networks that DVSNet comes with.
_PURE = {"types", "ops"}
_CORE = {*_PURE, "graph", "kernels", "incremental"}
_READERS = {*_PURE, "models", "files"}
MAY_IMPORT = {
    "errors": set(),
    "_lazy": set(),
    "types": set(),
    "files": set(),
    "ops": {"types"},
    "graph": _PURE,
    "kernels": {*_PURE, "files"},  # which keeps what was compiled
    "incremental": {*_PURE, "graph", "kernels"},
    "coding": _PURE,
    "systems": {*_CORE, "coding"},
    "systems.registry": {*_CORE, "systems", "models"},
    "training": {*_CORE, "models", "data", "files"},
    "models": _PURE,
    "metrics": {*_PURE, "models"},
    "measures": _PURE,
    "data": _READERS,
    "video": _READERS,
    "weights": _READERS,
    "tasks": {*_PURE, "models", "metrics", "video"},
    "models.zoo": {*_READERS, "weights", "tasks", "graph"},
    "results": {*_CORE, "models.zoo", "tasks", "video", "runner"},
    "runner": {*_CORE, "systems", "models", "metrics", "measures", "tasks", "video"},
}
OWN = ("models.zoo", "systems.registry")  # modules that are parts by themselves
BOTTOM = {"errors", "_lazy"}  # for all to import
# What may import everything: the command line, and the package itself.
TOP = {"cli", "__main__", "__init__"}

MAY_TOUCH_FILES = {"video", "weights", "models.zoo", "data", "training", "cli", "files"}
# Weights that come with the package lie in it, beside the network that they are of.
EXEMPT = {
    "models/actions.py",
    "models/driving.py",
    "models/flow_detection.py",
    "models/synthetic_detector.py",
}

METHODS = {
    *("open", "read_bytes", "read_text", "write_bytes", "write_text"),
    *("hardlink_to", "mkdir", "rename", "rmdir", "symlink_to", "touch", "unlink"),
    *("fromfile", "genfromtxt", "imread", "imwrite", "loadtxt", "memmap", "savez", "savetxt"),
}
MODULES = {"shutil", "tempfile", "zipfile", "tarfile"}


def part_of(module: str) -> str:
    """The part that a module of dynvid belongs to: `ops` for `ops.masks`."""
    own = next((part for part in OWN if module.startswith(part)), None)
    return own or module.split(".")[0]


def name_of(path: pathlib.Path) -> str:
    """The module in a file, without `dynvid.`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(tree: ast.AST, name: str) -> Iterator[str]:
    """The modules of dynvid that a module imports anywhere in it, without `dynvid.`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["dynvid", *name.split(".")][: -node.level]
                base = ".".join([*package, *([base] if base else [])])
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in found:
            top, _, rest = module.partition(".")
            if top == "dynvid":
                first = rest.split(".")[0]
                # A name that the package itself offers stands for all of it.
                there = (ROOT / first).is_dir() or (ROOT / f"{first}.py").is_file()
                yield rest if rest and there else "__init__"


def unlawful(name: str, tree: ast.AST) -> list[str]:
    """What a module imports beyond what its part may."""
    part = part_of(name)
    if part in TOP:
        return []
    allowed = {part, *BOTTOM, *MAY_IMPORT[part]}
    return [m for m in imported(tree, name) if part_of(m) not in allowed]


def touches(tree: ast.AST) -> list[str]:
    """Where a module reads or writes files, as far as names tell."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id == "open":
                found.append(f"line {node.lineno}: open")
            elif isinstance(called, ast.Attribute) and called.attr in METHODS:
                found.append(f"line {node.lineno}: .{called.attr}")
            elif isinstance(called, ast.Attribute) and (
                isinstance(called.value, ast.Name)
                and (called.value.id, called.attr) in {("np", "load"), ("np", "save")}
            ):
                found.append(f"line {node.lineno}: np.{called.attr}")
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found += [f"line {node.lineno}: {name}" for name in names if name in MODULES]
    return found


@pytest.fixture(scope="module")
def trees():
    return {path: ast.parse(path.read_text()) for path in SOURCES}


def test_every_part_has_its_place(trees):
    parts = {part_of(name_of(path)) for path in trees}
    assert parts - MAY_IMPORT.keys() - TOP - BOTTOM == set(), "say above what they may import"


def test_imports_go_one_way(trees):
    found = {
        name: bad for path, tree in trees.items() if (bad := unlawful(name := name_of(path), tree))
    }
    assert not found


def test_what_is_allowed_has_no_cycle():
    order = list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())
    for lower, upper in (
        *(("types", "ops"), ("ops", "graph"), ("ops", "kernels"), ("graph", "incremental")),
        *(("kernels", "incremental"), ("incremental", "systems"), ("systems", "runner")),
        *(("weights", "models.zoo"), ("tasks", "models.zoo")),
    ):
        assert order.index(lower) < order.index(upper)


def test_only_some_parts_touch_files(trees):
    found = {
        name: lines
        for path, tree in trees.items()
        if part_of(name := name_of(path)) not in MAY_TOUCH_FILES
        and str(path.relative_to(ROOT)) not in EXEMPT
        and (lines := touches(tree))
    }
    assert not found


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ops.masks", "from dynvid.incremental.plan import Plan"),
        ("ops.masks", "from dynvid import incremental"),
        ("ops.masks", "from dynvid import Work"),  # what all of dynvid offers needs all of it
        ("ops.masks", "import dynvid.models.vgg as vgg"),
        ("ops.masks", "def f():\n    from ..incremental import plan"),
        ("incremental.plan", "from dynvid.systems.dyncnn import dyncnn"),
        ("models.vgg", "from dynvid.models.zoo import open_model"),
        ("models.vgg", "from dynvid.models import zoo"),
        ("models.modules", "from dynvid.weights.caffe import load_ssd512"),
        ("systems.dyncnn.system", "from dynvid.runner import run_video"),
        ("systems.dvsnet.system", "from dynvid.models.driving import load_driving_networks"),
        ("systems.dvsnet.system", "from dynvid.systems.registry import SYSTEMS"),
        ("runner", "from dynvid.cli import main"),
        ("types", "from dynvid.ops import masks"),
    ],
)
def test_an_import_against_the_rules_is_seen(name, source):
    assert unlawful(name, ast.parse(source))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("ops.masks", "import jax\nfrom dynvid.ops import cells\nfrom dynvid.types import Frames"),
        ("ops.masks", "from . import cells\nfrom ..types import Frames"),
        ("models.vgg", "from dynvid.models.resnet import ResNet50"),
        ("cli.run", "from dynvid.systems import dyncnn\nfrom dynvid import tune"),
        ("types", '"""\n>>> import dynvid\n"""'),
    ],
)
def test_an_import_within_the_rules_is_none(name, source):
    assert not unlawful(name, ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "open('x')",
        "with path.open('rb') as file: pass",
        "pathlib.Path('x').write_text('')",
        "folder.mkdir(parents=True)",
        "np.load(path)",
        "import tempfile",
        "def f():\n    from shutil import rmtree",
    ],
)
def test_a_touched_file_is_seen(source):
    assert touches(ast.parse(source))
    assert not touches(ast.parse("x.replace('a', 'b'); jnp.load; state.save"))
