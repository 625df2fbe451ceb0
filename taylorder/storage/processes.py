"""Several processes that measure one model together: who is who, what each does, and what they tell one another.

``torchrun --nproc-per-node N -m taylorder analyze ...`` starts them. All run the same code: each measures its share of
the sequences, what was measured is gathered in the order of the sequences, and so every process has all of it and goes
on as one process would. What is exchanged are sums and rows on the CPU, so that gloo carries them wherever the models
are. Outside :func:`joined` there is one process, which does everything and waits for nobody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from taylorder.errors import TaylorderError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = timedelta(days=7)
"""How long one waits for another; one that ends is noticed at once."""

_FAILED = "taylorder-failed"


class LostProcessError(TaylorderError):
    """Another process ended before its part was done."""


@dataclass(frozen=True)
class _Processes:
    rank: int
    world: int
    store: Any


_JOINED: list[_Processes] = []
"""What this process has joined: at most one."""


def rank() -> int:
    """The number of this process, from 0 on."""
    return _JOINED[-1].rank if _JOINED else 0


def world() -> int:
    """How many processes there are."""
    return _JOINED[-1].world if _JOINED else 1


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _JOINED else 0


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun has started, if it has started several, until the block ends.

    Raises:
        TaylorderError: the others cannot be reached.

    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, number, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
        dist.init_process_group("gloo", store=store, rank=number, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TaylorderError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the other processes cannot be reached ({error}): start all "
            "of them with torchrun, or unset WORLD_SIZE"
        ) from error
    _JOINED.append(_Processes(number, size, store))
    try:
        dist.barrier()
        yield
    finally:
        _JOINED.clear()
        dist.destroy_process_group()


def first_to_fail() -> bool:
    """Whether no other process has said yet why all of them end; asked once by each that fails."""
    if not _JOINED:
        return True
    try:
        return int(_JOINED[-1].store.add(_FAILED, 1)) == 1
    except RuntimeError:  # whoever kept count is gone, and has said why
        return False


def share(count: int, of: str) -> range:
    """Which of so many sequences are this process's: neighbours, at least one.

    Raises:
        UsageError: there are more processes; ``of`` says what the sequences are.

    """
    if world() > count:
        raise UsageError(
            f"there are {world()} processes and {count} {of}, and each process takes one at least: start "
            f"{count} processes or fewer, or raise --max-tokens"
        )
    return range(rank() * count // world(), (rank() + 1) * count // world())


def gather(value: Result) -> list[Result]:
    """What every process has, by rank; the same list for all."""
    if not _JOINED:
        return [value]
    import torch.distributed as dist

    gathered: list[Any] = [None] * world()
    with _others_there():
        dist.all_gather_object(gathered, value)
    return gathered


def gathered(values: Sequence[Result]) -> list[Result]:
    """What every process has for each of its sequences, in the order of the sequences; the same list for all."""
    return [value for of_process in gather(list(values)) for value in of_process]


def total(tensor: Tensor) -> Tensor:
    """The sum of what every process has, in the order of the ranks, which rounds it the same for all."""
    first, *others = gather(tensor)
    for other in others:
        first = first + other
    return first


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Make every tensor the sum of what all processes have in its place."""
    if not _JOINED:
        return
    import torch.distributed as dist

    with _others_there():
        for tensor in tensors:
            dist.all_reduce(tensor)


def spread(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield ``work(item)`` in the order of the items, of which as many are worked on at a time as there are processes.

    Every process gets every result, and has to take them all.
    """
    for start in range(0, len(items), world()):
        mine = items[start + rank() : start + rank() + 1]
        yield from gathered([work(item) for item in mine])


def from_first(work: Callable[[], Result]) -> Result:
    """What ``work`` gives in the first process, which alone does it; where it fails, all of them fail with it."""
    if not _JOINED:
        return work()
    import torch.distributed as dist

    sent: list[Any] = [None, None]
    if is_first():
        try:
            sent[0] = work()
        except TaylorderError as error:
            sent[1] = error
    with _others_there():
        dist.broadcast_object_list(sent)
    result, failure = sent
    if failure is not None:
        raise failure
    return result  # type: ignore[no-any-return]


@contextmanager
def _others_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise LostProcessError(
            "another process ended before its part was done and did not say why, perhaps killed for want of memory: "
            "start fewer processes, or lower --max-tokens"
        ) from error
