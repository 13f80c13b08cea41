"""Verdicts follow the numbers: beyond the interval, on the other side of it, or neither."""

from __future__ import annotations

import math

import pytest

from loramixer.evaluation.verdicts import (
    above,
    balance_curve_verdicts,
    below,
    chosen,
    convergence_verdicts,
    data_size_verdicts,
    grid_verdicts,
    losses_verdicts,
    oracle_verdicts,
    table_line,
    top_k_verdicts,
)


def row(setting: str, quantity: str, value: float, half: float, **fields: object) -> dict:
    return {
        "setting": setting, "quantity": quantity, "value": value, "low": value - half, "high": value + half,
        "gate": "soft", "against": None, "examples": 2000.0, "seeds": 3.0, "rows": 400.0, "covers": "seeds and rows",
        **fields,
    }  # fmt: skip


FOUR_LOADS = [row("none", f"load_{name}", 0.25, 0) for name in "abcd"]
TOP = [row("none", "loss", 1.0, 0, gate="top_3")]


@pytest.mark.parametrize(
    ("low", "high", "lower", "higher"),
    [
        (-2, -1, "held", "not held"),
        (1, 2, "not held", "held"),
        (-1, 1, "undecided", "undecided"),
        (-1, 0, "undecided", "not held"),
        (0, 1, "not held", "undecided"),
    ],
)
def test_an_interval_that_touches_the_bound_is_not_beyond_it(low, high, lower, higher):
    assert below({"low": low, "high": high}) == lower
    assert above({"low": low, "high": high}) == higher


def test_a_number_without_an_interval_decides_nothing():
    for judge in (below, above):
        assert judge({"low": -1, "high": -1, "covers": "nothing"}) == "undecided"
        assert judge({"low": 1, "high": 1, "covers": "nothing"}) == "undecided"


@pytest.mark.parametrize(("share", "status"), [(0.99, "held"), (0.8, "not held"), (0.951, "undecided")])
def test_load_balance_collapses_when_gates_are_uniform(share, status):
    rows = [*FOUR_LOADS, *TOP, row("load balance 4", "token_entropy", share * math.log(4), 0.01 * math.log(4))]
    (verdict,) = losses_verdicts(rows)
    assert verdict.status == status
    assert f"E[H] / log K = {share:.3f} [{share - 0.01:.3f}, {share + 0.01:.3f}]" in verdict.numbers
    assert "3 seeds, 400 rows, interval over seeds and rows" in verdict.numbers
    assert str(verdict).startswith(f"**{status}** – load balance 4")


def test_each_sign_is_judged_by_its_own_difference():
    rows = [
        *FOUR_LOADS,
        *TOP,
        row("RSL sharpen 4 / 0.3", "mutual_information", 0.2, 0.1, against="none"),
        row("RSL flatten 4 / 0.3", "mutual_information", -0.2, 0.1, against="none"),
        row("RSL sharpen 4 / 0.3", "own_share", 0.05, 0.1, against="none"),
        row("RSL sharpen 4 / 0.3", "loss", 0.05, 0.01, against="gmoe 1", gate="top_3"),
        row("RSL sharpen 4 / 0.3", "loss", -0.05, 0.01, against="gmoe 1", gate="soft"),
    ]
    found = [(verdict.claim.split()[1], verdict.status) for verdict in losses_verdicts(rows)]
    assert found == [
        ("sharpen", "held"),
        ("flatten", "not held"),
        ("sharpen", "undecided"),
        ("sharpen", "not held"),  # the loss under the shipped gate
        ("sharpen", "held"),  # and under soft gates
    ]


