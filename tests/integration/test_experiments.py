"""Experiments end to end on a tiny backbone and generated rows: they resume, never repeat a row, and draw."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from loramixer.backbones import BackboneFiles, load_backbone
from loramixer.errors import DataError
from loramixer.evaluation import verdicts
from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.evidence import EVIDENCE, FEWER_EXPERTS
from loramixer.evaluation.experiments import EXPERIMENTS, runner, workshop
from loramixer.evaluation.experiments.losses import replayed
from loramixer.evaluation.experiments.measure import Measurement, _resamples, domain_information, measure
from loramixer.evaluation.experiments.plan import Options, Plan
from loramixer.evaluation.experiments.runner import describe, kept_steps, measure_finished, perform
from loramixer.evaluation.experiments.workshop import Workshop
from loramixer.evaluation.harness import RowScore, evaluate
from loramixer.mixers import load_mixer
from loramixer.training.run_log import RunLog
from loramixer.tuner.runtime import set_gate
from tests import tiny
from tests.integration.test_command_line import run_command

EXPERTS = ("math", "language")
OPTIONS = Options(experts=EXPERTS, seeds=(0, 1), examples=80)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Generated rows, and a grid of few cells."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAMIXER_DATA", raising=False)
        patch.setattr("loramixer.evaluation.experiments.grid.BALANCE_WEIGHTS", (0.1, 4.0))
        patch.setattr("loramixer.evaluation.experiments.grid.ENTROPY_WEIGHTS", (0.3,))
        yield


def options_of(name: str) -> Options:
    """Less for the experiments with the most runs, so that these tests take seconds."""
    return replace(OPTIONS, seeds=(0,), examples=8) if name in ("grid", "data-size") else OPTIONS


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A tiny backbone and two experts, and a work folder for all tests here."""
    folder = tmp_path_factory.mktemp("shop")
    tiny.llama().save_pretrained(folder / "backbone")
    tiny.tokenizer().save_pretrained(folder / "backbone")
    sources = {
        name: tiny.save_expert(folder / name, 1, r=rank, lora_alpha=16, target_modules=list(tiny.ALL_PROJECTIONS))
        for rank, name in enumerate(EXPERTS, start=2)
    }
    return Workshop(
        folder / "work",
        sources,
        backbone=str(folder / "backbone"),
        limit=3,
        training_dtype=torch.float32,
        archive=folder / "runs",
    )


