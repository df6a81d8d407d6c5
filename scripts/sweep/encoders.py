"""Regenerate the sweep encoders: python scripts/sweep/encoders.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "encoders", *sys.argv[1:]]))
