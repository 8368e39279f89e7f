"""A stream with nothing to do gives the model back; what blocks see is what they see in the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm.tiny_models import CONFIGS, load, make, tokens, write
from secateur.llm.live import Live
from secateur.llm.source import Source
from secateur.llm.stream import stream


@pytest.mark.parametrize("kind", CONFIGS)
def test_nothing_to_do_gives_the_same_model_and_the_hidden_states_of_the_whole(kind: str, tmp_path: Path) -> None:
    dense = make(kind)
    source = Source.open(write(dense, tmp_path / "dense"))
    ids = tokens()
    with torch.no_grad():
        states = dense(input_ids=ids, output_hidden_states=True).hidden_states
    seen = {}

    def look(live: Live) -> dict[str, int]:
        seen[live.index] = torch.cat(list(live.inputs()))
        return {"batches": len(live)}

    done = stream(source, ids, look, tmp_path / "out", batch=3)
    assert [row["batches"] for row in done.rows] == [3, 3, 3]
    for i in range(3):
        torch.testing.assert_close(seen[i], states[i], rtol=1e-5, atol=1e-5)
    again = load(tmp_path / "out").state_dict()
    assert again.keys() == dense.state_dict().keys()
    for name, tensor in dense.state_dict().items():
        assert torch.equal(again[name], tensor), name
