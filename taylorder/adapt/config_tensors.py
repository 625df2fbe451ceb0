"""The tensors of a config: key centres and rotations, how they are checked, and their file ``orders.safetensors``.

``G`` KV heads, ``d`` the head dim. Names in the file: ``<module>.key_centre`` ``[G, d]``, ``<module>.query_rotation``
and ``<module>.key_rotation`` ``[G, d, d]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from taylorder.errors import ConfigError
from taylorder.files import replacing

Centres = Mapping[str, Tensor]
RotationPairs = Mapping[str, tuple[Tensor, Tensor]]

ROTATION_TOLERANCE = 1e-3
"""How far an entry of ``A_q^T A_k`` may be from the identity: far above float32 rounding, far below any mistake."""

_KINDS = ("key_centre", "query_rotation", "key_rotation")


def checked_centre(module: str, centre: Tensor | None, kv_heads: int, head_dim: int) -> Tensor:
    """Return a layer's key centre as float32 ``[G, d]`` on the CPU.

    Raises:
        ConfigError: it is missing, has the wrong shape or is not finite.

    """
    shape = (kv_heads, head_dim)
    if centre is None:
        raise ConfigError(f"key centre of layer {module} is missing; expected a tensor of shape {shape}")
    return _checked(f"key centre of layer {module}", centre, shape)


def checked_rotations(module: str, pair: tuple[Tensor, Tensor], kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Return a layer's ``A_q`` and ``A_k`` as float32 ``[G, d, d]`` on the CPU.

    Raises:
        ConfigError: a shape is wrong, a number is not finite, or ``A_q^T A_k`` is not the identity, so that scores
            would change.

    """
    shape = (kv_heads, head_dim, head_dim)
    query = _checked(f"query rotation of layer {module}", pair[0], shape)
    key = _checked(f"key rotation of layer {module}", pair[1], shape)
    identity = torch.eye(head_dim, dtype=torch.float64)
    deviation = float((query.double().mT @ key.double() - identity).abs().max())
    if deviation > ROTATION_TOLERANCE:
        raise ConfigError(
            f"rotations of layer {module}: A_q^T A_k is {deviation:.3g} away from the identity, expected at most "
            f"{ROTATION_TOLERANCE:g}; balanced_rotations makes pairs that belong together"
        )
    return query, key


def _checked(what: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ConfigError(f"{what} has shape {tuple(tensor.shape)}, expected {shape}")
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"{what} holds NaN or infinite values")
    return tensor.detach().to("cpu", torch.float32)


def write_tensors(path: Path, centres: Centres, rotations: RotationPairs) -> None:
    """Write a config's tensors by rename, never half; without any, remove the file.

    Tensors of an earlier config must not be read as this one's.
    """
    tensors = {f"{module}.key_centre": centre for module, centre in centres.items()}
    for module, (query, key) in rotations.items():
        tensors |= {f"{module}.query_rotation": query, f"{module}.key_rotation": key}
    if not tensors:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Read key centres and rotations by module; what they hold is not checked yet.

    Raises:
        ConfigError: the file is no safetensors file, or has a name that is unknown or only half of a pair.

    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot be read: {error}") from error
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name, tensor in sorted(tensors.items()):
        module, _, kind = name.rpartition(".")
        if kind not in found:
            raise ConfigError(f"unknown tensor {name}")
        found[kind][module] = tensor
    queries, keys = found["query_rotation"], found["key_rotation"]
    for module in sorted(queries.keys() ^ keys.keys()):
        there, missing = ("query", "key") if module in queries else ("key", "query")
        raise ConfigError(f"layer {module} has a {there}_rotation, expected a {missing}_rotation beside it")
    return found["key_centre"], {module: (queries[module], keys[module]) for module in queries}
