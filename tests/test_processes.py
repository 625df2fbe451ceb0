"""Two processes that share the sequences find what one finds, print once, and end together."""

from __future__ import annotations

import csv

import pytest
import torch
from command_line import started
from safetensors.torch import load_file

from taylorder.errors import TaylorderError, UsageError
from taylorder.models.placement import Placement
from taylorder.storage import processes

CLOSE = 1e-12


def errors(said):
    return [line for line in said.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def runs(saved, tmp_path_factory):
    """What one process wrote and printed, and what two did."""
    small = ("--text", saved / "words.txt", "--max-tokens", 192, "--sequence-length", 32, "--rows", 8, "--max-order", 3)
    choose = ("--budget", "50%", "--context", 48, "--lever-length", 32, "--no-eval")
    found = []
    for count in (1, 2):
        out = tmp_path_factory.mktemp("run") / "out"
        code, said, told = started(count, "analyze", saved, *small, *choose, "--out", out)
        assert code == 0, told
        found.append((out, said, told))
    return found


def test_two_processes_choose_what_one_chooses(runs):
    (one, *_), (two, *_) = runs
    assert (two / "orders.json").read_bytes() == (one / "orders.json").read_bytes()
    tensors = load_file(one / "orders.safetensors"), load_file(two / "orders.safetensors")
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


@pytest.mark.parametrize("name", ["heads.csv", "spectral.csv", "levers.csv", "probes.csv"])
def test_two_processes_measure_what_one_measures(runs, name):
    rows = [list(csv.DictReader((run / name).open(encoding="utf-8"))) for run, *_ in runs]
    assert len(rows[0]) == len(rows[1]) > 0
    for one, two in zip(*rows, strict=True):
        assert one.keys() == two.keys()
        for column, figure in one.items():
            try:
                assert float(two[column]) == pytest.approx(float(figure), rel=CLOSE, abs=CLOSE)
            except ValueError:
                assert two[column] == figure


def test_one_of_them_prints_and_nothing_is_left(runs):
    (one, said, told), (two, said_by_two, told_by_two) = runs
    assert said_by_two.replace(str(two), str(one)) == said
    stages = [line for line in told.splitlines() if line.startswith(("loading", "measuring"))]
    assert len(stages) >= 2
    assert [line for line in told_by_two.splitlines() if line.startswith(("loading", "measuring"))] == stages
    assert not list(two.rglob("*spilled*")) and not list(one.rglob("*spilled*"))


_ONE_BREAKS = """
import sys
from taylorder import cli
from taylorder.analysis import analyze
from taylorder.errors import NonFiniteError
from taylorder.storage import processes

measure = analyze.measure

def broken(*arguments):
    if processes.rank() == 1:
        raise NonFiniteError("the second process broke")
    return measure(*arguments)

analyze.measure = broken
cli.main()
"""


def test_an_error_in_one_process_ends_all_with_one_message(saved, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(_ONE_BREAKS, encoding="utf-8")
    small = ("--text", saved / "words.txt", "--max-tokens", 64, "--sequence-length", 32, "--rows", 4, "--max-order", 1)
    code, said, told = started(2, "analyze", saved, *small, "--out", tmp_path / "out", program=(program,))
    assert code != 0
    assert said == ""
    assert errors(told) == ["error: the second process broke"]
    assert not (tmp_path / "out" / "orders.json").exists()


def test_other_commands_run_in_one_process_which_all_of_them_say_once(tmp_path):
    code, said, told = started(2, "show", tmp_path)
    assert (code != 0, said) == (True, "")
    assert len(errors(told)) == 1
    assert "2 processes were started for `show`, which runs in one" in errors(told)[0]


def test_processes_that_are_not_there_are_named():
    code, _, told = started(1, "show", WORLD_SIZE="2", RANK="0")
    assert code == 1
    (error,) = errors(told)
    assert "WORLD_SIZE is 2, but the other processes cannot be reached" in error


# One process by itself


def test_one_process_does_everything():
    assert (processes.rank(), processes.world(), processes.is_first()) == (0, 1, True)
    assert processes.share(3, "sequences") == range(3)
    assert processes.gather("x") == ["x"]
    assert processes.gathered([1, 2]) == [1, 2]
    assert list(processes.spread(str, [1, 2])) == ["1", "2"]
    tensor = torch.ones(2)
    assert processes.total(tensor) is tensor
    assert processes.from_first(lambda: 7) == 7
    with processes.joined():
        assert processes.world() == 1
    assert processes.first_to_fail()
    with pytest.raises(TaylorderError, match="as it is"):
        processes.from_first(lambda: (_ for _ in ()).throw(TaylorderError("as it is")))


@pytest.fixture
def among(monkeypatch):
    """Pretend to be one of several processes, which hear nothing of each other."""

    def pretend(rank, world):
        monkeypatch.setattr(processes, "_JOINED", [processes._Processes(rank, world, None)])

    return pretend


@pytest.mark.parametrize("world, count", [(2, 2), (2, 5), (3, 8), (4, 4)])
def test_shares_are_neighbours_and_leave_nothing_out(among, world, count):
    shares = []
    for rank in range(world):
        among(rank, world)
        shares.append(processes.share(count, "sequences"))
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_sequences_are_refused(among):
    among(0, 3)
    with pytest.raises(UsageError, match="there are 3 processes and 2 sequences, and each process takes one at least"):
        processes.share(2, "sequences")


def test_each_process_has_a_gpu_and_a_whole_model(among, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Placement.of("cuda", None).device == "cuda"
    among(1, 2)
    assert Placement.of("cuda", None).device == "cuda:1"
    assert Placement.of("cpu", None).device == "cpu"
    with pytest.raises(UsageError, match="--device-map is auto, and there are 2 processes, each with a whole model"):
        Placement.of("cpu", "auto")
