"""python -m modelmeter.sweep NAME key=value ..."""

import sys

from modelmeter.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]], prog="python -m modelmeter.sweep"))
