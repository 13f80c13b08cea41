"""Runs that survive: what is logged while they go, what stops them, and what is left of them then."""

from __future__ import annotations

import errno
import importlib.util
import math
import signal
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from loramixer import LoraMixerError, RunLog, load_mixer, train_router
from loramixer.data import Example
from loramixer.errors import MixerError
from loramixer.training import loop
from loramixer.training.batches import RowCollator
from loramixer.training.checkpoints import KeepRouters, last_whole_checkpoint
from loramixer.training.loop import REPORTERS, LoopSettings, run_training, training_arguments
from loramixer.training.presets import CPU_SMALL, PAPER
from loramixer.training.routers import RoutingStatistics, frozen_experts_in_backbone_dtype, router_config
from loramixer.training.same_run import refuse_other_run
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import active_runtime
from tests import tiny
from tests.architectures import ARCHITECTURES
from tests.integration.test_router_training import SETTINGS, complete, router_weights, rows, start, training_mixture


def labelled_rows() -> list[dict]:
    return [{**row, "id": f"task/{n}", "expert_index": n % 4 - 1} for n, row in enumerate(rows())]


def run(model, folder: Path, settings: LoopSettings = SETTINGS, given=None, **more) -> RunLog:
    return run_training(model, tiny.tokenizer(), given or labelled_rows(), folder, settings, RunLog({}), **more)