@pytest.fixture(scope="module")
def output(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of every experiment."""
    folder = tmp_path_factory.mktemp("results")
    for name, experiment in EXPERIMENTS.items():
        perform(experiment, options_of(name), shop, folder, say=str)
    return folder


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_writes_its_numbers_and_figures(output, name):
    rows = read_csv(output / f"{name}.csv")
    assert rows
    for stem in EXPERIMENTS[name].figures:
        picture = ElementTree.parse(output / "figures" / f"{stem}.svg")
        assert picture.getroot().tag.endswith("svg")
        text = (output / "figures" / f"{stem}.svg").read_text()
        assert "nan" not in text
        assert "None" not in text


@pytest.mark.parametrize("name", ["losses", "choice", "grid", "data-size", "top-k", "oracle"])
def test_one_row_for_each_run(output, name):
    plan = EXPERIMENTS[name].plan(options_of(name))
    rows = read_csv(output / f"{name}.csv")
    assert [row["run"] for row in rows] == [run.name for run in plan.runs]
    assert len({row["run"] for row in rows}) == len(rows)
    for row in rows:
        assert (row["test_rows"], row["data"]) == (6, "generated")
        assert row["training_seconds"] > 0


def test_numbers_agree_with_the_command_that_evaluates(output, shop):
    """The mean over domains of the loss that `loramixer evaluate` prints, under the same gate."""
    run = EXPERIMENTS["losses"].plan(OPTIONS).runs[0]
    model, tokenizer = load_mixer(shop.router_folder(run), backbone=shop.backbone)
    set_gate(model, "soft")
    domains = evaluate(model, tokenizer, shop.test_rows())
    row = read_csv(output / "losses.csv")[0]
    assert row["run"] == run.name
    assert row["loss_soft"] == pytest.approx(np.mean([found.loss for found in domains]), rel=1e-5)
    assert row["loss_soft_low"] < row["loss_soft"] < row["loss_soft_high"]
    for found in domains:
        assert row[f"loss_{found.domain}_soft"] == pytest.approx(found.loss, rel=1e-5)
        assert row[f"own_share_{found.domain}"] == pytest.approx(found.own_expert_share, rel=1e-4)
    assert row["mutual_information"] == pytest.approx(row["load_entropy"] - row["token_entropy"], abs=1e-5)
    assert row["load_math"] + row["load_language"] == pytest.approx(1)
    for own, other in (("math", "language"), ("language", "math")):
        assert row[f"own_share_{own}"] + row[f"share_of_{other}_in_{own}"] == pytest.approx(1)


def test_gates_without_a_router_are_the_backbone_and_the_right_expert(output, shop):
    run = EXPERIMENTS["oracle"].plan(OPTIONS).runs[0]
    rows = {row["setting"]: row for row in read_csv(output / "oracle-summary.csv") if row["quantity"] == "loss"}
    matrix = {(row["expert"], row["domain"]): row["loss"] for row in read_csv(output / "expert-matrix.csv")}
    assert rows["backbone alone"]["value"] == pytest.approx(
        np.mean([matrix["backbone", name] for name in EXPERTS]), rel=1e-5
    )
    oracle = next(row for name, row in rows.items() if name.startswith("oracle"))
    assert oracle["value"] == pytest.approx(np.mean([matrix[name, name] for name in EXPERTS]), rel=1e-5)
    assert not (shop.measurement_file(shop.key(shop.test_rows()), run, "soft").parent / "off.npz").exists()


def test_differences_are_paired_by_seed_and_row(output):
    runs = {(row["setting"], row["seed"]): row for row in read_csv(output / "losses.csv")}
    summary = read_csv(output / "losses-summary.csv")
    row = next(
        row for row in summary if row["against"] == "none" and row["quantity"] == "loss" and row["gate"] == "soft"
    )
    ours = [runs[row["setting"], seed]["loss_soft"] - runs["none", seed]["loss_soft"] for seed in (0, 1)]
    assert row["value"] == pytest.approx(np.mean(ours), abs=1e-5)
    assert (row["seeds"], row["rows"], row["covers"]) == (2, 6, "seeds and rows")


def test_a_second_call_trains_and_measures_nothing(output, shop, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this was finished already")

    before = {path: path.read_bytes() for path in output.rglob("*.csv")}
    monkeypatch.setattr("loramixer.evaluation.experiments.runner.train_router", refuse)
    monkeypatch.setattr("loramixer.evaluation.experiments.runner.measure", refuse)
    monkeypatch.setattr("loramixer.evaluation.matrix.load_backbone", refuse)
    for name, experiment in EXPERIMENTS.items():
        # Fewer seeds than are stored: the file keeps all of them.
        options = replace(OPTIONS, seeds=(0,)) if name == "losses" else options_of(name)
        perform(experiment, options, shop, output, say=str, stored_only=name == "grid")
    assert {path: path.read_bytes() for path in output.rglob("*.csv")} == before


def test_tables_verdicts_and_figures_of_the_page_come_from_the_files(output):
    for folder in FEWER_EXPERTS:  # made by the same experiment with another --output
        (output / folder).mkdir()
        shutil.copy(output / "choice-summary.csv", output / folder)
    for name, make in EVIDENCE.items():
        text = make(output)
        assert text.strip(), name
        assert "nan" not in text
    found = EVIDENCE["losses-verdicts"](output)
    assert found.count("ends with uniform gates") == 2
    assert "RSL flatten 1 / 0.3 specialises" in found
    assert "2 seeds, 6 rows, interval over seeds and rows" in found
    assert "ships, out of RSL sharpen 1 / 0.3, RSL sharpen 4 / 0.3: loss" in EVIDENCE["chosen"](output)
    page = " ".join((Path(__file__).parents[2] / "docs/results.md").read_text(encoding="utf-8").split())
    assert verdicts.CHOICE in page.replace("> ", "")


def test_other_rows_or_a_lost_work_folder_never_spoil_a_file(output, shop, tmp_path):
    experiment = EXPERIMENTS["top-k"]
    with pytest.raises(DataError, match="other test rows"):
        perform(experiment, OPTIONS, replace(shop, limit=2), output, say=str)
    with pytest.raises(DataError, match="has not got"):
        perform(experiment, OPTIONS, replace(shop, work=tmp_path / "new", archive=tmp_path / "runs"), output, say=str)
    swapped = dict(zip(EXPERTS, reversed(list(shop.sources.values())), strict=True))
    with pytest.raises(DataError, match="begun with other experts"):
        perform(experiment, OPTIONS, replace(shop, sources=swapped), tmp_path, say=str)
    with pytest.raises(DataError, match=r"runs was begun with other experts .* give another --output"):
        perform(
            experiment,
            OPTIONS,
            replace(shop, sources=swapped, work=tmp_path / "fresh", archive=shop.records),
            tmp_path,
            say=str,
        )


def test_a_refusal_begins_no_folder(output, shop, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path))  # a folder without a data set
    for act in (perform, describe):
        more = (tmp_path / "results",) if act is perform else ()
        with pytest.raises(DataError, match="begun with other data"):
            act(EXPERIMENTS["top-k"], OPTIONS, replace(shop, work=tmp_path / "new"), *more)
    assert not (tmp_path / "new").exists()
    monkeypatch.delenv("LORAMIXER_DATA")
    monkeypatch.setattr(workshop, "backbone_files", lambda name: BackboneFiles(Path(), "hub", name, "0123"))
    with pytest.raises(DataError, match=r"begun with other weights of the backbone \(None, now 0123\)"):
        perform(EXPERIMENTS["top-k"], OPTIONS, replace(shop, work=tmp_path / "new"), tmp_path / "results", say=str)


@pytest.mark.parametrize("name", ["losses", "oracle", "expert-matrix", "balance-curve"])
def test_what_is_stored_is_written_again_without_any_rows(output, shop, tmp_path, monkeypatch, name):
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path))  # a folder without a data set
    perform(EXPERIMENTS[name], options_of(name), shop, tmp_path / "results", say=str, stored_only=True)
    assert (tmp_path / f"results/{name}.csv").read_bytes() == (output / f"{name}.csv").read_bytes()


def test_an_experiment_without_rows_asks_for_none(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(type(shop), "test_rows", lambda self: pytest.fail("nothing is measured on rows"))
    swapped = dict(zip(EXPERTS, reversed(list(shop.sources.values())), strict=True))  # another archive is no matter
    perform(
        EXPERIMENTS["convergence"], replace(OPTIONS, seeds=(0,)), replace(shop, sources=swapped), tmp_path, say=str
    )
    assert (tmp_path / "convergence-summary.csv").is_file()


def test_a_dry_run_names_what_is_left_and_takes_times_from_timed_runs_only(output, shop, tmp_path):
    experiment = EXPERIMENTS["top-k"]
    lines = describe(experiment, OPTIONS, replace(shop, work=tmp_path, archive=tmp_path / "runs"))
    assert lines[0].endswith("s0: train, top_1, top_2")
    assert "not known" in lines[-1]
    assert not list(tmp_path.iterdir())
    finished = describe(experiment, OPTIONS, shop)
    assert finished[0].endswith(": finished")
    assert "about 0.0 minutes" in finished[-1]
    # 60,000 further rows at the measured speed
    per_row, per_gate = shop.timings()
    lines = describe(experiment, replace(OPTIONS, seeds=(7,), examples=60_000), shop)
    assert f"about {(60_000 * per_row + 2 * per_gate) / 60:.1f} minutes" in lines[-1]


def test_without_the_weights_the_archive_is_enough_and_one_run_is_added(output, shop, tmp_path, monkeypatch):
    """A fresh clone has results and archive, and trains what is new."""
    trained = []
    train = runner.train_router
    monkeypatch.setattr(
        runner, "train_router", lambda folder, *a, **b: trained.append(folder) or train(folder, *a, **b)
    )
    shutil.copytree(output, tmp_path / "results")
    shutil.copytree(shop.records, tmp_path / "runs")
    clone = replace(shop, work=tmp_path / "work", archive=tmp_path / "runs")
    experiment = EXPERIMENTS["top-k"]
    assert describe(experiment, OPTIONS, clone)[0].endswith(": finished")
    perform(experiment, replace(OPTIONS, seeds=(0, 1, 2)), clone, tmp_path / "results", say=str)
    assert [folder.name[-3:] for folder in trained] == ["-s2"]
    rows = read_csv(tmp_path / "results" / "top-k.csv")
    assert rows[:2] == read_csv(output / "top-k.csv")
    assert [row["seed"] for row in rows] == [0, 1, 2]
    # A gate that nobody has measured stays blank: other routers of the same name would fill half of a row.
    (clone.records / clone.key(clone.test_rows()) / rows[0]["run"] / "top_1.npz").unlink()
    first = describe(experiment, OPTIONS, clone)[0]
    assert ": finished: top_1 not measured, since its routers are not in" in first
    assert f"delete {clone.log_file(experiment.plan(OPTIONS).runs[0])}" in first
    for stored_only in (True, False):
        perform(experiment, OPTIONS, clone, tmp_path / "results", say=str, stored_only=stored_only)
    assert len(trained) == 1
    assert read_csv(tmp_path / "results" / "top-k.csv")[0]["loss_top_1"] is None


def test_routers_of_other_rows_are_not_measured_into_a_run_of_the_archive(output, shop, tmp_path):
    """Rows were divided in another way when the archive was made: two routers of one name."""
    shutil.copytree(shop.records, tmp_path / "runs")
    mixed = replace(shop, archive=tmp_path / "runs")
    experiment = EXPERIMENTS["top-k"]
    run = experiment.plan(OPTIONS).runs[0]
    mixed.measurement_file(mixed.key(mixed.test_rows()), run, "top_1").unlink()
    log = RunLog.load(mixed.log_file(run))
    log.settings["rows_fingerprint"] = "0123456789ab"
    log.save_small(mixed.log_file(run))
    with pytest.raises(DataError, match="was trained on other rows than the run of"):
        perform(experiment, OPTIONS, mixed, tmp_path / "results", say=str)


def test_test_rows_that_were_corrected_are_other_test_rows(output, shop, tmp_path, monkeypatch):
    shutil.copytree(shop.records, tmp_path / "runs")
    later = replace(shop, archive=tmp_path / "runs")
    rows = shop.test_rows()
    corrected = [replace(rows[0], target=rows[0].target + "!"), *rows[1:]]
    assert later.key(corrected) == later.key(rows)
    monkeypatch.setattr(type(shop), "test_rows", lambda self: corrected)
    with pytest.raises(DataError, match="with the same ids and other words or answers"):
        perform(EXPERIMENTS["top-k"], OPTIONS, later, tmp_path / "results", say=str)


def test_two_processes_with_other_seeds_keep_each_others_rows(output, shop, tmp_path):
    """Each has read the file before the other has written; the last one to write drops nothing."""
    experiment = EXPERIMENTS["top-k"]
    first, second = (replace(OPTIONS, seeds=(seed,)) for seed in (0, 1))
    told = []

    def say(line):
        if not told:  # the other process runs while this one is at its first run
            told.append(line)
            perform(experiment, second, shop, tmp_path, say=str)

    perform(experiment, first, shop, tmp_path, say=say)
    assert {row["seed"] for row in read_csv(tmp_path / "top-k.csv")} == {0, 1}


def test_points_and_curves_never_become_fewer(output, shop, tmp_path):
    shutil.copytree(output, tmp_path / "results")
    for name in ("plane", "balance-curve"):
        perform(EXPERIMENTS[name], replace(options_of(name), seeds=(0,)), shop, tmp_path / "results", say=str)
        assert read_csv(tmp_path / f"results/{name}.csv") == read_csv(output / f"{name}.csv")


def test_the_routers_of_all_other_experiments_are_dots_on_the_plane(output, shop, tmp_path):
    shutil.copytree(output, tmp_path / "results")
    perform(EXPERIMENTS["plane"], OPTIONS, shop, tmp_path / "results", stored_only=True, say=str)
    rows = read_csv(tmp_path / "results/plane-others.csv")
    found = {(row["setting"], row["examples"], row["seed"]) for row in rows}
    assert len(found) == len(rows)
    assert ("RSL sharpen 4 / 0.3", 80, 1) in found  # a candidate
    assert not {run.setting for run in EXPERIMENTS["losses"].plan(OPTIONS).runs} & {
        name for name, n, _ in found if n == 80
    }
    for row in rows:
        assert 0 <= row["undecided"] <= row["balanced"] <= 1
        assert row["undecided_low"] <= row["undecided"] <= row["undecided_high"]
    assert f"{len(rows)} other routers" in (tmp_path / "results/figures/plane.svg").read_text()


def test_what_another_kind_of_device_measured_never_meets_it(shop, tmp_path):
    rows = shop.test_rows()
    there = replace(shop, device="cuda", archive=tmp_path)
    assert there.key(rows) == f"{shop.key(rows)}-cuda"
    assert replace(shop, device="cpu:0").key(rows) == shop.key(rows)
    (tmp_path / there.key(rows)).mkdir()
    here = replace(shop, archive=tmp_path)
    assert here.stored_key() == there.key(rows)  # nothing else was measured
    (tmp_path / here.key(rows)).mkdir()
    assert (here.stored_key(), there.stored_key()) == (here.key(rows), there.key(rows))


def test_numbers_say_how_many_rows_they_stand_on(output, shop):
    rows = {(row["quantity"], row["gate"]): row["rows"] for row in read_csv(output / "losses-summary.csv")}
    assert rows["loss", "soft"] == rows["load_math", "soft"] == 6
    assert rows["loss_math", "soft"] == rows["own_share_language", "soft"] == 3
    assert rows["share_of_math_in_language", "soft"] == 3
    found = Measurement.load(next(shop.records.rglob("soft.npz")))
    judged = [replace(score, correct=index < 2 or None) for index, score in enumerate(found.scores)]
    assert replace(found, scores=judged).rows_of("accuracy") == 2
    longer = [replace(score, domain="my_math" if index == 0 else score.domain) for index, score in enumerate(judged)]
    assert replace(found, scores=longer).rows_of("loss_my_math") == 1


def test_accuracies_of_few_judged_rows_have_an_interval():
    """A sample of the rows may hold none with choices."""
    scores = [RowScore("law", "cases" if correct is None else "quiz", 1.0, 1, correct, None)
              for correct in (None, None, None, None, True, False)]  # fmt: skip
    found = Measurement._of(scores, {}, {}, {})
    assert found.values["accuracy_law"] == found.values["accuracy"] == 0.5
    low, high = found.interval("accuracy")
    assert 0 <= low < 0.5 < high <= 1


def test_a_run_whose_weights_have_many_digits_is_one_run(shop, tmp_path):
    options = replace(OPTIONS, seeds=(0,), balance_weight=1 / 3)
    experiment = replace(EXPERIMENTS["choice"], plan=lambda options: Plan([options.rsl(8)], ("top_2",)))
    apart = replace(shop, work=tmp_path / "work", archive=tmp_path / "archive")
    for _ in range(2):  # the second call reads the file of the first
        perform(experiment, options, apart, tmp_path, say=str)
    (run,) = read_csv(tmp_path / "choice.csv")
    assert run["seed"] == 0
    assert {row["seeds"] for row in read_csv(tmp_path / "choice-summary.csv")} == {1}


def test_tasks_of_one_row_vary_with_their_domain():
    scores = [RowScore("own", f"task {i}", float(i), 10, None, None) for i in range(8)]
    scores += [RowScore("other", "large", float(i), 10, None, None) for i in range(8)]
    drawn = _resamples(scores, 50)
    assert (drawn[:, :8].sum(axis=1) == 8).all()
    assert drawn[:, :8].std() > 0


def test_an_archive_is_small(output, shop):
    files = [path for path in shop.records.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix not in (".npz", ".json")]
    assert max(path.stat().st_size for path in files if path.suffix == ".npz") < 40_000
    runs = sorted((shop.records / "logs").glob("*.json"))
    assert len(runs) == len({run for name, experiment in EXPERIMENTS.items() if experiment.plan
                             for run in experiment.plan(options_of(name)).runs})  # fmt: skip
    for path in runs:
        folder = shop.work / "routers" / path.stem
        assert path.stat().st_size < (folder / RunLog.FILE_NAME).stat().st_size
        assert RunLog.load(path) == RunLog.load(folder)


def test_a_run_that_ships_is_found_in_the_zoo(output, shop, tmp_path, monkeypatch):
    run = EXPERIMENTS["top-k"].plan(OPTIONS).runs[0]
    clone = replace(shop, work=tmp_path / "work")
    folder = tmp_path / "zoo/backbone/rsl"
    shutil.copytree(shop.router_folder(run), folder)
    monkeypatch.setattr(workshop, "ZOO", tmp_path / "zoo")
    assert not clone.is_trained(run)
    log = RunLog.load(folder)
    log.settings["run"] = run.name
    log.save(folder)
    assert clone.router_folder(run) == folder
    others = dict(zip(EXPERTS, reversed(list(shop.sources.values())), strict=True))
    assert not replace(clone, sources=others).is_trained(run)
    assert not replace(clone, chosen=1).is_trained(run)
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path))
    assert not clone.is_trained(run)  # it was trained on generated rows


def test_other_learning_rates_are_other_settings():
    run = EXPERIMENTS["losses"].plan(OPTIONS).runs[0]
    assert replace(run, learning_rate=1e-2).setting == f"{run.setting}, learning rate 0.01"


def test_domains_are_those_of_the_rows(shop, tmp_path, monkeypatch):
    (tmp_path / "cases").mkdir()
    with gzip.open(tmp_path / "cases/train.jsonl.gz", "wt") as file:
        for domain in ("law", "tax"):
            row = {"id": domain, "task": "cases", "domain": domain, "prompt": "the dose", "target": "ten"}
            file.write(json.dumps(row) + "\n")
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path))
    expert = next(iter(shop.sources.values()))
    assert replace(shop, sources={"tax": expert, "poetry": expert}).domains == ["tax"]
    assert replace(shop, sources={"poetry": expert}).domains == ["law", "tax"]


def test_finished_routers_are_measured_for_all_experiments_without_training(output, shop, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr(runner, "train_router", refuse)
    run = EXPERIMENTS["losses"].plan(OPTIONS).runs[0]
    fresh = replace(shop, archive=tmp_path / "runs")
    measure_finished(OPTIONS, fresh, [run.name], say=str)
    key = fresh.key(fresh.test_rows())
    found = {path.stem for path in (fresh.records / key / run.name).iterdir()}
    assert found == {"soft", "top_1", "top_2"}
    assert {path.stem for path in (fresh.records / key).glob("*.npz")} == {"off", "uniform", "domain"}
    for path in sorted((fresh.records / key).rglob("*.npz")):
        again = Measurement.load(shop.records / path.relative_to(fresh.records))
        assert Measurement.load(path).values == pytest.approx(again.values, rel=1e-5)
    with pytest.raises(DataError, match="No experiment has a run rsl-7"):
        measure_finished(OPTIONS, fresh, ["rsl-7"], say=str)


def test_routers_are_kept_along_the_way_of_rsl_and_load_balance_of_the_first_seed(output, shop):
    kept = {run.name: kept_steps(run) for run in replayed(OPTIONS)}
    assert list(kept.values()) == [[0, 1, 3, 5, 7]] * 2
    for run in EXPERIMENTS["losses"].plan(OPTIONS).runs:
        folders = sorted(path.name for path in (shop.router_folder(run) / "routers").glob("step-*"))
        assert folders == [f"step-{step:05d}" for step in kept.get(run.name, [])]


CHILD = """
import sys
from pathlib import Path
from tests.integration.test_experiments import EXPERIMENTS, EXPERTS, OPTIONS, Workshop, perform, torch
folder, output = Path(sys.argv[1]), Path(sys.argv[2])
shop = Workshop(output / "work", {name: str(folder / name) for name in EXPERTS}, backbone=str(folder / "backbone"),
                limit=3, training_dtype=torch.float32)
perform(EXPERIMENTS["top-k"], OPTIONS, shop, output, say=lambda line: print(line, flush=True))
"""


def test_a_kill_between_runs_costs_nothing_and_doubles_nothing(shop, tmp_path):
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if name != "LORAMIXER_DATA"}
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(Path(shop.backbone).parent), str(tmp_path)],
        env={**environment, "PYTHONPATH": f"{root}/lib:{root}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("run 2"):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    with (tmp_path / "top-k.csv").open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["0"]
    weights = next((tmp_path / "work/routers").glob("*-s0/adapter_model.safetensors"))
    before = weights.stat().st_mtime_ns
    time.sleep(0.01)

    shop = replace(shop, work=tmp_path / "work", archive=None)
    perform(EXPERIMENTS["top-k"], OPTIONS, shop, tmp_path, say=str)
    with (tmp_path / "top-k.csv").open() as file:
        assert [row["seed"] for row in csv.DictReader(file)] == ["0", "1"]
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize("gate", ["domain", "soft"])
def test_a_measurement_survives_its_file(shop, output, tmp_path, gate):
    run = EXPERIMENTS["losses"].plan(OPTIONS).runs[0]
    model, tokenizer = load_mixer(shop.router_folder(run), backbone=shop.backbone)
    seen = []
    found = measure(model, tokenizer, shop.test_rows(), gate, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (6, 6)
    found.save(tmp_path / "a.npz")
    again = Measurement.load(tmp_path / "a.npz")
    assert again.values == found.values
    assert again.facts == found.facts
    assert again.scores == found.scores
    assert set(again.draws) == set(found.draws)
    assert all((again.draws[name] == found.draws[name]).all() for name in found.draws)


def test_domain_information_by_hand():
    """Two domains with one expert each: ln 2; with the same load: nothing."""
    first, second = np.array([[[1.0, 0.0]]]), np.array([[[0.0, 1.0]]])
    assert domain_information([first, second]) == pytest.approx(np.log(2))
    assert domain_information([first, first]) == pytest.approx(0)


def test_the_command(shop, tmp_path):
    words = (
        "experiment", "top-k", "--output", tmp_path, "--work", shop.work, "--experts", Path(shop.backbone).parent,
        "--backbone", shop.backbone, "--limit", 3, "--examples", 80, "--training-dtype", "float32",
    )  # fmt: skip
    status, out, _ = run_command(*words, "--seeds", "0", "--dry-run")
    assert (status, len(out.splitlines())) == (0, 2)
    assert not list(tmp_path.iterdir())
    for seeds in ("1", "0"):  # the second call adds to the file of the first
        status, out, err = run_command(*words, "--seeds", seeds)
        assert status == 0, err
        assert "figures/top-k.svg" in out
    assert [row["seed"] for row in read_csv(tmp_path / "top-k.csv")] == [1, 0]
    status, _, err = run_command(*words, "--seeds", "one")
    assert status == 2
    assert "--seeds is 'one'" in err


def test_measuring_runs_on_the_device_that_is_given(output, shop, tmp_path, monkeypatch):
    asked = []

    def spy(load):
        return lambda *given, **more: asked.append(more["device"]) or load(*given, **more)

    monkeypatch.setattr(runner, "load_mixer", spy(runner.load_mixer))
    monkeypatch.setattr("loramixer.evaluation.matrix.load_backbone", spy(load_backbone))
    words = (
        "--output", tmp_path, "--work", shop.work, "--experts", Path(shop.backbone).parent, "--backbone",
        shop.backbone, "--limit", 3, "--seeds", 0, "--examples", 80, "--training-dtype", "float32",
    )  # fmt: skip
    for name in ("top-k", "expert-matrix"):
        status, _, err = run_command("experiment", name, *words, "--device", "cpu:0")
        assert status == 0, err
    assert asked == [torch.device("cpu:0")] * 2
    assert {Measurement.load(path).facts["device"] for path in tmp_path.glob("runs/*/**/*.npz")} == {"cpu"}
    status, _, err = run_command("experiment", "top-k", *words, "--device", "graphics")
    assert (status, "The device 'graphics' cannot be used" in err) == (2, True)


def test_some_of_the_experts_are_enough(shop, tmp_path):
    words = (
        "experiment", "top-k", "--output", tmp_path / "results", "--work", tmp_path / "work",
        "--experts", Path(shop.backbone).parent, "--backbone", shop.backbone, "--limit", 3, "--dry-run",
    )  # fmt: skip
    status, out, err = run_command(*words, "--seeds", "0", "--only", EXPERTS[1])
    assert status == 0, err
    assert "top_1" in out
    assert "top_2" not in out
    status, _, err = run_command(*words, "--only", "botany")
    assert status == 2
    assert "--only names botany" in err
    assert EXPERTS[0] in err
