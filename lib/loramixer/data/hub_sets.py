"""The data sets on the Hub: which files at which commit, and how one of their rows becomes an :class:`Example`.

The prompts, answers and choices are those of a data folder, so that experts trained on one source are measured alike
on the other. Where a copy on the Hub cannot have the folder's ids or splits, the docstring of its converter says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loramixer.data.recipes import domain_of_task
from loramixer.data.schema import Example
from loramixer.data.splits import MEDQUAD_TEST, PUBMEDQA_TRAIN

Row = Mapping[str, Any]
Converter = Callable[[str, str, int, Row], Example | None]
"""Task, split, number of the row in its file, row → example, or None for a row that is not of this split."""


@dataclass(frozen=True)
class HubDataset:
    """One data set on the Hub.

    Attributes:
        hub_id: ``organisation/name``.
        revision: the commit that is read unless the user pins another. These commits are the ones that public
            evaluation code pins for these repositories; where the project is developed there is no Hub to ask.
        files: split → Parquet file in the repository.
        license: as the repository's card states it.
        convert: makes an example of a row.
    """

    hub_id: str
    revision: str
    files: dict[str, str]
    license: str
    convert: Converter


def _example(
    task: str, row_id: str, prompt: str, target: str, choices: tuple[str, ...] | None = None, label: int | None = None
) -> Example:
    return Example(f"{task}-{row_id}", task, domain_of_task(task) or task, prompt, target, choices, label)


def gsm8k(task: str, split: str, number: int, row: Row) -> Example:
    """``question``, ``answer`` with its calculator marks."""
    return _example(task, f"{split}-{number}", row["question"].strip(), row["answer"].strip())


def medquad(task: str, split: str, number: int, row: Row) -> Example | None:
    """``question``, ``answer``; rows without an answer are left out.

    The one file is split by the document, as in the folder. The folder numbers rows over all documents, which a single
    row does not know, so ids here end with the question's own id.
    """
    if not (row["question"] or "").strip() or not (row["answer"] or "").strip():
        return None
    source = _MEDQUAD_SOURCES.get(row["document_source"])
    if source is None:
        return None
    is_test = f"{source}-{row['document_id']}" in MEDQUAD_TEST
    if is_test != (split == "test"):
        return None
    prompt = re.sub(r"\s+([?.!])", r"\1", " ".join(row["question"].split()))
    lines = (" ".join(line.split()) for line in row["answer"].splitlines())
    return _example(task, f"{source}-{row['question_id']}", prompt, "\n".join(line for line in lines if line))


_MEDQUAD_SOURCES = {
    name: number
    for number, name in enumerate(
        ("CancerGov", "GARD", "GHR", "MPlusHealthTopics", "NIDDK", "NINDS", "NIHSeniorHealth", "NHLBI", "CDC"), start=1
    )
}
"""Source → its number in the ids of the folder; the sources that are not here have no answers."""


def pubmedqa(task: str, split: str, number: int, row: Row) -> Example | None:
    """``question``, ``context.contexts``, ``final_decision``; the one file is split by the official test split."""
    if (str(row["pubid"]) in PUBMEDQA_TRAIN) != (split == "train"):
        return None
    choices = ("yes", "no", "maybe")
    prompt = (
        "Answer the research question with yes, no, or maybe, given the abstract.\n"
        f"Abstract: {' '.join(row['context']['contexts'])}\nQuestion: {row['question']}"
    )
    return _example(
        task, str(row["pubid"]), prompt, row["final_decision"], choices, choices.index(row["final_decision"])
    )


def mbpp(task: str, split: str, number: int, row: Row) -> Example:
    """``text``, ``test_list``, ``code``."""
    prompt = "\n".join([row["text"], "Your code should pass these tests:", *row["test_list"]])
    # Line ends of Windows, and spaces before them, are in the source.
    code = "\n".join(line.rstrip() for line in row["code"].splitlines())
    return _example(task, str(row["task_id"]), prompt, f"{code.rstrip()}\n")


def arc(task: str, split: str, number: int, row: Row) -> Example:
    """``question``, ``choices.text``, ``choices.label``, ``answerKey`` (a letter or a digit).

    Ids number the rows of the file; the folder's number those of another copy, whose order may differ.
    """
    choices = tuple(row["choices"]["text"])
    label = list(row["choices"]["label"]).index(row["answerKey"])
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCDE", choices, strict=False))
    prompt = f"Question: {row['question']}\nOptions:\n{listed}\nWhich option is correct?"
    return _example(task, f"{split}-{number}", prompt, choices[label], choices, label)


COLA_IN_DOMAIN_DEV = 527
"""Rows of CoLA's in-domain development set, which come first in GLUE's."""


def cola(task: str, split: str, number: int, row: Row) -> Example:
    """``sentence``, ``label``, ``idx``; the test split is GLUE's development set, whose labels are public."""
    row_id = f"in_domain_train-{number}"
    if split == "test":
        is_in = number < COLA_IN_DOMAIN_DEV
        row_id = f"in_domain_dev-{number}" if is_in else f"out_of_domain_dev-{number - COLA_IN_DOMAIN_DEV}"
    choices = ("no", "yes")
    prompt = f"Is this sentence grammatically acceptable? Answer yes or no.\nSentence: {row['sentence'].strip()}"
    return _example(task, row_id, prompt, choices[row["label"]], choices, row["label"])


