"""What a server spends on a pixel of an image on one core: decoding its file, hashing its values, handing them over.

python scripts/host_pixels.py [IMAGE]

Nanoseconds of CPU a pixel (least, median, most of seven) for a page of 1920 x 1080 with three floats a pixel, as
servers hold pixel values. `pixel` of measured/engines.yaml comes from it.
"""

import hashlib
import io
import pickle
import statistics
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe

import numpy as np
from PIL import Image

SIZE = (1920, 1080)


def measured(work: Callable[[], object]) -> str:
    """Nanoseconds a pixel: least, median and most."""
    found = []
    for _ in range(7):
        begun = time.process_time()
        work()
        found.append((time.process_time() - begun) / (SIZE[0] * SIZE[1]) * 1e9)
    return f"{min(found):6.1f} {statistics.median(found):6.1f} {max(found):6.1f}"


def main() -> None:
    """Print a line for each kind of work."""
    page = Image.open(sys.argv[1] if len(sys.argv) > 1 else "examples/page.png").convert("RGB").resize(SIZE)
    for name in ("JPEG", "PNG"):
        file = io.BytesIO()
        page.save(file, name)
        print(f"{name:8}", measured(lambda held=file.getvalue(): Image.open(io.BytesIO(held)).convert("RGB")))
    values = np.random.default_rng(0).random(3 * SIZE[0] * SIZE[1], np.float32)
    packed = pickle.dumps(values, protocol=5)
    print("SHA-256 ", measured(lambda: hashlib.sha256(values.tobytes()).digest()))
    print("pickle  ", measured(lambda: pickle.loads(pickle.dumps(values, protocol=5))))
    here, there = Pipe()

    def sent() -> None:
        taker = threading.Thread(target=there.recv_bytes)
        taker.start()
        here.send_bytes(packed)
        taker.join()

    print("pipe    ", measured(sent))


if __name__ == "__main__":
    main()
