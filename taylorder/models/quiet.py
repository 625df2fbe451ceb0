"""Keep transformers quiet, and keep torch.compile out, for the time of a call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def uncompiled(function: Function) -> Function:
    """Have torch.compile leave ``function`` alone: it reads and fills tables that a compiled graph does not see."""
    return cast("Function", torch.compiler.disable(function))  # type: ignore[no-untyped-call]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No log lines below errors, no progress bars and no Python warnings inside the block; the old state afterwards."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_verbosity, no_hub_bars = hub_logging.get_verbosity(), are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        hub_logging.set_verbosity(logging.ERROR)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            if bars:
                logging.enable_progress_bar()
            # transformers' switch moves the Hub's along with it.
            disable_progress_bars() if no_hub_bars else enable_progress_bars()
