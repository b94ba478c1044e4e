"""`python -m scraper`."""

import signal
import sys

from scraper.cli import main

if __name__ == "__main__":
    # asked to end by SIGTERM, as by Ctrl-C: the browser is closed and the figures are printed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
