"""`python -m dynvid` is `dynvid`."""

import sys

from dynvid.cli import main

if __name__ == "__main__":
    sys.exit(main())