def test_no_loss_is_known_at_every_learning_rate_and_compared_at_the_same_one():
    rate = ", learning rate 0.001"
    fair = row(f"RSL sharpen 4 / 0.3{rate}", "mutual_information", 0.2, 0.1, against=f"none{rate}")
    unfair = [
        row("RSL sharpen 4 / 0.3", "mutual_information", 0.2, 0.1, against=f"none{rate}"),
        row(f"RSL sharpen 4 / 0.3{rate}", "mutual_information", 0.2, 0.1, against="none"),
        row("RSL sharpen 4 / 0.3", "mutual_information", 0.2, 0.1, against="none, 64 examples"),
    ]
    (verdict,) = losses_verdicts([*FOUR_LOADS, *TOP, fair, *unfair])
    assert (verdict.claim.split(":")[0], verdict.status) == (f"{fair['setting']} specialises", "held")
    (verdict,) = grid_verdicts([{**found, "quantity": "loss"} for found in (fair, *unfair)])
    assert "of 1 cells" in verdict.numbers


def test_the_grid_says_at_which_weight_load_balance_collapses():
    shares = {16: 0.97, 4: 0.9, 0.1: 0.8}
    cells = [row(f"load balance {weight:g}", "token_entropy", math.log(4) * s, 0.01) for weight, s in shares.items()]
    found = [(verdict.claim.split()[2], verdict.status) for verdict in grid_verdicts([*FOUR_LOADS, *cells])]
    assert found == [("0.1", "not held"), ("4", "not held"), ("16", "held")]


@pytest.mark.parametrize(
    ("value", "half", "status"),
    [
        (-0.05, 0.02, "held"),
        (0.004, 0.003, "held"),
        (0.05, 0.02, "not held"),
        (0.0, 0.03, "undecided"),
        (0.02, 0.015, "undecided"),  # above 0, but it may be above by less than the margin
    ],
)
def test_half_the_data_must_be_no_worse_by_the_margin(value, half, status):
    rows = [row("RSL", "loss", value, half, against="load balance 4, 4000 examples", gate="top_3")]
    (verdict,) = data_size_verdicts(rows)
    assert verdict.status == status
    assert "2000 rows with it are no worse than load balance 4, 4000 examples" in verdict.claim


def test_at_the_same_size_a_lower_loss_is_asked_for():
    (verdict,) = data_size_verdicts([row("RSL", "loss", 0.004, 0.003, against="none", gate="top_3")])
    assert verdict.status == "not held"


def test_a_claim_on_all_cells_falls_with_one_of_them():
    cells = [row(f"RSL sharpen {a} / 1", "token_entropy", -0.3, 0.1, against="none") for a in (1, 4)]
    assert grid_verdicts(cells)[0].status == "held"
    denied = row("RSL sharpen 16 / 1", "token_entropy", 0.3, 0.1, against="none")
    (verdict,) = grid_verdicts([*cells, denied])
    assert verdict.status == "not held"
    assert "held in 2, not held in 1, undecided in 0 of 3 cells; differences from -0.300 to 0.300" in verdict.numbers
    (verdict,) = grid_verdicts([*cells, row("RSL sharpen 16 / 1", "token_entropy", 0, 0.1, against="none")])
    assert verdict.status == "undecided"


@pytest.mark.parametrize(
    ("loss", "information", "status"),
    [(-0.1, 0.3, "held"), (0.0, 0.3, "undecided"), (0.1, 0.3, "not held"), (-0.1, -0.3, "not held")],
)
def test_all_at_once_is_held_when_each_part_is(loss, information, status):
    parts = {"load_variance": -0.1, "mutual_information": information, "loss": loss}
    rows = [row("RSL sharpen 1 / 0.3", name, value, 0.05, against="none") for name, value in parts.items()]
    rows += [row("RSL sharpen 1 / 0.3", "loss", -9, 0.05, against="none", gate="top_3")]
    found = [v for v in losses_verdicts([*FOUR_LOADS, *TOP, *rows]) if "at once" in v.claim]
    assert [verdict.status for verdict in found] == [status]
    assert not [v for v in losses_verdicts([*FOUR_LOADS, *TOP, *rows[1:]]) if "at once" in v.claim]


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"a": (1.005, 0.5, 0.01), "b": (1.0, 0.4, 0.02)}, "held"),  # its loss lies inside the margin
        ({"a": (1.015, 0.5, 0.01), "b": (1.0, 0.4, 0.02)}, "not held"),
        ({"a": (1.0, 0.5, 0.03), "b": (1.1, 0.4, 0.02)}, "not held"),
        ({"a": (1.0, 0.3, 0.01), "b": (1.1, 0.4, 0.02)}, "not held"),
    ],
)
def test_one_cell_is_the_best_when_nobody_beats_it_in_anything(values, status):
    names = ("loss", "mutual_information", "load_variance")
    rows = [
        row(setting, name, value, 0)
        for setting, found in values.items() for name, value in zip(names, found, strict=True)
    ]  # fmt: skip
    (verdict,) = [v for v in grid_verdicts([*FOUR_LOADS, *TOP, *rows]) if "one cell" in v.claim]
    assert verdict.status == status


