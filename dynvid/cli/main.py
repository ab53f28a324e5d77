"""All commands, and what becomes of their errors: one line and an exit code."""

import contextlib
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

import dynvid
from dynvid.cli.bitstream import bitstream
from dynvid.cli.decode import decode
from dynvid.cli.encode import encode
from dynvid.cli.explain import explain
from dynvid.cli.interrupts import Interrupts
from dynvid.cli.run import run
from dynvid.cli.tune import tune
from dynvid.coding.errors import BitstreamError
from dynvid.errors import UsageError, one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      arguments: Those after the program's name; None takes the process's own.

    Returns:
      The exit code: 0, 2 where what was asked for cannot be done, 130 where it was interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments == ["--version"]:
        print(f"dynvid {dynvid.__version__}")
        return 0
    try:
        with Interrupts():
            return _chosen(arguments)()
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; nor may Python's own last flush fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, BitstreamError, OSError) as error:
        print(f"dynvid: error: {one_line(error)}", file=sys.stderr)
        return 2
    except RecursionError:
        print("dynvid: error: the network is a chain too long to be followed", file=sys.stderr)
        return 2
    except MemoryError:
        print("dynvid: error: there is not enough memory for it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dynvid: interrupted; nothing was written", file=sys.stderr)
        return 130


_COMMANDS = {
    "run": run,
    "tune": tune,
    "explain": explain,
    "encode": encode,
    "decode": decode,
    "bitstream": bitstream,
}


def _chosen(arguments: Sequence[str]) -> Callable[[], int]:
    """The command that the arguments ask for, ready to run.

    Raises:
      UsageError: They ask for none; one line says why.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {name: _deferred(command) for name, command in _COMMANDS.items()},
                prog="dynvid",
                description="Dynamic video inference: run a vision network on a video, computing "
                "only what changed.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise  # it was asked for help
        raise UsageError(_of_box(said.getvalue())) from None


def _deferred(command: Callable[..., int]) -> Callable[..., Any]:
    @functools.wraps(command)
    def chosen(*given: Any, **options: Any) -> Callable[[], int]:
        return functools.partial(command, *given, **options)

    return chosen


def _of_box(text: str) -> str:
    """What stands in the first part of a box on the terminal, below its title, in one line.

    >>> _of_box("\u250c Error \u2500\\n\u2502 -q: what?\\n\u2502 \u2500\u2500\\n\u2502 Help ...")
    '-q: what?; --help tells more'
    """
    lines: list[str] = []
    for line in text.splitlines()[1:]:
        words = re.sub(r"[\u2500-\u257f]", "", line).strip()
        if words:
            lines.append(words)
        elif lines:
            break
    return f"{' '.join(lines) or 'arguments that make no sense'}; --help tells more"