def test_every_logged_row_tells_speed_terms_and_shares(experts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("loramixer.training.loop.SECONDS_BETWEEN_LINES", math.inf)
    model = training_mixture(experts)
    statistics = RoutingStatistics(model.base_model, list(experts))
    log = run(model, tmp_path, callbacks=[statistics], statistics=statistics.take)
    assert [row["step"] for row in log.steps] == [2, 4, 6, 8, 10, 12]
    for row in log.steps:
        assert {"loss", "task_loss", "routing_loss", "balance", "token_entropy", "load_entropy"} <= set(row)
        assert row["mutual_information"] == pytest.approx(row["load_entropy"] - row["token_entropy"], abs=2e-5)
        assert row["tokens_per_second"] > 0
    assert set(log.steps[0]["own_expert_share"]) == {"a", "b", "c"}
    assert [row["tokens"] for row in log.steps] == [64, 128, 192, 256, 320, 384]
    assert log.steps[-1]["seconds_left"] == 0
    assert log.steps == RunLog.load(tmp_path).steps
    assert log.summary["tokens"] == 384
    assert log.summary["padding_share"] == 0
    assert log.summary["backbone_share"] > 0
    printed = capsys.readouterr().out
    # Two points are no reading pace: the log has every step, the screen the first and the last.
    assert [line.split(" ·")[0] for line in printed.splitlines() if line.startswith("step ")] == [
        "step 2/12",
        "step 12/12",
    ]
    assert "the backbone alone, forward and backward, takes" in printed


class StopAtStep(TrainerCallback):
    """Ends a training before its last step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == 5


def test_a_run_that_ends_early_counts_only_what_it_trained_on(experts, tmp_path):
    log = run(training_mixture(experts), tmp_path, callbacks=[StopAtStep()], measure_speed=False)
    assert log.summary["tokens"] == 5 * 32
    assert log.summary["tokens_per_second"] == pytest.approx(160 / log.summary["seconds"], rel=0.01)


def test_the_padding_of_backbones_that_need_it_is_counted(tmp_path):
    lengths = [4, 8] * 4
    given = [{"input_ids": list(range(3, 3 + n)), "labels": list(range(3, 3 + n))} for n in lengths]
    model = get_peft_model(
        ARCHITECTURES["falcon-mamba"].build(), LoraConfig(target_modules=["in_proj"], task_type="CAUSAL_LM")
    )
    log = run(model, tmp_path, LoopSettings(1e-3, batch_size=8), given)
    assert log.settings["rows_in_line"] is False
    assert log.summary["padding_share"] == 0.25


def test_measuring_the_backbone_leaves_the_trained_weights_as_they_are(experts, tmp_path, monkeypatch):
    import loramixer.training.loop as loop

    measured = training_mixture(experts)
    run(measured, tmp_path / "measured")
    monkeypatch.setattr(loop, "measure_backbone", lambda model, batches: {})
    plain = training_mixture(experts)
    run(plain, tmp_path / "plain")
    for (name, first), (_, second) in zip(measured.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(first, second), name
        assert first.requires_grad == second.requires_grad, name


def test_a_run_resumes_without_its_run_log(experts, tmp_path):
    settings = LoopSettings(learning_rate=1e-2, batch_size=2, save_steps=2, log_steps=100)
    whole = training_mixture(experts)
    run(whole, tmp_path / "whole", settings)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(training_mixture(experts), tmp_path / "cut", settings, callbacks=[Stop()])
    assert last_whole_checkpoint(tmp_path / "cut/checkpoints").endswith("checkpoint-2")
    assert not (tmp_path / "cut/run_log.json").is_file()
    resumed = training_mixture(experts, seed=77)
    run(resumed, tmp_path / "cut", settings)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)


def test_a_run_in_bfloat16_resumes_to_the_same_weights(experts, tmp_path):
    from loramixer import LoraMixerConfig

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                raise ZeroDivisionError

    def go(folder: Path, **more) -> list[torch.Tensor]:
        config = LoraMixerConfig(experts=dict(experts), task_type="CAUSAL_LM", routing_loss="rsl", router_init_std=0.5)
        model = get_peft_model(tiny.llama().to(torch.bfloat16), config).train()
        for name, matrix in model.named_parameters():
            if "_A." in name or "_B." in name:
                matrix.data = matrix.data.bfloat16().float()
        with frozen_experts_in_backbone_dtype(model) as dtype:
            assert dtype == "bfloat16"
            run(model, folder, **more)
        return [value for name, value in model.named_parameters() if "lora_mixer_" in name]

    torch.manual_seed(0)
    whole = go(tmp_path / "whole")
    torch.manual_seed(0)
    with pytest.raises(ZeroDivisionError):
        go(tmp_path / "cut", callbacks=[Stop()])
    for first, second in zip(whole, go(tmp_path / "cut"), strict=True):
        assert torch.equal(first, second)
        assert first.requires_grad == second.requires_grad


def test_checkpoints_of_other_settings_are_refused(experts, tmp_path):
    def go(model, **settings):
        log = RunLog({"loss": "rsl", "rows_fingerprint": "abc", "threads": 1, **settings})
        callbacks = [StopAtStep()] if model is cut else []
        run_training(model, tiny.tokenizer(), labelled_rows(), tmp_path, SETTINGS, log, callbacks)

    cut = training_mixture(experts)
    go(cut)
    for settings, said in (
        ({"loss": "load_balance", "rows_fingerprint": "def"}, "loss rsl, now load_balance"),
        ({"rows_fingerprint": "def"}, "other training rows"),
    ):
        with pytest.raises(LoraMixerError, match=rf"other settings \({said}\); give another output"):
            go(training_mixture(experts), **settings)
    go(training_mixture(experts), threads=2, licenses={})  # on another machine, say
    assert RunLog.load(tmp_path).steps[-1]["step"] == 12


def rows_as_examples() -> list[Example]:
    return [Example(str(number), "t", "math", "the dose", "ten") for number in range(24)]


def test_a_finished_router_of_other_settings_is_not_taken_for_the_one_asked_for(kept, experts, monkeypatch):
    monkeypatch.delenv("LORAMIXER_DATA", raising=False)
    before = (kept / "adapter_model.safetensors").read_bytes()

    def again(**settings):
        usual = {"examples": 24, "backbone": str(kept.parent / "backbone"), "dtype": torch.float32}
        return train_router(kept, experts, **{**usual, **settings})

    assert again() == kept
    for settings, said in (
        ({"loss": "load_balance"}, "loss rsl, now load_balance"),
        ({"examples": 16}, "examples 24, now 16"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"top_k": 1}, "top k 3, now 1"),
        ({"noise_std": 0.5}, r"noise std 0\.0, now 0\.5"),
        ({"source": "generated", "examples": rows_as_examples()}, "other training rows"),
    ):
        with pytest.raises(LoraMixerError, match=said):
            again(**settings)
    log = RunLog.load(kept)
    monkeypatch.setitem(log.settings, "rows_content", "0" * 12)  # as of rows that were corrected since
    log.save(kept)
    with pytest.raises(LoraMixerError, match="other training rows"):
        again()
    monkeypatch.undo()
    log.save(kept)
    first, *others = experts
    swapped = {first: experts[others[0]], **{name: experts[name] for name in others}}
    with pytest.raises(LoraMixerError, match="expert weights"):
        train_router(kept, swapped, examples=24, backbone=str(kept.parent / "backbone"), dtype=torch.float32)
    assert (kept / "adapter_model.safetensors").read_bytes() == before


def test_what_a_router_cannot_be_trained_with_is_refused(kept, experts, tmp_path, monkeypatch):
    monkeypatch.delenv("LORAMIXER_DATA", raising=False)

    def train(**settings):
        usual = {"examples": rows_as_examples(), "backbone": str(kept.parent / "backbone"), "dtype": torch.float32}
        return train_router(tmp_path / "mixture", experts, **{**usual, **settings})

    for settings, said in (
        ({"examples": 0}, "examples is 0; give at least 1"),
        ({"loss": "supervised"}, "loss 'supervised' needs rows of the experts' own domains, and the rows are of math"),
        ({"training_gate": "domain"}, "training_gate 'domain' needs rows of the experts' own domains"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0"),
    ):
        with pytest.raises(LoraMixerError, match=said):
            train(**settings)
    assert not (tmp_path / "mixture").exists()


def test_own_experts_are_those_of_the_gates_in_any_order(kept, experts, tmp_path, monkeypatch):
    monkeypatch.delenv("LORAMIXER_DATA", raising=False)
    rows = [Example(str(number), "t", "b", "the dose", "ten") for number in range(48)]
    folder = train_router(
        tmp_path / "mixture", experts, examples=rows, backbone=str(kept.parent / "backbone"), dtype=torch.float32,
        loss="supervised", balance_weight=50.0, learning_rate=0.5, expert_order=["c", "b", "a"],
    )  # fmt: skip
    log = RunLog.load(folder)
    assert log.settings["experts"] == ["c", "b", "a"]
    assert list(log.steps[-1]["own_expert_share"]) == ["b"]
    model, _ = load_mixer(folder, backbone=str(kept.parent / "backbone"))
    assert active_runtime(model).experts == ("c", "b", "a")


def test_a_run_of_one_process_is_not_gone_on_with_by_several_where_lengths_are_grouped(tmp_path):
    """Each of the two ways orders rows by length in its own way; some would come twice and others never."""
    asked = {"group_by_length": True, "rows_in_line": False, "processes": 2}
    RunLog({**asked, "processes": 1}).save(tmp_path)
    with pytest.raises(LoraMixerError, match="several group rows by length in another order than one"):
        refuse_other_run(tmp_path, asked)
    refuse_other_run(tmp_path, {**asked, "processes": 1})
    for harmless in ({"rows_in_line": True}, {"group_by_length": False}):
        RunLog({**asked, "processes": 1, **harmless}).save(tmp_path)
        refuse_other_run(tmp_path, {**asked, **harmless})
    RunLog({**asked, "processes": 3}).save(tmp_path)
    refuse_other_run(tmp_path, asked)


@pytest.fixture
def rows_by_step(monkeypatch) -> list[tuple[int, list[int]]]:
    """Step and rows of every forward pass of the trainings that follow."""
    seen: list[tuple[int, list[int]]] = []
    step = loop._WatchedTrainer.training_step

    def watched(self, model, inputs, *given):
        seen.append((self.state.global_step, inputs["row"].tolist()))
        return step(self, model, inputs, *given)

    monkeypatch.setattr(loop._WatchedTrainer, "training_step", watched)
    return seen


@pytest.mark.parametrize(("stopped_at", "goes_on_at"), [(13, 12), (18, 16)])  # of the second epoch: begin and midst
def test_rows_of_like_length_come_in_the_same_order_after_a_kill(tmp_path, rows_by_step, stopped_at, goes_on_at):
    """On a padded backbone each epoch has an order of its own, and a run that goes on keeps it."""
    lengths = torch.randint(4, 12, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    given = [{"input_ids": ids, "labels": ids} for ids in (list(range(3, 3 + length)) for length in lengths)]
    settings = LoopSettings(1e-2, batch_size=2, epochs=3, save_steps=4, group_by_length=True, seed=4)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == stopped_at:
                raise ZeroDivisionError

    def go(folder: Path, **more) -> list[torch.Tensor]:
        config = LoraConfig(target_modules=["in_proj"], lora_dropout=0.2, task_type="CAUSAL_LM")
        backbone = ARCHITECTURES["falcon-mamba"].build()
        torch.manual_seed(2)
        model = get_peft_model(backbone, config)
        run(model, folder, settings, given, measure_speed=False, **more)
        return [parameter for parameter in model.parameters() if parameter.requires_grad]

    whole = go(tmp_path / "whole")
    order = [rows for _, rows in rows_by_step]
    epochs = [[row for rows in order[first : first + 12] for row in rows] for first in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    spread = [abs(lengths[first] - lengths[second]) for first, second in order]
    assert sum(spread) < 72  # at random it would be about 95

    rows_by_step.clear()
    with pytest.raises(ZeroDivisionError):
        go(tmp_path / "cut", callbacks=[Stop()])
    rows_by_step.clear()
    resumed = go(tmp_path / "cut")
    assert rows_by_step == list(enumerate(order))[goes_on_at:]
    for first, second in zip(whole, resumed, strict=True):
        assert torch.equal(first, second)


def broken(experts, part: str):
    model = training_mixture(experts)
    layer = next(module for module in model.modules() if isinstance(module, LoraMixerLayer))
    if part == "loss":
        with torch.no_grad():
            layer.lora_mixer_router["default"].weight.fill_(torch.nan)
    else:
        layer.lora_mixer_router["default"].weight.register_hook(lambda gradient: gradient * torch.nan)
    return model


@pytest.mark.parametrize(("part", "said"), [("loss", "The loss is nan"), ("gradient", "A gradient is no number")])
def test_what_is_no_number_stops_the_run_and_names_its_rows(experts, tmp_path, part, said):
    model = broken(experts, part)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(LoraMixerError, match=rf"{said} at step 1, in the batch of rows task/\d+, task/\d+.*no checkp"):
        run(model, tmp_path)
    if part == "gradient":  # it never reached the weights
        assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.fixture(scope="module")
def whole(experts, tmp_path_factory) -> bytes:
    """The weights of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    complete(experts, folder)
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("trouble", ["full", "interrupt"])
def test_a_full_disk_and_ctrl_c_leave_the_last_checkpoint_good(experts, whole, tmp_path, trouble):
    process = start(experts, tmp_path, 0, trouble)
    out, errors = process.communicate()
    said = out if trouble == "interrupt" else errors
    assert process.returncode != 0
    assert f"{tmp_path}/checkpoints/checkpoint-4 is good, and the same command goes on from step 4" in said
    if trouble == "full":
        assert "LoraMixerError: A file in" in errors
        assert (tmp_path / "checkpoints/checkpoint-8").is_dir()  # cut short
    else:
        assert process.returncode in (1, 130, -signal.SIGINT)
    complete(experts, tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == whole


@pytest.fixture(scope="module")
def kept(experts, tmp_path_factory) -> Path:
    """A router that was trained on a tiny backbone, with routers kept along the way."""
    folder = tmp_path_factory.mktemp("kept")
    tiny.llama().save_pretrained(folder / "backbone")
    tiny.tokenizer().save_pretrained(folder / "backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAMIXER_DATA", raising=False)
        train_router(
            folder / "mixture",
            experts,
            examples=24,
            backbone=str(folder / "backbone"),
            dtype=torch.float32,
            keep_routers_at=[0, 2, 3],
            command="loramixer train-router",
        )
    return folder / "mixture"


def routers_of(folder: Path) -> torch.Tensor:
    model, _ = load_mixer(folder)
    return router_weights(model)


def test_routers_kept_along_the_way_are_small_mixtures(kept):
    folders = sorted((kept / "routers").iterdir())
    assert [folder.name for folder in folders] == ["step-00000", "step-00002", "step-00003"]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        assert (folder / "adapter_model.safetensors").stat().st_size < 12_000
    first, second, last = map(routers_of, folders)
    assert not torch.equal(first, second)
    assert torch.equal(last, routers_of(kept))  # three steps of eight rows
    assert (kept / "adapter_model.safetensors").stat().st_size > 12_000  # experts too, as asked for


def test_the_log_and_the_card_of_a_router_say_preset_and_speed(kept):
    log = RunLog.load(kept)
    assert log.settings["preset"] == "cpu-small"
    assert (log.settings["rows_left_out"], log.settings["answers_cut"]) == (0, 0)
    assert log.settings["rows_in_line"] is True
    card = (kept / "README.md").read_text()
    assert "preset cpu-small" in card
    assert "whatever else the machine was doing" in card
    assert "of a step" not in card  # two batches beside other work are no measurement


def fill_disk(*args, **kwargs):
    """In place of whatever writes a file."""
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_between_weights_and_card_leaves_no_finished_mixture(kept, experts, tmp_path, capsys):
    def train() -> None:
        train_router(tmp_path, experts, examples=24, backbone=str(kept.parent / "backbone"), dtype=torch.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAMIXER_DATA", raising=False)
        patch.setattr("loramixer.training.routers.write_router_card", fill_disk)
        with pytest.raises(LoraMixerError, match="checkpoint-3 is good, and the same command goes on from step 3"):
            train()
        weights = (tmp_path / "adapter_model.safetensors").read_bytes()
        patch.undo()
        patch.delenv("LORAMIXER_DATA", raising=False)
        train()
        assert "holds a finished mixture" not in capsys.readouterr().out
        assert (tmp_path / "README.md").is_file()
        assert (tmp_path / "adapter_model.safetensors").read_bytes() == weights
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]
        train()
        assert "holds a finished mixture" in capsys.readouterr().out


def test_routers_cannot_be_kept_where_experts_train_or_beyond_the_end(experts, tmp_path):
    model = training_mixture(experts)
    with pytest.raises(LoraMixerError, match=r"keep_routers_at is \[99\]; this run has the steps 0 .* to 12"):
        run(model, tmp_path, callbacks=[KeepRouters(model, tmp_path, [99])])
    with pytest.raises(MixerError, match="keeps routers alone, but experts train too"):
        KeepRouters(training_mixture(experts, train_experts=True), tmp_path, [1])


def test_routers_and_experts_train_together_straight_through(experts, tmp_path):
    model = training_mixture(experts, train_experts=True, training_gate="straight_through", top_k=1)
    before = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    run(model, tmp_path)
    after = dict(model.named_parameters())
    for part in ("lora_mixer_router", "lora_mixer_A", "lora_mixer_B"):
        names = [name for name in before if part in name and "q_proj" in name]  # where all three experts act
        assert len(names) == 2
        assert all(not torch.equal(before[name], after[name]) for name in names)


def test_straight_through_acts_as_top_k_and_its_routers_learn_from_all_gates(experts):
    ids, found = tiny.token_ids(), {}
    for gate in ("top_k", "straight_through"):
        model = training_mixture(experts, routing_loss="none", train_experts=True, training_gate=gate, top_k=1)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
        found[gate] = loss.detach(), gradients
    (loss, of_top_k), (same_loss, gradients) = found.values()
    assert loss == same_loss
    for name, gradient in gradients.items():
        if "lora_mixer_router" in name:
            assert gradient.any() or "q_proj" not in name  # some sites have one expert and no choice
            assert not of_top_k[name].any()  # one expert's weight is 1 whatever the router says
    last = [name for name in gradients if "layers.1.self_attn.o_proj.lora_mixer_" in name and "router" not in name]
    assert len(last) == 2
    for name in last:  # weights of experts learn from the tokens that went to them, and from no others
        torch.testing.assert_close(gradients[name], of_top_k[name])


def test_presets_are_the_papers_and_the_shipped_ones(experts):
    config = router_config(PAPER, experts, routing_loss="rsl")
    assert (config.balance_weight, config.entropy_weight, config.scale) == (0.1, 0.05, "paper")
    assert (config.training_gate, config.gate, config.top_k) == ("top_k", "top_k", 3)
    assert (PAPER.rank, PAPER.lora_alpha, PAPER.dropout, PAPER.preservation_weight) == (64, 128, 0.1, 5e-5)
    loop = PAPER.routers
    assert (loop.batch_size, loop.accumulation, loop.learning_rate, loop.warmup) == (1, 4, 1e-5, 0.1)
    two = dict(list(experts.items())[:2])
    assert router_config(PAPER, two).top_k == 2
    assert router_config(CPU_SMALL, experts, balance_weight=7.0).balance_weight == 7.0


def test_balance_has_an_effect_with_as_many_experts_as_are_chosen(experts):
    """Where every token counts for all experts the balance term is a constant, so use is counted in another way."""
    four = {**experts, "d": experts["a"]}
    assert router_config(CPU_SMALL, four, routing_loss="rsl").usage == "top_k"
    assert router_config(CPU_SMALL, experts, routing_loss="rsl").usage == "top_1"
    assert router_config(CPU_SMALL, experts, routing_loss="rsl", top_k=2).usage == "top_k"
    assert router_config(CPU_SMALL, experts, routing_loss="rsl", usage="soft").usage == "soft"
    assert router_config(CPU_SMALL, experts, routing_loss="ds_moe").usage == "top_k"
    constant = router_config(CPU_SMALL, experts, routing_loss="rsl", usage="top_k")
    with pytest.warns(UserWarning, match=r"no effect: with 3 experts and top_k=3 .* usage='top_1' or 'soft', or a sm"):
        get_peft_model(tiny.llama(), constant)


@pytest.mark.parametrize("reporter", REPORTERS)
def test_reporters_are_passed_on_or_named_when_missing(tmp_path, reporter):
    collator = RowCollator(0, True, True)
    settings = LoopSettings(1e-3, report_to=reporter)
    if importlib.util.find_spec(reporter) is None:
        with pytest.raises(LoraMixerError, match=rf"'{reporter}', but this package is not installed; pip install"):
            training_arguments(tmp_path, settings, collator)
    else:
        assert training_arguments(tmp_path, settings, collator).report_to == [reporter]
    with pytest.raises(LoraMixerError, match="report_to is 'paper'; it can be none, trackio or tensorboard"):
        training_arguments(tmp_path, LoopSettings(1e-3, report_to="paper"), collator)
    assert training_arguments(tmp_path, LoopSettings(1e-3), collator).report_to == []


def test_tensorboard_shows_every_number_of_the_log_and_its_files_stay(kept, experts, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("LORAMIXER_DATA", raising=False)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    train_router(tmp_path / "router", experts, examples=40, backbone=str(kept.parent / "backbone"),
                 dtype=torch.float32, report_to="tensorboard", measure_speed=False)  # fmt: skip
    found = EventAccumulator(str(tmp_path / "router/tensorboard")).Reload()
    row = RunLog.load(tmp_path / "router").steps[-1]
    for name in ("loss", "task_loss", "token_entropy", "mutual_information", "tokens_per_second"):
        assert found.Scalars(f"train/{name}")[-1].value == pytest.approx(row[name], rel=1e-5)


def test_frozen_experts_are_held_as_the_backbone_only_where_nothing_is_rounded(experts):
    def types(model) -> set[torch.dtype]:
        return {value.dtype for name, value in model.named_parameters() if "_A." in name or "_B." in name}

    model = training_mixture(experts)
    model.get_base_model().model.to(torch.bfloat16)
    model.get_base_model().lm_head.to(torch.bfloat16)
    matrices = [value for name, value in model.named_parameters() if "lora_mixer_" in name]
    for matrix in matrices:
        matrix.data = torch.randn(matrix.shape)
    with frozen_experts_in_backbone_dtype(model) as dtype:  # random float32 weights
        assert dtype == "float32"
        assert types(model) == {torch.float32}
    for matrix in matrices:
        matrix.data = matrix.data.bfloat16().float()
    before = [matrix.clone() for matrix in matrices]
    with frozen_experts_in_backbone_dtype(model) as dtype:
        assert dtype == "bfloat16"
        assert types(model) == {torch.bfloat16}
        ids = tiny.token_ids()
        model(input_ids=ids, labels=ids).loss.backward()
    assert types(model) == {torch.float32}
    assert all(torch.equal(*pair) for pair in zip(matrices, before, strict=True))
