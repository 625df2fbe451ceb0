"""Runs in children: forked from a process that has everything imported, limited in time and memory, some at a time."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from .building import Run

_FORK = multiprocessing.get_context("fork")

Examine = Callable[[Run, Callable[[str], None]], dict[str, Any]]


@dataclass
class _Child:
    run: Run
    process: Any
    began: float
    stage: str = "build"


def records(
    runs: Iterable[Run], examine: Examine, *, jobs: int, seconds: float, memory: int
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Yield the record of every run as it is done, ``jobs`` at a time.

    A child that takes longer than ``seconds`` is killed; one that asks for more than ``memory`` bytes of addresses gets
    an error. Either way its record says how it ``ended``, and in which stage.
    """
    waiting = iter(runs)
    children: dict[Connection, _Child] = {}
    try:
        while True:
            while len(children) < jobs and (run := next(waiting, None)) is not None:
                connection, child = _start(run, examine, memory)
                children[connection] = child
            if not children:
                return
            soonest = min(child.began for child in children.values()) + seconds
            for connection in wait(list(children), timeout=max(0.05, soonest - time.monotonic())):
                record = _heard(connection, children[connection])
                if record is not None:
                    yield _finish(connection, children.pop(connection), record)
            for connection, child in list(children.items()):
                if time.monotonic() - child.began > seconds:
                    child.process.kill()
                    yield _finish(connection, children.pop(connection), {"ended": f"timeout in {child.stage}"})
    finally:
        for child in children.values():
            child.process.kill()


def _start(run: Run, examine: Examine, memory: int) -> tuple[Connection, _Child]:
    ours, theirs = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(theirs, run, examine, memory), daemon=True)
    process.start()
    theirs.close()
    return ours, _Child(run, process, time.monotonic())


def _heard(connection: Connection, child: _Child) -> dict[str, Any] | None:
    """The record if that is what the child sent; a stage that begins is noted."""
    try:
        what, content = connection.recv()
    except EOFError:
        return {"ended": f"died in {child.stage}"}
    if what == "record":
        return content
    child.stage = content
    return None


def _finish(connection: Connection, child: _Child, record: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    child.process.join()
    connection.close()
    name = {"type": child.run.model_type, "variant": child.run.variant, "class": child.run.class_name}
    return child.run, name | record | {"seconds": round(time.monotonic() - child.began, 1)}


def _work(connection: Connection, run: Run, examine: Examine, memory: int) -> None:
    """In the child: everything the models and libraries print goes nowhere."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    try:
        record = examine(run, lambda stage: connection.send(("stage", stage)))
    except Exception:
        record = {"ended": "benchmark: " + traceback.format_exc()[-600:]}
    connection.send(("record", record))
