"""One shot of magnitude pruning, differently spread over the layers: LAMP, one ranking, the same everywhere, ERK.

The networks are those of ``_fashion.dense``: five convolutions with batch norm, 70,000 weights, eight epochs of
Fashion-MNIST. 90 % of their weights go at once and no weight is trained afterwards. Batch statistics are taken anew on
2,048 training images (``accuracy``): without that all of these small networks are at chance at 90 %, whatever is
chosen, and nothing is compared. As they are, without new statistics, they are compared at 70 % (``accuracy_as_is``).
``gap`` is in points of test accuracy.
"""

from __future__ import annotations

from _nets import Row, each_seed

import _fashion
import secateur as sc
from _fashion import Data
from secateur.choose.density import erk, even, lamp, ranked
from secateur.run.sparsify import sparsify

CASES = {"lamp": lamp, "global": ranked, "uniform": even, "erk": erk}


def rows(quick: bool) -> list[Row]:
    """Test accuracy of each, and the gaps."""
    given = _fashion.data()
    return [row for seed in each_seed(3, quick) for row in one(given, seed)]


def one(given: Data, seed: int) -> list[Row]:
    """The rows of a seed."""
    net, _ = _fashion.dense(seed, given)
    calibration = list(given.train.x[:2_048].split(256))
    out: list[Row] = [("dense", "accuracy", _fashion.accuracy(net, given.test), "%", seed)]
    for sparsity, metric in ((0.9, "accuracy"), (0.7, "accuracy_as_is")):
        found = {}
        for name, density in CASES.items():
            model = sparsify(net, sparsity=sparsity, density=density).model
            if metric == "accuracy":
                sc.recalibrate_bn(calibration).run(model, net, None)
            found[name] = _fashion.accuracy(model, given.test)
            out.append((f"{name}_{100 * sparsity:.0f}", metric, found[name], "%", seed))
        percent = f"{100 * sparsity:.0f}"
        out.append((f"lamp_over_global_{percent}", "gap", found["lamp"] - found["global"], "%", seed))
        out.append((f"global_over_uniform_{percent}", "gap", found["global"] - found["uniform"], "%", seed))
    return out
