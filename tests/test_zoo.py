"""Forty models of the zoo, as users write them: proved at two cuts, and loaded again in another process."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks" / "zoo"))

import page
from case import cases
from judge import judge

ZOO = Path(page.__file__).parent
QUICK = """
    se_resnet frozen_resnet shufflenet_v1 densenet res2net sknet lenet_literal_view yolov8 yolox
    attention_unet_deep_supervision ddpm_unet vqvae dit espcn wavenet tcn_weight_norm tcn_old_weight_norm
    spectral_discriminator standardised_convs conv_tasnet lstm_3 lstm_bidirectional_proj gru_packed min_gru
    voice_encoder mha_bias_kv mha_cross_kdim_vdim transformer_translation vit vit_einops nanogpt llama_gqa
    multi_query_complex_rotary relative_bias_attention mamba tied_autoencoder moe_stacked_einsum linear_flip
    linear_index_buffer bilinear swiglu channel_permutation no_grad_body forward_hooks
""".split()
LOAD = """
import json, sys
from pathlib import Path
from case import cases
from judge import reloads
folder = Path(sys.argv[1])
print(json.dumps({name: reloads(cases("own")[name], folder / name) for name in sys.argv[2:]}))
"""
FOLDER = tempfile.TemporaryDirectory(prefix="secateur-zoo-")


@functools.cache
def judged(name: str) -> dict[str, Any]:
    return judge(cases("own")[name], Path(FOLDER.name) / name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_a_model_of_the_zoo_is_proved(name: str) -> None:
    row = judged(name)
    assert (row["status"], row["reason"]) == ("ok", "")
    assert row["prunable_share"] > 0.35
    assert row["kept_share"] < 1


@pytest.mark.filterwarnings("ignore")
def test_all_load_again_in_another_process() -> None:
    for name in QUICK:
        judged(name)
    command = [sys.executable, "-W", "ignore", "-c", LOAD, FOLDER.name, *QUICK]
    done = subprocess.run(command, cwd=ZOO, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in QUICK if not found[name]] == []


def test_the_readme_counts_as_the_rows_do() -> None:
    words = " ".join((page.ROOT / "README.md").read_text(encoding="utf-8").split())
    said = re.findall(r"of the (\d+) models of \[the zoo\]\(docs/zoo\.md\), (\d+) are cut, proved", words)
    rows = page.rows()
    assert said == [(str(len(rows)), str(sum(map(page.proved, rows))))]


def test_the_page_says_what_the_rows_hold() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.text(page.rows())
