"""`python -m carspotter VERB`."""

import sys

from carspotter.cli import main

if __name__ == "__main__":
    sys.exit(main())
