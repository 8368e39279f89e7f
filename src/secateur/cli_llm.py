"""The commands for language models: ``secateur llm prune | ...``."""

from __future__ import annotations

import typer

from secateur.cli_common import EXITS
from secateur.cli_llm_eval import evaluate

app = typer.Typer(name="llm", help="Prune language models, one block in memory at a time.", no_args_is_help=True)

app.command("eval", epilog=EXITS)(evaluate)
