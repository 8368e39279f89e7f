"""What the tests and the examples in docstrings and pages share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same draws every time: a failure comes again, and none comes by chance."""
    torch.manual_seed(0)
