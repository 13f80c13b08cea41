"""The benchmark harness of EleutherAI on a mixture: an object that is loaded, or a folder by its name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from loramixer.tuner.runtime import set_gate
from tests import tiny

PROMPTS = ["the dose", "the dose of the dose", "is the drug ten", "of the dose of the drug is the dose"]
CHOICES = ["ten", "drug", "of the drug"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def tasks(tmp_path: Path) -> TaskManager:
    """One task with choices, of rows on disk."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": prompt, "choices": CHOICES, "label": 0}) for prompt in PROMPTS))
    (tmp_path / "tasks").mkdir()
    task = {
        "task": "dose", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{prompt}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "tasks/dose.yaml").write_text(json.dumps(task))  # JSON is YAML
    return TaskManager(include_path=str(tmp_path / "tasks"))


def likelihoods(model: Any, tasks: TaskManager) -> list[float]:
    """Log-likelihood of every choice of every row, as the harness has them."""
    found = simple_evaluate(model=model, tasks=["dose"], task_manager=tasks, bootstrap_iters=0)
    samples = sorted(found["samples"]["dose"], key=lambda sample: sample["doc_id"])
    return [value for sample in samples for value, _ in sample["filtered_resps"]]


def by_hand(model: Any, words: int = tiny.VOCABULARY) -> list[float]:
    """The same without the harness: its choices follow a space. ``words``: how many the model can write."""
    tokenizer, values = tiny.tokenizer(), []
    for prompt in PROMPTS:
        start = len(tokenizer(prompt)["input_ids"])
        for choice in CHOICES:
            ids = torch.tensor([tokenizer(f"{prompt} {choice}")["input_ids"]])
            with torch.no_grad():
                scores = model(input_ids=ids).logits[0, :, :words].log_softmax(-1)
            values.append(sum(float(scores[at - 1, ids[0, at]]) for at in range(start, ids.shape[1])))
    return values


@pytest.mark.parametrize("batch_size", [1, 4])
def test_likelihoods_are_those_of_the_mixture(experts, tasks, batch_size):
    model = tiny.mixture(experts).eval()
    harness = HFLM(pretrained=model, tokenizer=tiny.tokenizer(), batch_size=batch_size, max_length=64)
    soft = likelihoods(harness, tasks)
    assert soft == pytest.approx(by_hand(model), abs=1e-4)
    set_gate(model, "domain", domain="a")  # what is set on the model counts in the harness
    alone = likelihoods(harness, tasks)
    assert alone == pytest.approx(by_hand(model), abs=1e-4)
    assert alone != pytest.approx(soft, abs=1e-4)


def test_a_mixture_is_named_by_its_folder(experts, tasks, tmp_path):
    model = tiny.mixture(experts).eval()
    model.save_pretrained(tmp_path / "mixture")
    tiny.llama().save_pretrained(tmp_path / "backbone")
    tiny.tokenizer().save_pretrained(tmp_path / "backbone")
    places = {"pretrained": str(tmp_path / "backbone"), "peft": str(tmp_path / "mixture")}
    harness = HFLM(**places, dtype="float32", device="cpu", max_length=64)
    # The harness cuts the backbone's vocabulary to that of the tokenizer.
    assert likelihoods(harness, tasks) == pytest.approx(by_hand(model, len(tiny.tokenizer())), abs=1e-4)
