"""``handle = attach(model, config)`` makes a model run with a config, and ``handle.close()`` leaves it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Self
from weakref import WeakValueDictionary

from taylorder.adapt.attention import Counts, ModuleRun
from taylorder.adapt.cache import TaylorCache
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.hooks import installed, unguarded_error
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.adapt.verification import verify
from taylorder.errors import TaylorderError, UsageError
from taylorder.kernels import TritonUnavailableError
from taylorder.kernels.dispatch import choose_backend
from taylorder.models.attention import ATTENTION_NAME as RECORDING
from taylorder.models.attention import Observer, selections
from taylorder.models.inputs import GivenInputs, Inputs
from taylorder.models.running import device_of


class Handle:
    """A model that runs with a config until ``close``; :func:`attach` makes it.

    A handle that nobody keeps stays attached as long as its model lives. ``with handle:`` closes it at the end.

    Attributes:
        prepared: what was made of the config for the model; :func:`attach` takes it in place of the config.
        model: what runs with the config.
        config: what it runs with.
        digest: of what is executed, as in :attr:`TaylorCache.digest <taylorder.adapt.cache.TaylorCache>`.
        counts: of guarded rows, filled while the model runs.
        guard: whether vanishing and negative denominators are guarded.

    """

    def __init__(self, prepared: PreparedConfig, *, guard: bool, backend: str | None, observe: Observer | None) -> None:
        """Install what :func:`attach` has checked."""
        self.prepared, self.guard, self.counts = prepared, guard, Counts()
        self.model, self.config, self.digest = prepared.model, prepared.config, prepared.digest
        self._runs = {
            module: ModuleRun(plan, self.counts, guard, backend, observe) for module, plan in prepared.plans.items()
        }
        self._block = ExitStack()
        self._install()
        _ATTACHED[id(self)] = self

    @property
    def closed(self) -> bool:
        """Whether the model has been left."""
        return id(self) not in _ATTACHED

    def new_cache(self) -> TaylorCache:
        """Return an empty cache for this model and config; nothing is checked or planned again.

        Raises:
            UsageError: ``guard=False``, which takes all keys.
            UnsupportedModelError: a truncated layer's cache is of a kind that no state can replace.

        """
        if not self.guard:
            raise unguarded_error()
        return TaylorCache(self.model, self.prepared)

    def close(self) -> None:
        """Leave the model as it was, or, where another handle is attached, as that one has it; may be called again.

        Handles may be closed in any order: what was attached later goes on as if this one had never been there.

        Raises:
            UsageError: the attention of the model is being recorded, which began later and has to end first.

        """
        if self.closed:
            return
        if any(name == RECORDING for _, name in selections(self.model)):
            raise UsageError(
                f"a handle of {type(self.model).__name__} was to be closed while its attention is recorded: close it "
                "after the recording that was begun inside"
            )
        # What a later one would put back when it is closed is what this one has put there.
        attached = list(_ATTACHED.values())
        later = [handle for handle in attached[attached.index(self) + 1 :] if handle._runs.keys() & self._runs.keys()]
        del _ATTACHED[id(self)]
        for handle in (*reversed(later), self):
            handle._block.close()
        for handle in later:
            handle._install()

    def __enter__(self) -> Self:
        """Return the handle, which is attached already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """One line."""
        state = "closed" if self.closed else "attached"
        return f"<Handle of {type(self.model).__name__}, config {self.digest[:19]}, {state}>"

    def _install(self) -> None:
        self._block.enter_context(
            installed(self.model, self._runs, self.digest, guard=self.guard, new_cache=self.new_cache)
        )


_ATTACHED: WeakValueDictionary[int, Handle] = WeakValueDictionary()
"""What is attached to any model, in the order in which that was done; the models keep it alive."""


