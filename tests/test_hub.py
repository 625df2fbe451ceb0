"""``taylorder push`` and ``pull``, against a stand-in for the Hub on the loopback."""

from __future__ import annotations

import os
import subprocess
import sys

import keeping_configs
import pytest
import tiny
from command_line import ROOT
from hub_stand_in import TOKEN, hub

from taylorder.adapt.config import OrderConfig


@pytest.fixture(scope="module")
def server():
    with hub() as server:
        yield server


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "orders.json"
    keeping_configs.small(tiny.llama())[1].save(path)
    return path


@pytest.fixture
def taylorder(server, tmp_path):
    """Run a command in a process of its own, where the Hub is the stand-in: its exit code, stdout and stderr."""

    def run(*arguments, token=TOKEN):
        environment = os.environ | {
            "HF_ENDPOINT": server.endpoint, "HF_TOKEN": token, "HF_HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0",
        }  # fmt: skip
        command = [sys.executable, "-m", "taylorder", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


def test_what_is_pushed_is_pulled_again(taylorder, server, orders, tmp_path):
    code, out, err = taylorder("push", "me/small", "--config", orders, "--private")
    assert code == 0, err
    assert "taylorder pull me/small" in out
    assert set(server.repositories["me/small"]) == {"README.md", "orders.json", "orders.safetensors"}
    assert server.private == {"me/small"}
    assert b"taylorder pull me/small" in server.repositories["me/small"]["README.md"]

    code, out, err = taylorder("pull", "me/small", "--out", tmp_path / "pulled")
    assert code == 0, err
    assert str(tmp_path / "pulled") in out
    assert OrderConfig.load(tmp_path / "pulled" / "orders.json") == OrderConfig.load(orders)
    assert (tmp_path / "pulled" / "README.md").is_file()


def test_what_is_no_config_is_not_put_anywhere(taylorder, server, orders, tmp_path):
    server.repositories["me/broken"] = {"orders.json": b"{}"}
    server.repositories["me/weights"] = {"model.safetensors": b""}
    for name, exit_code, words in (
        ("me/broken", 1, "orders.json"),
        ("me/weights", 2, "me/weights has no orders.json"),
        ("me/nothing", 2, "me/nothing is not on the Hub"),
    ):
        code, _, err = taylorder("pull", name, "--out", tmp_path / "out")
        assert (code, err.count("error:")) == (exit_code, 1)
        assert words in err
        assert not (tmp_path / "out").exists()


def test_a_run_is_not_overwritten_by_a_config(run, tmp_path):
    (tmp_path / "report.json").write_text("{}")
    code, _, err = run("pull", "me/small", "--out", str(tmp_path))
    assert code == 2
    assert "holds a run" in err


@pytest.mark.parametrize(
    ("name", "token", "exit_code", "words"),
    [
        ("me/small", "hf_of_somebody_else", 1, "hf auth login"),
        ("no good name", TOKEN, 2, "expected OWNER/NAME"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(taylorder, orders, name, token, exit_code, words):
    code, out, err = taylorder("push", name, "--config", orders, token=token)
    assert (code, out) == (exit_code, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words in err
