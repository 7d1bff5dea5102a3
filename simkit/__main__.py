"""``python -m simkit``: the same as the command ``simkit``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