def test_the_other_rules():
    (verdict,) = top_k_verdicts([row("RSL", "loss", -0.1, 0.05, gate="top_2", against="top_1")])
    assert (verdict.status, verdict.claim) == ("held", "k = 2 has a lower test loss than k = 1")
    (verdict,) = balance_curve_verdicts([row("RSL", "balance", 0.1, 0.05, part="last − first")])
    assert verdict.status == "not held"
    both = [
        row("RSL", "loss", -0.2, 0.1, against="backbone alone", gate="top_3"),
        row("RSL", "loss", -0.2, 0.1, against="oracle: the domain's own expert", gate="top_3"),
    ]
    assert [verdict.status for verdict in oracle_verdicts(both)] == ["held", "not held"]


@pytest.mark.parametrize(("largest", "status"), [(0.97, "held"), (0.99, "not held"), (0.98, "undecided")])
def test_the_theorem_is_judged_by_its_bound(largest, status):
    rows = [row("flatten", "largest_ratio", largest, 0.001, bound=0.98, steps=400.0)]
    assert convergence_verdicts(rows)[0].status == status
    one_seed = [{**rows[0], "covers": "nothing", "seeds": 1.0}]
    assert convergence_verdicts(one_seed)[0].status == "undecided"


def candidate(setting: str, loss: float, information: float) -> list[dict]:
    return [
        row(setting, "loss", loss, 0.05, gate="top_3"),
        row(setting, "loss", loss - 1, 0.05),
        row(setting, "mutual_information", information, 0.05),
    ]


@pytest.mark.parametrize(
    ("losses", "ships"),
    [((1.0, 1.005, 1.02), "b"), ((1.0, 1.011, 1.02), "a"), ((1.0, 1.005, 1.009), "c")],
)
def test_the_rsl_that_ships_has_the_most_information_among_those_near_the_lowest_loss(losses, ships):
    rows = [*candidate("a", losses[0], 0.1), *candidate("b", losses[1], 0.2), *candidate("c", losses[2], 0.3)]
    loss, information = chosen(rows)
    assert (loss["setting"], loss["gate"]) == (ships, "top_3")
    assert information["value"] == {"a": 0.1, "b": 0.2, "c": 0.3}[ships]


def test_candidates_of_another_size_are_no_rivals():
    few = [{**found, "examples": 500.0} for found in candidate("a", 0.5, 0.9)]
    both = [*few, *candidate("a", 1.0, 0.1), *candidate("b", 1.005, 0.2)]
    for rows in (both, both[::-1]):
        loss, information = chosen(rows)
        assert (loss["setting"], loss["examples"], information["value"]) == ("b", 2000.0, 0.2)


def test_a_line_of_a_table_says_on_how_many_seeds_it_stands():
    three, one = row("a", "loss", 1.0, 0.1), row("a", "loss", 2.0, 0.1, seeds=1.0)
    assert table_line("a", [three, one, None]) == [
        "a (3 seeds)",
        "1.000 [0.900, 1.100]",
        "2.000 [1.900, 2.100] (1 seed)",
        "–",
    ]
    assert table_line("a", [one]) == ["a", "2.000 [1.900, 2.100]"]
    assert table_line("a", [row("a", "loss", 1.0, 0.0, covers="nothing", seeds=1.0)]) == ["a", "1.000"]
