"""A policy is one entry of a table: what chooses, and everything that reports the choice, goes by it."""

from __future__ import annotations

import pytest
import synthetic

from taylorder.commands._shared import write_run
from taylorder.reports import html_data, verdict
from taylorder.runs import run_directory
from taylorder.selection.policies import POLICIES, Policy
from taylorder.selection.settings import PolicyName


def first_rows(layer):
    return [rows[0] if layer.module.name.endswith("0.self_attn") else "near" for rows in layer.rows]


@pytest.fixture
def chosen(monkeypatch):
    """A selection by a policy that the package does not have."""
    policy = Policy(
        "first", first_rows, bounded=False, chooser="The order of rows", rule="Since it comes first {where}"
    )
    monkeypatch.setitem(POLICIES, "first", policy)
    measured = synthetic.analysis(layers=2)
    return measured, synthetic.selection(measured, policy="first")


def test_the_table_has_every_name_of_the_command_line():
    assert tuple(POLICIES) == PolicyName.__args__
    assert all(policy.name == name for name, policy in POLICIES.items())


def test_a_new_policy_chooses_and_is_reported(chosen):
    measured, selection = chosen
    assert selection.config.criterion["policy"] == selection.policy == "first"
    assert {head.order for head in selection.config.layers[0].heads} == {1}
    assert {head.reason for head in selection.config.layers[1].heads} == {"near"}
    told = " ".join(verdict.sentences(measured, selection))
    assert "The order of rows gave 9 heads an order (order 1: 9), without looking at any error." in told
    command, _ = verdict.next_command(measured, selection)
    assert "--policy" not in command
    assert command.endswith("--out taylorder-out")
    assert "Since it comes first at 8,192 tokens; error" in str(html_data.as_data(measured, selection)["layers"][0])


def test_a_run_by_a_new_policy_cannot_pass_for_another(chosen, tmp_path):
    measured, selection = chosen
    write_run(tmp_path, measured, selection)
    with pytest.raises(run_directory.RunDirectoryError, match="policy"):
        run_directory.read(tmp_path)
