"""Regenerate the sweep devices: python scripts/sweep/devices.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "devices", "image=examples/page.png", *sys.argv[1:]]))
