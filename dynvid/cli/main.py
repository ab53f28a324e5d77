"""All commands, and what becomes of their errors: one line and an exit code."""

import os
import sys
from collections.abc import Sequence

import tyro

from dynvid.cli.bitstream import bitstream
from dynvid.cli.decode import decode
from dynvid.cli.encode import encode
from dynvid.cli.explain import explain
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
    try:
        return tyro.extras.subcommand_cli_from_dict(
            {
                "run": run,
                "tune": tune,
                "explain": explain,
                "encode": encode,
                "decode": decode,
                "bitstream": bitstream,
            },
            prog="dynvid",
            description="Dynamic video inference: run a vision network on a video, computing only "
            "what changed.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except BrokenPipeError:
        # The reader of a pipe (head, less) has seen enough; nor may Python's own last flush fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, BitstreamError, OSError) as error:
        print(f"dynvid: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dynvid: interrupted; nothing was written", file=sys.stderr)
        return 130
