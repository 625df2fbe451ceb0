"""WeightWatcher behind a wall: imported late, called for one matrix at a time, heard by nobody.

Importing WeightWatcher configures the root logger, silences every warning of the process and logs to stderr; fitting a
small matrix prints to stdout. All of that is undone or swallowed here. The context managers below change state of the
whole process (streams, warning filters, BLAS threads), so they are entered only while ``_LOCK`` is held: two of them
overlapping in two threads would restore each other's changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

_LOCK = threading.Lock()


class _Weights(dict[str, npt.NDArray[np.float32]]):
    """A state dict with a short repr: WeightWatcher formats its model for three log lines, shown or not."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self)})"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute WeightWatcher's logger and all warnings; both are as before on leaving, whatever happened inside."""
    # `disabled` and not the level: WeightWatcher sets the level of its logger itself while it is imported.
    logger = logging.getLogger("weightwatcher")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


@contextlib.contextmanager
def _untouched_logging() -> Iterator[None]:
    """Keep the root logger's handlers and level, and the level of matplotlib's logger, as they are."""
    root, matplotlib = logging.getLogger(), logging.getLogger("matplotlib")
    handlers, levels = root.handlers[:], (root.level, matplotlib.level)
    root.addHandler(logging.NullHandler())  # logging.basicConfig does nothing where the root logger has a handler
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        matplotlib.setLevel(levels[1])


@functools.cache
def _load() -> tuple[Any, ThreadpoolController]:
    """Import WeightWatcher (seconds, once) and return its main module and a handle on the BLAS libraries it calls."""
    sink = io.StringIO()
    with _quiet(), _untouched_logging(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        module = importlib.import_module("weightwatcher.weightwatcher")
    return module, ThreadpoolController()  # made after the import: it knows only the libraries loaded by then


@contextlib.contextmanager
def _recorded_fits(module: Any) -> Iterator[list[Any]]:
    """Collect the fit objects made inside the block, by this thread, through WeightWatcher's global ``pl_fit``.

    ``analyze`` drops them, and they alone hold what every other tail start would have given.
    """
    fits: list[Any] = []
    original, owner = module.pl_fit, threading.get_ident()

    def record(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != owner:
            return original(*args, **kwargs)
        # Only the fit prints, and it takes milliseconds: what other threads print meanwhile is next to nothing.
        with contextlib.redirect_stdout(io.StringIO()):
            fits.append(original(*args, **kwargs))
        return fits[-1]

    module.pl_fit = record
    try:
        yield fits
    finally:
        module.pl_fit = original


def analyze_matrix(weight: npt.NDArray[np.float32]) -> tuple[dict[str, Any], Any] | None:
    """Run WeightWatcher's own ``analyze`` on one matrix, on the CPU and on one BLAS thread.

    ``weight`` is float32 ``[rows, columns]``, finite and not all zero. Returns the columns of WeightWatcher's details
    for it and the ``WWFit`` behind them (None where the fit raised), or None where WeightWatcher skipped the matrix or
    LAPACK found no singular values.

    An array in a dict and ``svd_method="accurate"`` keep the result the same with and without a GPU: on CUDA
    hosts WeightWatcher rounds *tensors* to float16 and takes the "fast" SVD in float32, on others both methods are one.
    The limits on size are lifted (0 means none), otherwise large matrices would be left out without a word.
    """
    with _LOCK:
        module, blas = _load()
        with blas.limit(limits=1, user_api="blas"), _quiet(), _recorded_fits(module) as fits:
            watcher = module.WeightWatcher(model=_Weights({"matrix.weight": weight}))
            try:
                details = watcher.analyze(svd_method="accurate", max_evals=0, max_N=max(50_000, *weight.shape))
            except np.linalg.LinAlgError:
                return None
    if len(details) == 0:
        return None
    return details.iloc[0].to_dict(), fits[-1] if fits else None
