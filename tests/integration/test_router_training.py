"""Router training on the stock Trainer: statistics that are right, and runs that survive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from loramixer import RunLog
from loramixer.errors import MixerError
from loramixer.training.checkpoints import last_whole_checkpoint
from loramixer.training.loop import run_training
from loramixer.training.routers import RoutingStatistics, _WarmUpRoutingLoss
from loramixer.training.settings import LoopSettings
from loramixer.tuner import LoraMixerLayer
from tests import tiny
from tests.stock_trainer import one_step

LOSS = {"routing_loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.2, "dropout": 0.0}


def training_mixture(experts, **fields):
    return tiny.mixture(experts, **{**LOSS, **fields}).train()


def layers(model) -> list[LoraMixerLayer]:
    return [module for module in model.modules() if isinstance(module, LoraMixerLayer)]


def router_weights(model) -> torch.Tensor:
    return torch.cat([layer.lora_mixer_router["default"].weight.flatten() for layer in layers(model)])


def router_gradients(model) -> torch.Tensor:
    return torch.cat([layer.lora_mixer_router["default"].weight.grad.flatten() for layer in layers(model)])


def test_the_routing_loss_is_added_in_training_only(experts):
    ids = tiny.token_ids()
    plain, with_loss = training_mixture(experts, routing_loss="none"), training_mixture(experts)
    difference = with_loss(input_ids=ids, labels=ids).loss - plain(input_ids=ids, labels=ids).loss
    assert difference.item() == pytest.approx(with_loss.base_model.routing_statistics["routing_loss"].item(), abs=1e-5)
    assert difference > 0.5
    evaluated = with_loss.eval()(input_ids=ids, labels=ids).loss
    assert evaluated.item() == pytest.approx(plain.eval()(input_ids=ids, labels=ids).loss.item(), abs=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_neither_loss_nor_gradient(experts, side):
    ids = tiny.token_ids(2, 7)
    padding = torch.full((2, 4), 2)
    mask, ignored = torch.ones_like(ids), torch.full_like(padding, -100)

    def padded(inner, outer):
        return torch.cat([outer, inner] if side == "left" else [inner, outer], dim=1)

    results = []
    for batch in (
        {"input_ids": ids, "attention_mask": mask, "labels": ids},
        {
            "input_ids": padded(ids, padding),
            "attention_mask": padded(mask, torch.zeros_like(padding)),
            "labels": padded(ids, ignored),
        },
    ):
        if side == "left":  # what a padded batch means to the model
            batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
        model = training_mixture(experts)
        if side == "left":
            batch["labels"] = batch["labels"].clone()
            batch["labels"][:, -7] = -100  # the first token has no predecessor in one case and a pad in the other
        loss = model(**batch).loss
        loss.backward()
        results.append((loss.detach(), router_gradients(model), model.base_model.routing_statistics))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-6, rtol=1e-4)
    for name in ("token_entropy", "load_entropy", "balance"):
        torch.testing.assert_close(results[0][2][name], results[1][2][name])


def test_accumulation_does_not_multiply_the_routing_loss(experts, tmp_path):
    # The balance term is quadratic in the batch's means, so only terms that are linear in tokens can agree exactly.
    terms = {"balance_weight": 0.0, "entropy_weight": 1.0}
    rows = [{"input_ids": row, "labels": row, "attention_mask": torch.ones_like(row)} for row in tiny.token_ids(8, 9)]
    whole = one_step(training_mixture(experts, **terms), rows, tmp_path / "whole", 8, 1)
    accumulated = one_step(training_mixture(experts, **terms), rows, tmp_path / "parts", 2, 4)
    assert accumulated == pytest.approx(whole, rel=1e-3)


def test_accumulated_forwards_of_unlike_rows_take_the_step_of_one_forward(experts, tmp_path):
    """The task loss is a mean over answers, E[H] one over all tokens, of which long prompts have most."""
    lengths, answers = (9, 4, 12, 6), (1, 3, 2, 5)
    rows = [
        {"input_ids": ids[:length].tolist(), "labels": [-100] * (length - answer) + ids[:length].tolist()[-answer:]}
        for ids, length, answer in zip(tiny.token_ids(4, 12), lengths, answers, strict=True)
    ]
    found = []
    for batch_size, accumulation in ((4, 1), (1, 4)):
        model = training_mixture(experts, balance_weight=0.0, entropy_weight=1.0)
        settings = LoopSettings(
            learning_rate=1.0, batch_size=batch_size, accumulation=accumulation, warmup=0.0, log_steps=1
        )
        log = run_training(model, tiny.tokenizer(), rows, tmp_path / f"{accumulation}", settings, RunLog({}),
                           optimizer=(torch.optim.SGD, {"lr": 1.0}), measure_speed=False)  # fmt: skip
        assert log.steps[-1]["step"] == 1
        found.append(router_weights(model))
        assert model.base_model.tokens_of_step is None  # a loop of somebody else's begins without it
    start = router_weights(training_mixture(experts))
    torch.testing.assert_close(found[0] - start, found[1] - start, rtol=1e-3, atol=1e-5)


def test_the_routing_loss_grows_over_the_first_three_tenths(experts, tmp_path):
    model = training_mixture(experts)
    statistics = RoutingStatistics(model.base_model, list(experts))
    settings = LoopSettings(learning_rate=1e-2, batch_size=8, epochs=4, log_steps=1)
    watching = [_WarmUpRoutingLoss(model.base_model), statistics]
    log = run_training(model, tiny.tokenizer(), rows(), tmp_path, settings, RunLog({}), watching, statistics.take,
                       measure_speed=False)  # fmt: skip
    assert [row["loss_warmup"] for row in log.steps] == [0, 0.2778, 0.5556, 0.8333, *[1] * 8]  # of 3.6 steps
    for row in log.steps:
        expected = row["task_loss"] + row["loss_warmup"] * row["routing_loss"]
        assert row["loss"] == pytest.approx(expected, abs=2e-4)
        assert row["routing_loss"] > 0.5


def test_reentrant_checkpointing_is_refused_and_the_other_kind_counts_once(experts):
    ids = tiny.token_ids()
    reference = training_mixture(experts)
    reference(input_ids=ids, labels=ids).loss.backward()

    model = training_mixture(experts)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    statistics = dict(model.base_model.routing_statistics)
    loss.backward()
    torch.testing.assert_close(router_gradients(model), router_gradients(reference))
    for name, value in reference.base_model.routing_statistics.items():
        torch.testing.assert_close(statistics[name], value)

    model = training_mixture(experts)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(MixerError, match="use_reentrant"):
        model(input_ids=ids, labels=ids, use_cache=False)


def test_own_expert_share_is_per_row_and_without_padding(experts):
    model = training_mixture(experts)
    ids = tiny.token_ids(3, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 6])
    model(input_ids=ids, labels=ids, attention_mask=mask, expert_index=torch.tensor([0, 1, -1]))
    shares = model.base_model.routing_statistics["own_share"]
    assert not torch.isnan(shares[:2]).any()
    assert torch.isnan(shares[2])


SETTINGS = LoopSettings(learning_rate=1e-2, batch_size=2, accumulation=2, save_steps=4, log_steps=2, epochs=2)

CHILD = """
import os, resource, signal, sys, time
from pathlib import Path
from transformers import TrainerCallback
from tests import tiny
from tests.integration.test_router_training import complete
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
class Trouble(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(float(sys.argv[3]))
        if state.global_step == 6 and sys.argv[4] == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        if state.global_step == 6 and sys.argv[4] == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
complete({name: f"{sys.argv[1]}/{name}" for name in tiny.EXPERT_SHAPES}, Path(sys.argv[2]), [Trouble()])
"""


def complete(experts: dict[str, str], folder: Path, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train routers with experts, one of them held, and save; goes on where a run in ``folder`` was stopped."""
    model = training_mixture(experts, train_experts=True, preserve=["b"])
    statistics = RoutingStatistics(model.base_model, list(experts))
    watching = [_WarmUpRoutingLoss(model.base_model), statistics, *callbacks]
    run_training(model, tiny.tokenizer(), rows(), folder, SETTINGS, RunLog({}), watching, statistics.take)
    model.save_pretrained(folder, save_embedding_layers=False)


def rows() -> list[dict]:
    return [{"input_ids": row.tolist(), "labels": row.tolist()} for row in tiny.token_ids(24, 8)]


def start(experts: dict[str, str], folder: Path, pause: float, trouble: str = "none") -> subprocess.Popen:
    """A training run in a process of its own; at step 6 it can meet a full disk or Ctrl-C."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(Path(experts["a"]).parent), str(folder), str(pause), trouble],
        env={**os.environ, "PYTHONPATH": f"{root}/lib:{root}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_run_resumes_to_the_same_weights_and_log(experts, tmp_path):
    complete(experts, tmp_path / "whole")
    process = start(experts, tmp_path / "killed", 0.5)
    deadline = time.monotonic() + 120
    while last_whole_checkpoint(tmp_path / "killed" / "checkpoints") is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL

    complete(experts, tmp_path / "killed")
    whole, killed = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    first, second = (RunLog.load(tmp_path / name).steps for name in ("whole", "killed"))
    assert [row["step"] for row in first] == [row["step"] for row in second] == [2, 4, 6, 8, 10, 12]
    of_time = {"seconds", "seconds_left", "tokens_per_second"}
    for row, expected in zip(second, first, strict=True):
        assert row.keys() == expected.keys() > {"loss", "preservation_loss", "mutual_information", "loss_warmup"}
        assert {name: row[name] for name in row.keys() - of_time} == {
            name: expected[name] for name in row.keys() - of_time
        }
    # The killed part paused half a second at each of at least four steps, and its time is not forgotten.
    assert RunLog.load(tmp_path / "killed").summary["seconds"] > 1


def test_a_checkpoint_that_was_cut_short_is_passed_over(tmp_path):
    whole, names = '{"global_step": 4}', ("optimizer.pt", "scheduler.pt")
    for step, files, state in ((4, names, whole), (8, names[:1], ""), (12, names, '{"global_st'), (16, names, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in files:
            (folder / name).touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert last_whole_checkpoint(tmp_path / "nothing") is None


def test_steps_of_a_run_are_counted_to_its_end():
    last = {"step": 245, "epoch": 245 / 249}
    assert RunLog({"epochs": 1}, [last]).step_count == 249
    assert RunLog({"epochs": 0.6}, [{"step": 440, "epoch": 440 / 764}]).step_count == 459
    assert RunLog({"epochs": 1}, [{"step": 3}]).step_count == 3
    assert RunLog({"epochs": 1}).step_count == 0


def test_run_log_file_is_whole_and_readable(tmp_path):
    log = RunLog({"seed": 1}, [{"step": 1, "loss": 2.0}], {"seconds": 3})
    path = log.save(tmp_path)
    assert RunLog.load(tmp_path) == log == RunLog.load(path)
    assert set(json.loads(path.read_text())) == {"settings", "steps", "summary"}
