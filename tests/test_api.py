"""The laws of the public interface: documented, options keyword-only, names sorted."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys

import pytest

import dynvid

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(dynvid.__path__, "dynvid.")
    if not any(part.startswith("_") for part in module.name.split("."))
)

# Parameters with a default that may be given by position.
POSITIONAL = {
    "dynvid.cli.main.main(arguments)",  # what every entry point takes
    "dynvid.cli.run.run(sources)",  # a positional argument of the command line
    "dynvid.cli.tune.tune(source)",  # likewise
    "dynvid.results.detect(model)",  # the other half of what it is about
    "dynvid.weights.onnx_operators.Node.get(default)",  # as in a dictionary
}


def public(name: str):
    """The functions and classes that a module defines under a public name."""
    module = importlib.import_module(name)
    for symbol, value in vars(module).items():
        if symbol.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        # Jitted functions know what they wrap.
        value = inspect.unwrap(value) if callable(value) else value
        if inspect.isfunction(value) or inspect.isclass(value):
            yield symbol, value


def methods(cls: type):
    for name, value in vars(cls).items():
        function = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if inspect.isfunction(function) and not name.startswith("_"):
            yield name, function


@pytest.mark.parametrize("name", MODULES)
def test_public_symbols_are_documented(name):
    assert importlib.import_module(name).__doc__, f"{name} has no docstring"
    for symbol, value in public(name):
        assert inspect.getdoc(value), f"{name}.{symbol} has no docstring"


def entries(doc: str):
    """The entries of a docstring's sections, and what stands first in `Returns`."""
    for section, body in re.findall(
        r"^(Args|Attributes|Returns|Raises):\n((?:  .*\n|\n(?=  ))+)", doc + "\n", re.M
    ):
        lines = [line[2:] for line in body.splitlines() if re.match(r"  \S", line)]
        if section == "Returns":
            yield lines[0]
        else:
            yield from (line.partition(": ")[2] for line in lines if line[0] != ">")


@pytest.mark.parametrize("name", MODULES)
def test_entries_of_docstrings_start_with_a_capital(name):
    places = [(f"{name}.{symbol}", value) for symbol, value in public(name)]
    classes = [(place, value) for place, value in places if inspect.isclass(value)]
    places += [(f"{c}.{method}", f) for c, cls in classes for method, f in methods(cls)]
    # Symbols of one letter, such as k_key, and code in backticks start as they are.
    offenders = [
        f"{place}: {entry}"
        for place, value in places
        for entry in entries(inspect.getdoc(value) or "")
        if re.match(r"(a\b|[a-z]{2})", entry)
    ]
    assert not offenders


@pytest.mark.parametrize("name", MODULES)
def test_options_are_keyword_only(name):
    functions = [(f"{name}.{s}", f) for s, f in public(name) if inspect.isfunction(f)]
    classes = [(f"{name}.{s}", c) for s, c in public(name) if inspect.isclass(c)]
    functions += [(f"{c}.{method}", f) for c, cls in classes for method, f in methods(cls)]
    offenders = {
        f"{place}({parameter.name})"
        for place, function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is not parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY
    } - POSITIONAL
    assert not offenders


def test_the_public_names_are_sorted_and_there():
    assert dynvid.__all__ == sorted(dynvid.__all__)
    assert all(hasattr(dynvid, name) for name in dynvid.__all__)
    assert dynvid.__doc__


@pytest.mark.parametrize(
    "name", [m for m in MODULES if hasattr(importlib.import_module(m), "__all__")]
)
def test_modules_list_what_they_have(name):
    module = importlib.import_module(name)
    assert all(hasattr(module, symbol) for symbol in module.__all__)


def test_everything_is_reachable_after_importing_the_package():
    script = (
        "import dynvid, sys; assert 'matplotlib' not in sys.modules; dynvid.systems.dyncnn_groups;"
        "dynvid.ops.masks.stencil; dynvid.models.vgg.VGG16; dynvid.video.reader.VideoSource;"
        "dynvid.State; dynvid.Split; assert 'weights' in dir(dynvid)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dynvid.nothing
