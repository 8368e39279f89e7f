"""What cuts cost the model's outputs, measured group by group: to compare scores, and to say how much goes where."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from secateur.choose.trial import Distance, Trial, all_of, examples_of, lowest
from secateur.errors import ArgumentError
from secateur.progress import progress
from secateur.types import Batches, Scores


def by_effect(
    model: nn.Module,
    batches: Batches,
    distance: Distance | None = None,
    fraction: float = 0.5,
    damping: float = 1e-2,
) -> Callable[[Scores], Scores]:
    """Scale each group's scores so that what is lost at half of the group is what the outputs were measured to lose.

    For every group, the lowest-scored half is cut, the weights it fed make up for it by least squares (if the scores
    come from ``sc.obs``, whose statistics that takes), and the model is run beside the dense one. Errors in one layer
    are worth what they cost at the output: the measured sensitivity that SPDY and OBC allocate by (arXiv:2208.11580),
    one point a group.

    Args:
        model: the dense model.
        batches: a few examples, best others than the scores were calibrated on; labels are ignored.
        distance: what losing means; by default the squared error of all outputs over their energy.
        fraction: how much of each group is cut to see.
        damping: of the least squares, relative to the mean of the inputs' second moment.

    Raises:
        DataError: no batches, or outputs that are not finite.

    Time: one forward pass over the batches a group, and one solve. Memory: one more model.

    Example:
        >>> import torch, secateur as sc
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(16, 4)]
        >>> scores = sc.score(net, sc.couple(sc.trace(net, data[0])), sc.magnitude)
        >>> by_effect(net, data)(scores).normalization
        'effect'
    """
    data = all_of(batches)  # other scores look at them again
    examples_of(model, data)

    def normalize(scores: Scores) -> Scores:
        trial, values = Trial(model, scores, data, distance, damping), {}
        for g in scores.groups:
            keep = lowest(scores, g.name, fraction)
            lost = float(scores.values[g.name][~keep].sum())
            values[g.name] = scores.values[g.name] * (trial({g.name: keep}) / lost if lost > 0 else 1.0)
        return Scores(scores.groups, values, scores.criterion, "effect", scores.stats)

    return normalize


def error_table(
    model: nn.Module,
    scores: Scores,
    batches: Batches,
    fractions: Sequence[float] = (0.25, 0.5, 0.75),
    distance: Distance | None = None,
    damping: float = 1e-2,
) -> dict[str, dict[int, float]]:
    """What the outputs lose with parts of one group cut and all others whole: what `dp` allocates by.

    ``error[g][n] = mean distance(cut model's output, dense model's output)``, the lowest-scored units of the group
    gone and the weights it fed refitted where the scores come from ``sc.obs``, as `by_effect` measures one point.

    Args:
        model: the dense model. scores: rank the units.
        batches: a few examples, best others than the scores were calibrated on; labels are ignored.
        fractions: of each group's units that are cut, in (0, 1); each is measured.
        distance: by default the squared error of all outputs over their energy.
        damping: of the least squares, relative to the mean of the inputs' second moment.

    Returns:
        group -> units kept -> error; the whole group has 0.

    Raises:
        ArgumentError: a fraction is not in (0, 1). DataError: no batches, or outputs that are not finite.

    Time: one forward pass over the batches a group and count.

    Example:
        >>> import torch, secateur as sc
        >>> net, data = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), [torch.randn(16, 4)]
        >>> scores = sc.score(net, sc.couple(sc.trace(net, data[0])), sc.magnitude)
        >>> list(error_table(net, scores, data)["0:neuron"])
        [8, 6, 4, 2]
    """
    check_fractions(fractions)
    return table_of(Trial(model, scores, batches, distance, damping), fractions)


def table_of(trial: Trial, fractions: Sequence[float]) -> dict[str, dict[int, float]]:
    """`error_table` of a trial: group -> units kept -> error."""
    groups, table = list(trial.scores.groups), dict[str, dict[int, float]]()
    with progress("errors of groups", len(groups)) as tell:
        for number, g in enumerate(groups):
            tell(number, g.name)
            table[g.name] = {g.units: 0.0}
            for fraction in sorted(fractions):
                keep = lowest(trial.scores, g.name, fraction)
                if (left := int(keep.sum())) not in table[g.name]:  # of few units several fractions cut as many
                    table[g.name][left] = trial({g.name: keep})
    return table


def check_fractions(fractions: Sequence[float]) -> None:
    """Refuse parts of a group that are none, or all of it."""
    if wrong := [f for f in fractions if not 0 < f < 1]:
        raise ArgumentError(f"fractions of a group that are cut are in (0, 1), got {wrong[0]}")