def attach(
    model: Any,
    config: OrderConfig | PreparedConfig,
    *,
    guard: bool = True,
    backend: str | None = None,
    observe: Observer | None = None,
    inputs: Inputs | GivenInputs | None = None,
) -> Handle:
    """Run ``model`` with the order of every head as ``config`` says, until the handle is closed.

    ``model.generate`` then keeps a :class:`~taylorder.adapt.cache.TaylorCache` unless it is given another cache.
    Reversible and exception-safe: afterwards no hook and no changed config is left. Several handles may be attached, to
    one model (the last one holds) or to several. The model is for inference then; gradients do flow. What is calibrated
    in the config follows the model to other devices and stays in float32 when the model goes to another dtype. Before a
    model runs adapted for the first time, a short probe shows that it computes what it does by itself when every head
    is exact.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=3, expansion="mean", window=64, sinks=4)
    >>> handle = taylorder.attach(loaded.model, config)
    >>> handle
    <Handle of LlamaForCausalLM, config sha256:..., attached>
    >>> prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    >>> ids = loaded.model.generate(**prompt, max_new_tokens=8)  # [1, T], from a TaylorCache
    >>> sum(int(rows.sum()) for rows in handle.counts.guarded_rows.values())  # odd orders around the mean need no guard
    0
    >>> handle.close()  # the model is as it was, bit for bit

    Args:
        model: the transformers model the config was made for.
        config: per-head decisions, or what :func:`~taylorder.adapt.prepared.prepare` made of them for this model, which
            may be attached many times without looking at the model's weights again.
        guard: False leaves vanishing and negative denominators as they are, to show what they do. It takes all keys to
            do that, so ``generate`` keeps an ordinary cache then.
        backend: of the kernels, ``triton`` or ``torch``; None chooses by device, see ``taylor_attention``. What no
            kernel does (gradients, both directions, ``guard=False``) is computed otherwise either way.
        observe: called by every attention module with what it was given and what it put out, see
            :data:`taylorder.models.attention.Observer`.
        inputs: what the model is run on if it takes more than token ids or something else, as for
            :func:`taylorder.analyze`; the short probe runs the first batch.

    Returns:
        The :class:`Handle`, which is also a context manager. It counts guarded rows and makes caches.

    Raises:
        ConfigError: the config does not belong to the model; says what differs.
        UnsupportedModelError: the model cannot be adapted, or does not compute the same when every head is exact.
        TaylorderError: the backend is Triton, which cannot run where the model is.
        UsageError: the backend is unknown, or the config was prepared for another model; from a forward pass that asks
            for what an adapted model cannot give (attention weights, masks that truncated heads cannot follow, caches
            other than ``TaylorCache`` and ``DynamicCache``); from ``generate`` when it is asked for such a cache, or
            for assisted decoding, before anything is generated; from copying the model.
        NonFiniteError: from a forward pass that overflows.

    """
    prepared = prepare(model, config, inputs=inputs)
    _check_backend(prepared, backend)
    verify(model, prepared.plans, prepared.inputs)
    return Handle(prepared, guard=guard, backend=backend, observe=observe)


@contextmanager
def adapted(
    model: Any,
    config: OrderConfig | PreparedConfig,
    *,
    guard: bool = True,
    backend: str | None = None,
    observe: Observer | None = None,
    inputs: Inputs | GivenInputs | None = None,
) -> Iterator[Counts]:
    """``with attach(...)``: run ``model`` with ``config`` inside the block. See :func:`attach`.

    >>> import taylorder
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=3, expansion="mean", window=64, sinks=4)
    >>> prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    >>> with taylorder.adapted(loaded.model, config) as counts:
    ...     logits = loaded.model(**prompt).logits  # [1, T, vocabulary]
    >>> rows = counts.guarded_rows["model.layers.0.self_attn"]  # [H], how many rows of each head fell back to order 1

    Yields:
        :class:`~taylorder.adapt.attention.Counts` of guarded rows, filled while the model runs.

    """
    with attach(model, config, guard=guard, backend=backend, observe=observe, inputs=inputs) as handle:
        yield handle.counts


def _check_backend(prepared: PreparedConfig, backend: str | None) -> None:
    """Refuse a backend that is unknown or cannot run where a layer is, before anything is computed."""
    model = prepared.model
    try:
        for device in {device_of(module, model) for module in prepared.plans}:
            choose_backend(backend, None, device, model.dtype)
    except TritonUnavailableError as error:
        raise TaylorderError(str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error
