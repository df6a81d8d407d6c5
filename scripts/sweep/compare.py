"""Regenerate the sweep compare: python scripts/sweep/compare.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "compare", *sys.argv[1:]]))
