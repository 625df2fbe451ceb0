"""The tensors of a config: key centres, rotations and probes, how they are checked, and ``orders.safetensors``.

``G`` KV heads, ``d`` the head dim, ``F`` features of a probe. Names in the file: ``<module>.key_centre`` ``[G, d]``,
``<module>.query_rotation`` and ``<module>.key_rotation`` ``[G, d, d]``, ``<module>.probe`` ``[G, F]``, all float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taylorder.adapt.probe import probe_width
from taylorder.errors import ConfigError
from taylorder.storage.files import sha256
from taylorder.storage.strict_json import in_line
from taylorder.storage.tensor_files import FLOATS, tensors_as_bytes, tensors_of

Centres = Mapping[str, Tensor]
RotationPairs = Mapping[str, tuple[Tensor, Tensor]]
Probes = Mapping[str, Tensor]

ROTATION_TOLERANCE = 1e-3
"""How far an entry of ``A_q^T A_k`` may be from the identity: far above float32 rounding, far below any mistake."""

_SUFFIX = ".safetensors"
_KINDS = ("key_centre", "query_rotation", "key_rotation", "probe")


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


def checked_probe(module: str, probe: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """Return the probes of a layer's KV heads as float32 ``[G, F]`` on the CPU.

    A config does not know the value dim, so F is only known to leave room for one value; ``OrderConfig.check`` knows.

    Raises:
        ConfigError: it has the wrong shape or is not finite.

    """
    what, least = f"probe of layer {module}", probe_width(head_dim, 1)
    if probe.ndim != 2 or len(probe) != kv_heads or probe.shape[-1] < least:
        raise ConfigError(
            f"{what} has shape {tuple(probe.shape)}, expected ({kv_heads}, F): F features, {least} or more"
        )
    return _checked(what, probe, tuple(probe.shape))


def _checked(what: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise ConfigError(f"{what} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype not in FLOATS:
        raise ConfigError(f"{what} has dtype {tensor.dtype}, expected {torch.float32}")
    single = tensor.detach().to("cpu", torch.float32)
    if not torch.isfinite(single).all():
        raise ConfigError(f"{what} holds NaN or infinite values")
    return single


def content_of(centres: Centres, rotations: RotationPairs, probes: Probes) -> bytes | None:
    """Return the content of the file with a config's tensors; None if there are none."""
    tensors = {f"{module}.key_centre": centre for module, centre in centres.items()}
    for module, (query, key) in rotations.items():
        tensors |= {f"{module}.query_rotation": query, f"{module}.key_rotation": key}
    tensors |= {f"{module}.probe": probe for module, probe in probes.items()}
    return tensors_as_bytes(tensors) if tensors else None


def companion(path: Path) -> Path:
    """Return where the tensors of a config saved at ``path`` go.

    Raises:
        ConfigError: there are tensors that are not a config's, such as a model's weights, which saving would replace.

    """
    beside = path.with_suffix(_SUFFIX)
    if beside == path:
        raise ConfigError(f"{path} is where the tensors of a config go: save it under a name that ends in .json")
    try:
        with safe_open(beside, framework="pt") as file:
            foreign = [name for name in file.keys() if name.rpartition(".")[2] not in _KINDS]  # noqa: SIM118  # no dict
    except (OSError, SafetensorError):
        return beside  # not there, or nobody's
    if foreign:
        raise ConfigError(
            f"{beside} holds {in_line(foreign[0])}, no tensor of a config, and saving {path.name} would replace it: "
            "save the config under another name"
        )
    return beside


def located(path: Path, files: Mapping[str, str] | None) -> tuple[Path, str | None] | None:
    """Return where the tensors of the config at ``path`` are, and the SHA-256 they must have; None if it has none.

    ``files`` is what the config says, by name; None takes what is there under the usual name, whatever it is.

    Raises:
        ConfigError: there are tensors beside it that it does not name.

    """
    beside = path.with_suffix(_SUFFIX)
    if files is None:
        return (beside, None) if beside.exists() else None
    if beside.name not in files and beside.exists():
        named = in_line(next(iter(files), "no tensors"))
        raise ConfigError(
            f"{beside} lies beside {path.name}, which names {named}: remove it if it is another config's, or give both "
            "files the names they were saved under"
        )
    return next(((path.with_name(name), expected) for name, expected in files.items()), None)


def read_tensors(
    path: Path, expected: str | None
) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Read key centres, rotations and probes by module; their shapes and numbers are not checked yet.

    Raises:
        ConfigError: the file is missing, does not have the expected SHA-256, is no safetensors file, or has a name
            that is unknown or only half of a pair.

    """
    try:
        content = path.read_bytes()
        if expected is not None and sha256(content) != expected:
            raise ConfigError(
                f"its SHA-256 is {sha256(content)}, and the config beside it names {expected}: one of the two is of "
                "another config or damaged; copy both from one place, or make them again"
            )
        tensors = tensors_of(content)
    except FileNotFoundError:
        raise ConfigError("it is not there, and the config names it; copy it from where the config was saved") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read: {error}") from error
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in _KINDS}
    for name, tensor in sorted(tensors.items()):
        module, _, kind = name.rpartition(".")
        if kind not in found:
            raise ConfigError(f"unknown tensor {in_line(name)}")
        if tensor.dtype != torch.float32:
            raise ConfigError(f"{in_line(name)} has dtype {tensor.dtype}, expected {torch.float32}")
        found[kind][module] = tensor
    queries, keys = found["query_rotation"], found["key_rotation"]
    for module in sorted(queries.keys() ^ keys.keys()):
        there, missing = ("query", "key") if module in queries else ("key", "query")
        raise ConfigError(f"layer {in_line(module)} has a {there}_rotation, expected a {missing}_rotation beside it")
    pairs = {module: (queries[module], keys[module]) for module in queries}
    return found["key_centre"], pairs, found["probe"]
