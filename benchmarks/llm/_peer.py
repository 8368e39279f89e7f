"""llm-compressor (github.com/vllm-project/llm-compressor), used as its README says, on tokens that are given.

Run by the interpreter of its own environment (``make .venv-peer-llm/.ready``), which knows nothing of secateur:
``python _peer.py MODEL TOKENS METHOD PATTERN OUT``, where MODEL is a folder, TOKENS a safetensors file whose ``tokens``
are calibration windows of shape (windows, length), METHOD ``sparsegpt`` or ``wanda``, PATTERN ``50%`` or ``2:4``, and
OUT the folder that it saves. The linear layers of the decoder blocks are pruned; all else is its default.
"""

from __future__ import annotations

import sys

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

MODIFIERS = {"sparsegpt": SparseGPTModifier, "wanda": WandaPruningModifier}


def main(folder: str, tokens: str, method: str, pattern: str, out: str) -> None:
    """Prune and save."""
    windows = load_file(tokens)["tokens"]
    if pattern.endswith("%"):
        sparsity, structure = float(pattern[:-1]) / 100, "0:0"
    else:
        kept, group = map(int, pattern.split(":"))
        # It prunes the first number of each group, where the field keeps it; the two agree for 2:4 and 4:8 alone.
        sparsity, structure = 1 - kept / group, f"{group - kept}:{group}"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    rows = {"input_ids": windows.tolist(), "attention_mask": torch.ones_like(windows).tolist()}
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict(rows),
        recipe=MODIFIERS[method](
            sparsity=sparsity, mask_structure=structure, targets=["Linear"], ignore=["re:.*lm_head"]
        ),
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
        pipeline="sequential",
        output_dir=out,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
