"""Regenerate the sweep profiles: python scripts/sweep/profiles.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "profiles", *sys.argv[1:]]))
