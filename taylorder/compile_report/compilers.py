"""Compiling many kernels at once, in processes that may die of it.

LLVM aborts the process where it cannot go on, and prints whole programs where it fails. So each core has a process of
its own that compiles one job after another; where it dies, one row is lost and another process takes over.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import IO, cast

from taylorder.compile_report.ahead_of_time import Compiled, Failed, Job, compile_job
from taylorder.storage.progress import Progress

CompileResult = Compiled | Failed

_CAUSE = re.compile(r"\b(error|fatal)\s*:", re.IGNORECASE)


class _Compiler:
    """A process that compiles one task after another. LLVM may abort it, and then no more than that task is lost.

    It is forked: Triton is loaded once for all, and no thread of torch runs yet.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.connection, self.log), daemon=True)
        self.process.start()
        theirs.close()  # or the end of the process would go unnoticed

    def start(self, job: Job, target: str) -> None:
        self.log.seek(0)
        self.log.truncate()
        self.connection.send((job, target))

    def result(self, job: Job, target: str) -> CompileResult:
        try:
            outcome: CompileResult = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode or 0
            end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            outcome = Failed(job, target, f"the compiler ended with {end}")
        if isinstance(outcome, Failed):
            self.log.seek(0)
            printed = self.log.read().decode(errors="replace")
            outcome = replace(outcome, error=_in_one_line(outcome.error, printed))
        return outcome

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.log.close()


def _serve(tasks: Connection, other_end: Connection, log: IO[bytes]) -> None:
    """What a compiler process runs until nobody holds the other end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    other_end.close()
    for stream in (1, 2):  # where something fails, Triton prints the whole program to standard output
        os.dup2(log.fileno(), stream)
    while True:
        try:
            job, target = tasks.recv()
        except EOFError:
            return
        try:
            tasks.send(compile_job(job, target))
        except Exception as error:  # of any type: Triton's, those of its passes, those of the tools behind it
            cause: BaseException = error
            # Where a function within a kernel is at fault, the words are with the innermost error.
            while getattr(cause, "error_message", "") is None and cause.__cause__ is not None:
                cause = cause.__cause__
            tasks.send(Failed(job, target, f"{type(cause).__name__}: {cause}"))


def _in_one_line(error: str, printed: str) -> str:
    """What is wrong, without the excerpts of code and the command lines that come with it."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    causes = [line.strip() for line in (*lines[1:], *printed.splitlines()) if _CAUSE.search(line)]
    detail = (causes or lines[1:][-1:] or [""])[0]
    return f"{lines[0].rstrip(':')}: {detail}" if detail else lines[0]


def compile_all(tasks: Sequence[tuple[Job, str]], progress: Progress) -> list[CompileResult]:
    """Compile jobs for targets on all cores this process may use; the results are in the order of the tasks."""
    outcomes: dict[int, CompileResult] = {}
    waiting = iter(range(len(tasks)))
    idle = [_Compiler() for _ in range(min(len(tasks), len(os.sched_getaffinity(0))))]
    busy: dict[Connection, tuple[_Compiler, int]] = {}
    alive = set(idle)
    try:
        progress("compiled", 0, len(tasks))
        while len(outcomes) < len(tasks):
            while idle and (number := next(waiting, None)) is not None:
                compiler = idle.pop()
                compiler.start(*tasks[number])
                busy[compiler.connection] = compiler, number
            for ready in wait(busy):
                compiler, number = busy.pop(cast(Connection, ready))
                outcomes[number] = compiler.result(*tasks[number])
                if compiler.process.exitcode is not None:
                    alive.remove(compiler)
                    compiler.stop()
                    compiler = _Compiler()
                    alive.add(compiler)
                idle.append(compiler)
                progress("compiled", len(outcomes), len(tasks))
    finally:
        for compiler in alive:
            compiler.stop()
    return [outcomes[number] for number in range(len(tasks))]
