"""Exporters talk a lot: what matters of it comes as an exception."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

_CHATTY = (
    "torch.onnx",
    "torch.export",
    "torch._export",
    "torch._dynamo",
    "torch.fx.experimental.symbolic_shapes",
    "torch.utils._pytree",
    "torchao",
    "onnxscript",
    "onnx_ir",
    "executorch",
    "litert_torch",
    "jax",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what an exporter warns, logs and prints.

    Example:
        >>> with quiet():
        ...     print("unheard")
    """
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
