"""The only code that knows that an int, an array and an expression differ."""

from modelmeter.sizes.expressions import Expr as Expr
from modelmeter.sizes.expressions import added as added
from modelmeter.sizes.expressions import symbol as symbol
from modelmeter.sizes.functions import *  # noqa: F403
from modelmeter.sizes.source import Evaluator as Evaluator
from modelmeter.sizes.source import evaluated as evaluated
from modelmeter.sizes.sums import largest as largest
from modelmeter.sizes.sums import rounded_down as rounded_down
from modelmeter.sizes.sums import substituted as substituted
from modelmeter.sizes.sums import summed as summed
