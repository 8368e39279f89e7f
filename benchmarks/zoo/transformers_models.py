"""Models of transformers: small configurations of its architectures, with random weights."""

from __future__ import annotations

from case import Case
from transformers_audio import AUDIOS
from transformers_text import TEXTS
from transformers_vision import VISIONS

CASES: dict[str, Case] = TEXTS | VISIONS | AUDIOS
