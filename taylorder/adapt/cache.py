"""``TaylorCache``: what an adapted model remembers while it generates, constant in size where heads are truncated.

A transformers ``Cache`` is a list of layers. Layers whose heads are all exact, sliding-window layers among them, are
those of a ``DynamicCache``. The others hold a :class:`taylorder.kernels.State`: per KV head sinks, window and the sums
of features, or ordinary keys and values where a group is exact.

``Cache.update`` is called before attention, without the mask and the scaling that folding a key needs. State layers
therefore only count there and hand the new chunk back; the attention function of :mod:`taylorder.adapt.attention`, told
by a forward pre-hook which layer it works for, does the rest.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionAndFullAttentionLayer

from taylorder.adapt import cache_file
from taylorder.adapt.cache_layer import TaylorCacheLayer
from taylorder.adapt.config import OrderConfig
from taylorder.adapt.cost import KV_BYTES
from taylorder.adapt.hybrid_layer import HybridCacheLayer
from taylorder.adapt.prepared import PreparedConfig, prepare
from taylorder.errors import TaylorderError, UnsupportedModelError, UsageError
from taylorder.models.attention import attends_causally
from taylorder.models.running import device_of, input_device


class TaylorCache(Cache):  # type: ignore[misc]  # transformers is not typed
    """A cache for ``model.generate`` and for forward passes of a model to which a config is attached.

    Plain ``model.generate(...)`` then makes one by itself; make one explicitly to look at its size, to feed a prompt
    in pieces, to go on with a conversation, or to compute a prefix once and ``clone`` or ``save`` it. Greedy decoding,
    sampling, beam search, several return sequences, chunked prefill and left-padded batches work as with a
    ``DynamicCache``. Nothing can be taken back (``crop``), which rules out assisted decoding.

    The state of a KV head is that of Heinsen & Kozachkov (arXiv 2602.00294): sums of features times values, float32
    ``[D, d_v + 1]``, whatever the length of the context (docs/math.md#3-features-and-the-state).

    >>> import taylorder, torch
    >>> loaded = taylorder.load()
    >>> config = taylorder.OrderConfig.uniform(loaded.model, order=2, expansion="mean", window=64, sinks=4)
    >>> cache = taylorder.TaylorCache(loaded.model, config)
    >>> prompt = loaded.tokenizer("The capital of France is", return_tensors="pt")
    >>> with torch.no_grad(), taylorder.adapted(loaded.model, config):
    ...     logits = loaded.model(**prompt, past_key_values=cache).logits  # [1, T, vocabulary]
    >>> cache.get_seq_length() == prompt.input_ids.shape[1]
    True
    >>> cache
    <TaylorCache: ... tokens, ... of ... layers with states, ... bytes>
    >>> twin = cache.clone()  # one prefix serves many continuations

    Attributes:
        fingerprint: of the weights it is for.
        digest: of the config it is for, see :func:`taylorder.adapt.prepared.execution_digest`.

    """

    fingerprint: str
    digest: str

    def __init__(self, model: Any, config: OrderConfig | PreparedConfig) -> None:
        """Start empty.

        Args:
            model: a causal transformers model.
            config: the config it will run with, or what :func:`~taylorder.adapt.prepared.prepare` made of it.

        Raises:
            ConfigError: the config does not belong to the model.
            UnsupportedModelError: a truncated layer's cache is of a kind that no state can replace.

        """
        prepared = prepare(model, config)
        super().__init__(layers=_layers(prepared))
        self.fingerprint, self.digest = prepared.config.model.fingerprint, prepared.digest

    def nbytes(self) -> int:
        """Bytes of memory held by the tensors of all layers and sequences, spare capacity included."""
        return cache_bytes(self)

    def nominal_bytes(self) -> int:
        """Bytes with keys and values counted in 16 bits and sums in 32, whatever this run uses.

        This is what is held now. Before a state is worth building its keys are kept as they are, so that a short
        context costs less than :func:`taylorder.adapt.cost.config_bytes`, which counts states at full size.
        """
        return nominal_cache_bytes(self)

    def clone(self) -> TaylorCache:
        """Return an independent copy: one prefix, computed once, serves many continuations."""
        twin = type(self).__new__(type(self))
        Cache.__init__(
            twin,
            layers=[
                layer.clone() if isinstance(layer, TaylorCacheLayer) else copy.deepcopy(layer) for layer in self.layers
            ],
        )
        twin.fingerprint, twin.digest = self.fingerprint, self.digest
        return twin

    def save(self, path: str | Path) -> None:
        """Write everything held to a safetensors file, by rename, never half.

        Raises:
            TaylorderError: a forward pass failed half-way and left the layers at different tokens.
            UnsupportedModelError: the model has layers other than attention (convolutions, recurrences).

        """
        self.refuse_torn()
        cache_file.write(Path(path), self.layers, self._made_for())

    @classmethod
    def load(cls, path: str | Path, model: Any, config: OrderConfig | PreparedConfig) -> TaylorCache:
        """Read what ``save`` wrote, every layer to where that of ``model`` computes.

        Raises:
            ConfigError: the file was written for other weights or another config, or the config is not the model's.
            TaylorderError: the file is missing, is no safetensors file, has another schema or is damaged.

        """
        prepared = prepare(model, config)
        cache = cls(model, prepared)
        devices = {getattr(module, "layer_idx", None): device_of(module, model) for module in prepared.plans}
        places = [devices.get(index, input_device(model)) for index in range(len(cache.layers))]
        cache_file.read(Path(path), cache.layers, cache._made_for(), places)
        return cache

    def expecting(self, module: str) -> TaylorCacheLayer | None:
        """Return the layer that holds the state of ``module``, told that its next chunk will be attended to, if any."""
        for layer in self.layers:
            if isinstance(layer, TaylorCacheLayer) and layer.name == module:
                layer.expected = True
                return layer
        return None

    def refuse_other(self, digest: str) -> None:
        """Refuse to be used by a handle for another model or config.

        Raises:
            UsageError: ``digest`` is not this cache's.

        """
        if digest != self.digest:
            raise UsageError(
                "the TaylorCache was made for another model or config than `adapted` is running with: make one with "
                "TaylorCache(model, config) of the same two, or leave past_key_values out"
            )

    def refuse_torn(self) -> None:
        """Refuse to go on from where a forward pass failed half-way.

        Raises:
            TaylorderError: the layers do not hold the same tokens.

        """
        layers = [layer for layer in self.layers if isinstance(layer, CacheLayerMixin)]
        lengths = sorted({layer.get_seq_length() for layer in layers})
        if len(lengths) > 1 or any(isinstance(layer, TaylorCacheLayer) and layer.torn for layer in layers):
            raise TaylorderError(
                f"the TaylorCache was left half-way through a forward pass that failed (its layers have been given "
                f"{' or '.join(map(str, lengths))} tokens): reset() it and start again, or go back to a clone"
            )

    def _made_for(self) -> dict[str, str]:
        return {"fingerprint": self.fingerprint, "digest": self.digest}

    def __repr__(self) -> str:
        """One line: what it holds now."""
        states = sum(isinstance(layer, TaylorCacheLayer) for layer in self.layers)
        return (
            f"<TaylorCache: {self.get_seq_length():,} tokens, {states} of {len(self.layers)} layers with states, "
            f"{self.nbytes():,} bytes>"
        )


def cache_bytes(cache: Cache) -> int:
    """Bytes of memory held by the tensors of any transformers cache, those of the exact model included."""
    return sum(
        layer.nbytes() if isinstance(layer, TaylorCacheLayer) else _storage_bytes(layer) for layer in cache.layers
    )


def replaced_bytes(cache: Cache) -> int:
    """Bytes of memory held by the layers of a :class:`TaylorCache` that have truncated heads, and by no other."""
    return sum(layer.nbytes() for layer in cache.layers if isinstance(layer, TaylorCacheLayer))


def nominal_cache_bytes(cache: Cache) -> int:
    """Bytes of any transformers cache with keys and values counted in 16 bits and sums in 32."""
    return sum(
        layer.nominal_bytes() if isinstance(layer, TaylorCacheLayer) else _nominal_bytes(layer)
        for layer in cache.layers
    )


def _layers(prepared: PreparedConfig) -> list[Any]:
    """Return the layers of a ``DynamicCache``, with states where heads are truncated."""
    model = prepared.model
    if not getattr(model, "_supports_default_dynamic_cache", lambda: True)():
        raise UnsupportedModelError(
            f"{type(model).__name__} takes no cache but of a class of its own: leave past_key_values out, and it keeps "
            "every key in that"
        )
    indices = [index for module in model.modules() if isinstance(index := getattr(module, "layer_idx", None), int)]
    # The config of a decoder may count the layers of the encoder that it was trained with, and no call comes to those.
    layers: list[Any] = DynamicCache(config=model.config).layers[: max(indices) + 1 if indices else None]
    for module, plan in prepared.plans.items():
        if plan.heads is None:
            continue
        if not attends_causally(module, {}):
            raise UnsupportedModelError(
                f"{plan.name} attends in both directions: an encoder needs no cache, run the model without one"
            )
        index = getattr(module, "layer_idx", None)
        index = index if isinstance(index, int) and index < len(layers) else -1
        cached = layers[index] if index >= 0 else None
        if isinstance(cached, LinearAttentionAndFullAttentionLayer):
            layers[index] = HybridCacheLayer(plan.name, plan.heads, number_of_states=cached.number_of_states)
            continue
        if type(cached) is not DynamicLayer:
            raise UnsupportedModelError(
                f"transformers caches {plan.name} in a {type(cached).__name__}, where a DynamicLayer is expected, "
                "which a state can replace: make its heads exact, or pass "
                "past_key_values=DynamicCache(config=model.config), which keeps every key"
            )
        layers[index] = TaylorCacheLayer(plan.name, plan.heads)
    return layers


def _storage_bytes(layer: Any) -> int:
    """Bytes of the storages behind a transformers layer's tensors: a sliding window may be a view of more."""
    storages = {}
    pending = list(vars(layer).values())
    while pending:
        match pending.pop():
            case Tensor() as tensor:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            case dict() as items:
                pending += items.values()
            case list() | tuple() as items:
                pending += items
    return sum(storages.values())


def _nominal_bytes(layer: Any) -> int:
    """Keys and values in 16 bits; layers without any (convolutions, recurrences) count as what they hold."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None:
        return _storage_bytes(layer) if getattr(layer, "is_initialized", False) else 0
    return KV_BYTES * int(keys.numel() + values.numel())
