"""Regenerate the sweep vision_crops: python scripts/sweep/vision_crops.py [key=value ...]."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "vision_crops", "image=examples/page.png", *sys.argv[1:]]))
