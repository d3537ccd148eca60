"""`python -m mimo_engine`: the command line where its script is not installed."""

import sys

from mimo_engine.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
