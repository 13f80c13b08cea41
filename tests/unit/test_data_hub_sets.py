"""Rows of the Hub become the rows of the folder: raw rows are built from the folder's own fields and read back."""

import gzip
import json
import re
from dataclasses import replace

import pytest

from loramixer.data import HUB_DATASETS, RECIPES, Example, read_examples
from loramixer.data.splits import MEDQUAD_TEST, PUBMEDQA_TRAIN

LETTERS = "ABCDE"


def gsm8k(row):
    return {"question": row["prompt"], "answer": row["target"]}


def medquad(row):
    document = row["id"].removeprefix("medquad-").partition("-")[2].rpartition("-")[0]
    return {
        # As the Hub's copy has them: a space before the question mark, and indented lines.
        "question": re.sub(r"\?$", " ?", row["prompt"]),
        "answer": row["target"].replace("\n", "\n    \n        "),
        "document_id": document,
        "document_source": row["meta"]["source"],
        "question_id": f"{document}-1",
    }


def pubmedqa(row):
    abstract = re.fullmatch(r".*?\nAbstract: (.*)\nQuestion: .*", row["prompt"], flags=re.DOTALL)[1]
    middle = abstract.find(" ", len(abstract) // 2)
    return {
        "pubid": int(row["id"].removeprefix("pubmedqa-")),
        "question": row["meta"]["question"],
        "context": {"contexts": [abstract[:middle], abstract[middle + 1 :]]},
        "final_decision": row["target"],
    }


def mbpp(row):
    return {
        "task_id": int(row["id"].removeprefix("mbpp-")),
        "text": row["meta"]["text"],
        "test_list": row["meta"]["test_list"],
        "code": row["target"].rstrip("\n").replace("\n", " \r\n"),
    }


def arc(row):
    labels = list(LETTERS[: len(row["choices"])] if row["label"] % 2 else "12345"[: len(row["choices"])])
    return {
        "question": row["meta"]["question"],
        "choices": {"text": row["choices"], "label": labels},
        "answerKey": labels[row["label"]],
    }


def glue(row):
    return {"sentence": f"{row['meta']['sentence']} ", "label": row["label"]}


RAW = {
    "gsm8k": gsm8k, "medquad": medquad, "pubmedqa": pubmedqa, "mbpp": mbpp,
    "arc_easy": arc, "arc_challenge": arc, "cola": glue, "sst2": glue,
}  # fmt: skip


def number_in_file(task, row_id):
    number = int(row_id.rpartition("-")[2]) if task not in ("medquad", "pubmedqa", "mbpp") else 0
    return number + 527 if "out_of_domain" in row_id else number


def test_every_task_of_a_recipe_is_pinned_to_one_commit():
    assert set(HUB_DATASETS) == {task for recipe in RECIPES.values() for task in recipe.tasks}
    for dataset in HUB_DATASETS.values():
        assert re.fullmatch(r"[0-9a-f]{40}", dataset.revision)
        assert {"train", "test"} <= set(dataset.files)
        assert all(file.endswith(".parquet") for file in dataset.files.values())


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("task", list(HUB_DATASETS))
def test_converted_rows_are_the_rows_of_the_folder(real_data, task, split):
    path = real_data / task / f"{split}.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        raw = [json.loads(line) for line in lines]
    expected = read_examples(path)
    convert = HUB_DATASETS[task].convert
    # Every tenth row of the small sets, three hundred of the large ones.
    step = max(1, min(10, len(raw) // 10), len(raw) // 300)
    for row, example in list(zip(raw, expected, strict=True))[::step]:
        found = convert(task, split, number_in_file(task, row["id"]), RAW[task](row))
        assert found is not None, row["id"]
        if task in ("medquad", "sst2"):  # ids that the Hub's copy does not know
            assert found.id.startswith(f"{task}-")
            found = replace(found, id=example.id)
        assert found == example
        if task in ("medquad", "pubmedqa"):
            other = {"train": "test", "test": "train"}[split]
            assert convert(task, other, 0, RAW[task](row)) is None


def test_a_row_of_our_own_becomes_an_example():
    found = HUB_DATASETS["arc_easy"].convert(
        "arc_easy", "test", 7,
        {"question": "Which is ice?", "choices": {"text": ["water", "ice"], "label": ["1", "2"]}, "answerKey": "2"},
    )  # fmt: skip
    prompt = "Question: Which is ice?\nOptions:\nA. water\nB. ice\nWhich option is correct?"
    assert found == Example("arc_easy-test-7", "arc_easy", "science", prompt, "ice", ("water", "ice"), 1)


def test_questions_without_an_answer_and_other_sources_are_left_out():
    row = {
        "question": "What is it ?", "answer": " Something.\n", "document_id": "0000001", "document_source": "GHR",
        "question_id": "0000001-1",
    }  # fmt: skip
    convert = HUB_DATASETS["medquad"].convert
    assert convert("medquad", "train", 0, row) == Example(
        "medquad-3-0000001-1", "medquad", "medical", "What is it?", "Something."
    )
    for change in ({"answer": None}, {"answer": " "}, {"document_source": "ADAM"}):
        assert convert("medquad", "train", 0, {**row, **change}) is None


def test_the_splits_are_those_of_the_folder(real_data):
    train = {row.id.removeprefix("pubmedqa-") for row in read_examples(real_data / "pubmedqa/train.jsonl.gz")}
    test = {row.id.removeprefix("pubmedqa-") for row in read_examples(real_data / "pubmedqa/test.jsonl.gz")}
    assert train == PUBMEDQA_TRAIN
    assert not test & PUBMEDQA_TRAIN
    documents = {
        split: {
            row.id.removeprefix("medquad-").rpartition("-")[0]
            for row in read_examples(real_data / f"medquad/{split}.jsonl.gz")
        }
        for split in ("train", "test")
    }
    assert documents["test"] == MEDQUAD_TEST
    assert not documents["train"] & MEDQUAD_TEST
