"""Every error that secateur raises on purpose.

SecateurError
├── TraceError     the model could not be recorded on the example
├── CoupleError    the recorded graph leaves nothing to cut, or a cut cannot be carried out
├── BudgetError    a budget cannot be met; ``closest`` holds the nearest reachable value
├── PlanError      a plan does not fit this model
├── DataError      calibration data is empty, malformed or not finite
├── FormatError    a file is corrupt, half written, or not one of ours
├── TargetError    a runtime is missing, refused the model, or disagrees with torch
└── ArgumentError  an argument, a run file or a name in one is not valid
"""


class SecateurError(Exception):
    """Base of all errors: names the thing, what was given, what was expected and what to do."""


class TraceError(SecateurError):
    """The model could not be recorded on the example."""


class CoupleError(SecateurError):
    """The recorded graph leaves nothing to cut, or a cut cannot be carried out."""


class BudgetError(SecateurError):
    """A budget cannot be met.

    Args:
        message: what was asked, what was found, what to do.
        closest: nearest value of the cost that can be reached, in the cost's unit, or None; of several budgets the
            largest of cost over limit.
        several: whether it is of several budgets.
    """

    def __init__(self, message: str, closest: float | None = None, several: bool = False) -> None:
        super().__init__(message)
        self.closest = closest
        self.several = several


class PlanError(SecateurError):
    """A plan does not fit this model."""


class DataError(SecateurError):
    """Calibration data is empty, malformed or not finite."""


class FormatError(SecateurError):
    """A file is corrupt, half written, or not one of ours."""


class TargetError(SecateurError):
    """A runtime is missing, refused the model, or disagrees with torch."""


class ArgumentError(SecateurError):
    """An argument, a run file or a name in one is not valid."""


def brief(error: BaseException) -> str:
    r"""The class and the first line of an error.

    Example:
        >>> brief(ValueError("no\nmore"))
        'ValueError: no'
    """
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
