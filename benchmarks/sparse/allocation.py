"""One shot of magnitude pruning, differently spread over the layers: LAMP, one ranking, the same everywhere, ERK.

The network is the five-layer CNN of the other benchmarks at width 32 (280,000 weights), trained for two epochs on
12,000 images of Fashion-MNIST; nothing is trained afterwards and batch statistics stay as they are. The test is fair at
90 % because there is capacity to spare there: at width 16 the same net loses all of its accuracy whatever is chosen,
and in plain multilayer perceptrons the layers are so alike that it hardly matters what is chosen.
``gap`` is in points of test accuracy. 80 % stands beside it. Accuracy is of the first 5,000 test images.
"""

from __future__ import annotations

from _nets import Row, each_seed, kept, part

import _fashion
import _models
from secateur.choose.density import erk, even, lamp, ranked
from secateur.run.sparsify import sparsify

CASES = {"lamp": lamp, "global": ranked, "uniform": even, "erk": erk}
SPARSITIES = (0.8, 0.9)


def rows(quick: bool) -> list[Row]:
    """Test accuracy of each, and the gaps."""
    given = _fashion.data()
    images = part(given.train, 512 if quick else 12_000)
    test = part(given.test, 5_000)
    out: list[Row] = []
    for seed in each_seed(3, quick):
        net = kept(
            "allocation-quick" if quick else "allocation",
            seed,
            lambda: _models.cnn(8 if quick else 32)[0],
            lambda model, seed=seed: _fashion.train_(model, images, seed, epochs=2),
        )
        out.append(("dense", "accuracy", _fashion.accuracy(net, test), "%", seed))
        for s in SPARSITIES:
            found = {}
            for name, density in CASES.items():
                model = sparsify(net, sparsity=s, density=density).model
                found[name] = _fashion.accuracy(model, test)
                out.append((f"{name}_{100 * s:.0f}", "accuracy", found[name], "%", seed))
            out.append((f"lamp_over_global_{100 * s:.0f}", "gap", found["lamp"] - found["global"], "%", seed))
            out.append((f"global_over_uniform_{100 * s:.0f}", "gap", found["global"] - found["uniform"], "%", seed))
    return out
