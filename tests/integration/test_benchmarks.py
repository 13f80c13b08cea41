"""The benchmarks run on a tiny model and report every row; nothing here looks at how fast anything is."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from loramixer.evaluation.tables import router_training_table
from loramixer.training.run_log import RunLog

ROOT = Path(__file__).parents[2]
QUICK = ["--shape", "tiny", "--rounds", "2", "--block-seconds", "0.001"]
FORMS = {"soft", "top-3", "traced", "products", "lora", "arrow", "x-lora", "mixlora"}


@pytest.fixture
def benchmark_module(monkeypatch):
    """Import a benchmark as Python does when its file is run: its folder comes first in the path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        import importlib

        return importlib.import_module(name)

    threads = torch.get_num_threads()
    yield load
    torch.set_num_threads(threads)


def check_rows(rows: list[dict], measures: dict[str, set[str]]) -> None:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row["measure"], set()).add(row["form"])
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert (row["goal"] is None) == (row["met"] is None)
    assert found == measures


def test_overhead_reports_every_form_and_measure(benchmark_module, tmp_path, capsys):
    measures = ("prefill-64", "decode", "trace", "training")
    words = [word for measure in measures for word in ("--only", measure)]
    benchmark_module("overhead").main([*QUICK, "--threads", "1", *words, "--output", str(tmp_path / "o.json")])
    result = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
    check_rows(
        result["rows"],
        {
            "prefill-64": FORMS,
            "decode": FORMS,
            "trace-prefill-256": {"traced"},
            "trace-decode": {"traced"},
            "training": {"soft", "mixlora"},
        },
    )
    for row in result["rows"]:
        assert row["seconds"] > 0
        assert row["reference_seconds"] > 0
        assert row["rounds"] == 2
    goals = {(row["measure"], row["form"]): row["goal"] for row in result["rows"] if row["goal"]}
    assert goals[("decode", "top-3")] == "≤ 1.10"
    assert goals[("training", "soft")] == "≥ 0.90"
    assert result["machine"]["threads"] == 1
    assert set(result["machine"]["versions"]) >= {"torch", "peft", "transformers"}
    assert "LoRA-Mixer, top-3" in capsys.readouterr().out


def test_memory_is_measured_in_processes_of_their_own(benchmark_module, tmp_path):
    words = ["--only", "memory", "--only", "top-3", "--memory-runs", "1", "--output", str(tmp_path / "m.json")]
    benchmark_module("overhead").main([*QUICK, *words])
    (row,) = json.loads((tmp_path / "m.json").read_text(encoding="utf-8"))["rows"]
    # Two layers, six experts of rank 16 and a router at q and o (32→32) and k and v (32→16), in float32.
    assert row["adapter_bytes"] == 4 * 2 * 2 * (6 * 16 * (64 + 48) + 2 * 6 * 32)
    assert row["base_peak_bytes"] > 0
    assert math.isfinite(row["ratio"])


def test_all_forms_share_the_weights_of_one_backbone(benchmark_module, tmp_path):
    forms = benchmark_module("forms")
    base = forms.build_base("tiny", torch.float32, "cpu")
    folders = forms.save_experts(base, tmp_path, 2, 4)
    weights = {parameter.data_ptr() for parameter in base.parameters()}
    for form in forms.FORMS.values():
        model = form.build(base, forms.Workload(folders, 4, 2))
        assert weights <= {parameter.data_ptr() for parameter in model.parameters()}, form.label
    assert not any("lora" in name for name, _ in base.named_modules())


def test_scaling_reports_every_number_of_experts(benchmark_module, tmp_path):
    words = ["--experts", "2", "6", "12", "--ranks", "2", "4", "--k", "3", "--lengths", "8", "16"]
    benchmark_module("scaling").main([*QUICK, *words, "--output", str(tmp_path / "s.json")])
    rows = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))["rows"]
    seen = {(row["rank"], row["experts"], row["measure"]) for row in rows}
    assert seen == {
        (rank, experts, measure)
        for rank in (2, 4)
        for experts in (2, 6, 12)
        for measure in ("prefill-8", "prefill-16", "decode")
    }
    assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in rows)
    assert {row["experts"] for row in rows if row["goal"]} == {12}


