"""torch.compile as a target."""

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.targets import compiled as module
from secateur.targets.compiled import compiled


def test_no_compiler_and_a_wrong_example_are_told_before_anything_is_compiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: pytest.fail("compiles"))
    if any(shutil.which(name) for name in module.COMPILERS):
        with pytest.raises(TargetError, match="compiled: Linear does not run on the example given"):
            compiled.build(nn.Linear(3, 2), torch.ones(1, 4), 1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(TargetError, match="needs a C\\+\\+ compiler and none of g\\+\\+"):
        compiled.build(nn.Linear(3, 2), torch.ones(1, 3), 1)


def test_each_model_is_compiled_for_itself(monkeypatch):
    """A backend that counts stands in for inductor: more models of one class than torch keeps for one code object."""
    real, graphs = torch.compile, []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(torch, "compile", lambda function, **kwargs: real(function, backend=counting, **kwargs))
    made = []
    for width in range(3, 13):
        model, x = nn.Sequential(nn.Linear(width, 2), nn.ReLU()), torch.randn(2, width)
        artefact = compiled.build(model, x, 1)
        made.append((artefact, model(x).detach().numpy()))
    assert len(graphs) == 10
    for artefact, want in made:
        np.testing.assert_allclose(artefact.run()[0], want, rtol=1e-6)
        assert artefact.load_seconds > 0
        assert artefact.target == "compiled"
    assert len(graphs) == 10
