"""The training commands as two processes: the same run, written once, at another speed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainingArguments

from loramixer import RunLog
from loramixer.errors import LoraMixerError
from loramixer.training.batches import RowCollator, SpreadRows, row_costs, spread_evenly
from loramixer.training.checkpoints import last_whole_checkpoint
from loramixer.training.experts import train_experts
from loramixer.training.loop import training_arguments
from loramixer.training.presets import CPU_SMALL, PAPER
from loramixer.training.routers import find_experts, train_router
from loramixer.training.settings import LoopSettings
from tests import tiny

ROOT = Path(__file__).parents[2]
ROWS = 45  # five batches and one that is not full


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """A module as two processes of one thread each, on the processor."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    variables = {"PYTHONPATH": f"{ROOT}/lib:{ROOT}", "OMP_NUM_THREADS": "1", "LORAMIXER_DATA": "generated"}
    return subprocess.run(
        [sys.executable, *launcher, "-m", *map(str, words)],
        env={**os.environ, **variables, "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny backbone, two experts of it, and in ``alone`` a router that this one process trained."""
    folder = tmp_path_factory.mktemp("processes")
    tiny.llama().save_pretrained(folder / "backbone")
    tiny.tokenizer().save_pretrained(folder / "backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAMIXER_DATA", "generated")
        settings = {"backbone": str(folder / "backbone"), "dtype": torch.float32}
        train_experts(folder / "experts", ["math", "language"], limit=8, rank=2, **settings)
        experts = find_experts(str(folder / "experts"))
        train_router(folder / "alone", experts, examples=ROWS, routers_only=True, **settings)
    return folder


@pytest.fixture(scope="module")
def together(workshop: Path) -> tuple[Path, str]:
    """The same router by two processes, and what they said."""
    done = run(
        "loramixer", "train-router", "--mixer", workshop / "experts", "--backbone", workshop / "backbone",
        "--output", workshop / "together", "--examples", ROWS, "--dtype", "float32", "--routers-only",
        "--keep-routers-at", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return workshop / "together", done.stdout


def assert_same_routers(first: Path, second: Path) -> None:
    expected, found = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-3)


def test_two_processes_train_the_same_routers_as_one(workshop, together):
    assert_same_routers(workshop / "alone", together[0])


def test_their_log_is_that_of_the_whole_run(workshop, together):
    first, second = RunLog.load(workshop / "alone"), RunLog.load(together[0])
    assert (first.settings["processes"], second.settings["processes"]) == (1, 2)
    assert second.summary["tokens"] == first.summary["tokens"]
    assert [row["step"] for row in second.steps] == [row["step"] for row in first.steps] != []
    for row, expected in zip(second.steps, first.steps, strict=True):
        assert row["tokens"] == expected["tokens"]
        for term in ("loss", "task_loss", "routing_loss", "token_entropy", "load_entropy", "balance"):
            assert row[term] == pytest.approx(expected[term], rel=1e-3, abs=1e-4), term
        assert row["own_expert_share"] == pytest.approx(expected["own_expert_share"], abs=2e-4)


def test_one_of_them_speaks_and_writes(together):
    folder, said = together
    assert said.count("Training ") == said.count(" tokens in ") == 1
    assert (folder / "routers/step-00002/adapter_model.safetensors").is_file()
    assert not (folder / "checkpoints").exists()


def test_a_stopped_run_goes_on_in_both_and_experts_train_too(workshop, tmp_path):
    """It is stopped in its second epoch of three steps, whose order is another than that of the first."""
    words = "tests.scripts.training_in_processes", workshop / "experts", workshop / "backbone", tmp_path
    stopped = run(*words, 4)
    assert "stopped at step 4" in stopped.stderr
    assert str(last_whole_checkpoint(tmp_path / "router/checkpoints")).endswith("checkpoint-4")
    done = run(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAMIXER_DATA", "generated")
        settings = {"backbone": str(workshop / "backbone"), "dtype": torch.float32, "routers_only": True}
        preset = replace(CPU_SMALL, routers=replace(CPU_SMALL.routers, epochs=2))
        train_router(
            tmp_path / "alone", find_experts(str(workshop / "experts")), examples=20, preset=preset, **settings
        )
    assert RunLog.load(tmp_path / "router").summary["tokens"] == RunLog.load(tmp_path / "alone").summary["tokens"]
    assert_same_routers(tmp_path / "alone", tmp_path / "router")
    for folder in (tmp_path / "one by one/math", tmp_path / "jointly/language"):
        assert RunLog.load(folder).settings["processes"] == 2
        assert {"adapter_model.safetensors", "README.md"} <= {path.name for path in folder.iterdir()}


def test_more_processes_than_rows_are_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "9")
    with pytest.raises(LoraMixerError, match="batch_size is 8, too few rows of a forward pass for 9 processes; start"):
        training_arguments(tmp_path, LoopSettings(1e-3), RowCollator(0, in_line=True, answers_only=True))


def test_one_row_in_a_forward_pass_is_for_one_process_unless_more_are_asked_for(monkeypatch, tmp_path):
    """The preset of the paper on two GPUs."""
    monkeypatch.setattr("loramixer.training.loop.launched_processes", lambda: 2)
    collator = RowCollator(0, in_line=True, answers_only=True)
    with pytest.raises(LoraMixerError, match=r"start at most 1, or raise batch_size \(--batch-size\)\.$"):
        training_arguments(tmp_path, PAPER.experts, collator)
    arguments = training_arguments(tmp_path, PAPER.experts.changed(batch_size=2), collator)
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (1, 4)


def test_one_process_uses_one_of_several_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    arguments = training_arguments(tmp_path, LoopSettings(1e-3), RowCollator(0, in_line=True, answers_only=True))
    assert arguments._n_gpu == 1


@pytest.mark.parametrize("processes", [2, 3])
def test_every_row_goes_to_one_process_and_work_is_even(processes):
    lengths = torch.randint(20, 500, (61,), generator=torch.Generator().manual_seed(0)).tolist()
    order = torch.randperm(61, generator=torch.Generator().manual_seed(7)).tolist()
    parts = [list(SpreadRows(lengths, 8, processes, rank, seed=7)) for rank in range(processes)]
    assert {len(part) for part in parts} == {8}
    for number, spread in enumerate(zip(*parts, strict=True)):
        assert all(spread)
        assert sorted(row for part in spread for row in part) == sorted(order[8 * number : 8 * number + 8])
    tokens = [[sum(lengths[row] for row in rows) for rows in part] for part in parts]
    busiest = sum(max(step) for step in zip(*tokens, strict=True))
    assert busiest < {2: 1.02, 3: 1.06}[processes] * sum(lengths) / processes


@given(st.lists(st.integers(1, 1000), min_size=4, max_size=20), st.integers(1, 4))
def test_costs_are_spread_over_parts_none_of_which_is_empty(costs, parts):
    found = spread_evenly(costs, parts)
    assert len(found) == parts
    assert all(found)
    assert sorted(place for part in found for place in part) == list(range(len(costs)))


def test_costs_are_spread_by_their_differences():
    """The example of the method: taking the largest first would give sums of 17 and 13, here they are 16 and 14."""
    found = spread_evenly([8, 7, 6, 5, 4], 2)
    assert sorted(sum([8, 7, 6, 5, 4][place] for place in part) for part in found) == [14, 16]


def test_the_work_of_a_row_by_hand():
    llama = tiny.llama()
    head = llama.lm_head.weight.numel()
    layers = sum(
        parameter.numel() for name, parameter in llama.named_parameters() if "layers" in name or "model.norm" in name
    )
    pair = 2 * llama.config.hidden_size * llama.config.num_hidden_layers
    rows = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [1], "labels": [-100]}]
    assert row_costs(llama, rows) == [6 * layers + 4 * head + 27 * pair, 2 * layers + 3 * pair]
