"""Seconds a kernel: laws from physics with few constants, fitted to measured kernels; how far they are off is known.

`seconds_of` predicts kernels on a device. The laws: `product.py`, `mixture.py`, `attention.py`, `decode.py`,
`stream.py`, `links.py`. Where their constants come from: `train.py`, and what they are worth: `score.py`.
"""

from modelmeter.seconds.predict import Estimate as Estimate
from modelmeter.seconds.predict import seconds_of as seconds_of
from modelmeter.seconds.predict import seconds_of_work as seconds_of_work
