"""``python -m containerkit.oci``."""

import sys

from containerkit.oci.main import main

if __name__ == "__main__":
    sys.exit(main())