def test_router_training_reads_the_logs_of_one_size(benchmark_module, tmp_path, capsys):
    settings = {"loss_text": "RSL sharpen", "rows": {"gsm8k": 900, "mbpp": 1079}}
    for size in (2000, 4000):
        log = RunLog(settings, [], {"seconds": 900.0, "tokens": 210_000, "tokens_per_second": 233.3})
        log.summary["backbone_share"] = 0.86
        log.save_small(tmp_path / f"logs/rsl-n{size}-s0.json")
    words = ["--logs", str(tmp_path / "logs"), "--output", str(tmp_path / "router-training.json")]
    benchmark_module("router_training").main(words)
    (row,) = json.loads((tmp_path / "router-training.json").read_text(encoding="utf-8"))["rows"]
    assert (row["run"], row["rows"], row["minutes"], row["backbone_share"]) == ("rsl-n2000-s0", 1979, 15.0, 0.86)
    assert "86%" in capsys.readouterr().out
    table = router_training_table(tmp_path)
    assert "beside other work: fastest, median, slowest | 1 | 210,000 | 15.0, 15.0, 15.0 | 233, 233, 233 |" in table
    with pytest.raises(SystemExit, match="no log of a training with 500 rows"):
        benchmark_module("router_training").main([*words, "--examples", "500"])


def test_a_training_of_its_own_stays_beside_the_archived_ones(benchmark_module, tmp_path, monkeypatch):
    module = benchmark_module("router_training")
    settings = {"loss_text": "RSL sharpen", "rows": {"gsm8k": 1979}, "processes": 2, "threads": 1}
    log = RunLog(settings, [], {"seconds": 540.0, "tokens": 210_000, "tokens_per_second": 388.9})
    monkeypatch.setattr(module, "train", lambda options: log)
    words = ["--logs", str(tmp_path / "logs"), "--output", str(tmp_path / "router-training.json")]
    module.main([*words, "--train", "--processes", "2"])
    module.main(words)
    line = "| RSL sharpen: alone, 2 processes × 1 thread | 1 | 210,000 | 9.0 | 389 | – |"
    assert line in router_training_table(tmp_path)
    monkeypatch.setattr(module, "memory_allocator", lambda: "tcmalloc")
    log.settings["memory_allocator"] = "tcmalloc"
    module.main([*words, "--train", "--processes", "2"])
    table = router_training_table(tmp_path)
    assert table.count("alone, 2 processes × 1 thread |") == 1
    assert table.count("alone, 2 processes × 1 thread, tcmalloc |") == 1


def test_an_archived_training_can_have_been_alone(benchmark_module, tmp_path):
    settings = {"loss_text": "task loss only", "rows": {"gsm8k": 1979}, "processes": 2, "threads": 1}
    for seed in (0, 1):
        log = RunLog(settings, [], {"seconds": 540.0, "tokens": 210_000, "tokens_per_second": 388.9})
        log.save_small(tmp_path / f"logs/none-n2000-s{seed}.json")
    words = ["--logs", str(tmp_path / "logs"), "--output", str(tmp_path / "router-training.json")]
    benchmark_module("router_training").main([*words, "--alone", "none-n2000-s1"])
    benchmark_module("router_training").main(words)  # it is remembered
    table = router_training_table(tmp_path)
    assert table.count("task loss only: alone, 2 processes × 1 thread |") == 1
    assert "beside other work: fastest, median, slowest | 1 |" in table
    log = RunLog(settings, [], {"seconds": 900.0, "tokens": 210_000, "tokens_per_second": 233.3})
    log.save_small(tmp_path / "logs/none-n2000-s1.json")  # trained again, beside something else
    benchmark_module("router_training").main(words)
    assert "beside other work: fastest, median, slowest | 2 |" in router_training_table(tmp_path)
    with pytest.raises(SystemExit, match="no training none-n2000-s7 with 2000 rows"):
        benchmark_module("router_training").main([*words, "--alone", "none-n2000-s7"])


def test_a_median_comes_with_an_interval_around_it(benchmark_module):
    found = benchmark_module("timing").median_interval([1.0, 1.1, 1.2, 1.3, 9.0])
    assert found["ratio"] == 1.2
    assert 1.0 <= found["ratio_low"] < 1.2 < found["ratio_high"] <= 9.0