def sst2(task: str, split: str, number: int, row: Row) -> Example:
    """``sentence``, ``label``, ``idx``; GLUE's development set is the test split here.

    The folder's training ids number another copy, and its test split are the treebank's own test sentences, which GLUE
    has without labels.
    """
    choices = ("negative", "positive")
    prompt = f"Is the sentiment of this movie review text negative or positive?\nText: {row['sentence'].strip()}"
    row_id = f"{'validation' if split == 'test' else split}-{number}"
    return _example(task, row_id, prompt, choices[row["label"]], choices, row["label"])


def _parquet(folder: str, **splits: str) -> dict[str, str]:
    return {split: f"{folder}/{file}-00000-of-00001.parquet" for split, file in splits.items()}


_GLUE = ("nyu-mll/glue", "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c")
_ARC = ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453")
_MEDQUAD_FILE = "data/train-00000-of-00001-e36383d177026d53.parquet"
_PUBMEDQA_FILE = "pqa_labeled/train-00000-of-00001.parquet"
_THREE = {"train": "train", "validation": "validation", "test": "test"}

HUB_DATASETS: dict[str, HubDataset] = {
    "gsm8k": HubDataset(
        "openai/gsm8k",
        "e53f048856ff4f594e959d75785d2c2d37b678ee",
        _parquet("main", train="train", test="test"),
        "MIT",
        gsm8k,
    ),
    "medquad": HubDataset(
        "lavita/MedQuAD",
        "84ea67f83cec9692ad254eaa02c9731b24ecfe4c",
        {"train": _MEDQUAD_FILE, "test": _MEDQUAD_FILE},
        "none stated (CC BY 4.0 at its origin, abachaa/MedQuAD)",
        medquad,
    ),
    "pubmedqa": HubDataset(
        "qiaojin/PubMedQA",
        "9001f2853fb87cab8d220904e0de81ac6973b318",
        {"train": _PUBMEDQA_FILE, "test": _PUBMEDQA_FILE},
        "MIT",
        pubmedqa,
    ),
    "mbpp": HubDataset(
        "google-research-datasets/mbpp",
        "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
        _parquet("full", **_THREE),
        "CC BY 4.0",
        mbpp,
    ),
    "arc_easy": HubDataset(*_ARC, _parquet("ARC-Easy", **_THREE), "CC BY-SA 4.0", arc),
    "arc_challenge": HubDataset(*_ARC, _parquet("ARC-Challenge", **_THREE), "CC BY-SA 4.0", arc),
    "cola": HubDataset(*_GLUE, _parquet("cola", train="train", test="validation"), "other (see the card)", cola),
    "sst2": HubDataset(*_GLUE, _parquet("sst2", train="train", test="validation"), "other (see the card)", sst2),
}
"""Task → where the Hub has it; the tasks are those of the recipes."""
