"""``python -m secateur.cli`` is ``secateur``."""

import sys

from secateur.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
