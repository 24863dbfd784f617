"""``python -m containerkit``: the command line."""

import sys

from containerkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
