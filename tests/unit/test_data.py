"""Rows: the schema and its errors, recipes, which source is taken, and loss on the answer only."""

import gzip
import json
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from loramixer.data import (
    DEFAULT_DOMAINS,
    IGNORED_LABEL,
    PAPER_DOMAINS,
    RECIPES,
    Example,
    FolderSource,
    GeneratedSource,
    Span,
    data_origin,
    describe_source,
    encode,
    encode_all,
    encode_prompt,
    evaluation_examples,
    expert_examples,
    find_source,
    fingerprint,
    held_out_examples,
    mixed_examples,
    read_examples,
    task_licenses,
    token_counter,
)
from loramixer.errors import DataError
from tests import tiny

ROW = {"id": "1", "task": "gsm8k", "domain": "math", "prompt": "2 + 2?", "target": "4", "choices": None, "label": None}
ZOO = Path(__file__).resolve().parents[2] / "lib/loramixer/zoo/smollm2-135m"


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    return path


def test_reads_rows_and_names_the_domain_after_the_expert(tmp_path):
    path = write(
        tmp_path / "x.jsonl.gz",
        {**ROW, "spans": [[0, 1, "math"], [2, 6, "code"]], "meta": {}},
        {**ROW, "id": "2", "task": "cola", "domain": "nlu"},
        {**ROW, "id": "3", "task": "unknown", "domain": "law"},
    )
    first, second, third = read_examples(path)
    assert first == Example("1", "gsm8k", "math", "2 + 2?", "4", spans=(Span(0, 1, "math"), Span(2, 6, "code")))
    assert (second.domain, third.domain) == ("language", "law")
    assert read_examples(path, ["math", "acceptability"])[1].domain == "acceptability"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 2: no valid JSON"),
        ({**ROW, "prompt": None}, "line 2: field 'prompt' is None"),
        ({**ROW, "choices": "yes"}, "line 2: field 'choices'"),
        ({**ROW, "choices": ["yes", "no"], "label": 2}, "line 2: field 'label' is 2"),
        ({**ROW, "choices": ["yes", "no"], "label": True}, "line 2: field 'label' is True"),
        ({**ROW, "spans": [[0, 7, "math"]]}, "line 2: field 'spans'"),
        ({**ROW, "spans": [[0, 3, "math"], [2, 4, "code"]]}, "line 2: field 'spans'"),
        ({**ROW, "spans": ["math"]}, "line 2: field 'spans'"),
        ("[1]", "line 2: a JSON list"),
        ("[" * 100_000, "line 2: no valid JSON"),
        ('{"id": ' + "1" * 5000 + "}", "line 2: no valid JSON"),
        ({**ROW, "target": " "}, "line 2: field 'target' is empty"),
        ({**ROW, "prompt": "another"}, "line 2: field 'id' is '1', as in line 1 of the same task"),
        *(
            ({name: value for name, value in ROW.items() if name != field}, f"line 2: field '{field}' is None")
            for field in ("id", "task", "domain", "prompt", "target")
        ),
    ],
)
def test_schema_errors_name_file_line_and_field(tmp_path, row, message):
    path = write(tmp_path / "x.jsonl.gz", ROW, row)
    with pytest.raises(DataError, match=f"x.jsonl.gz, {message}"):
        read_examples(path)


def test_labels_that_count_from_one_are_found(tmp_path):
    """Training takes the target and accuracy the label; they must be one."""
    row = {"id": "1", "task": "t", "domain": "law", "prompt": "p", "choices": ["no", "yes"], "label": 1}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**row, "target": "yes"}) + "\n" + json.dumps({**row, "target": "no"}) + "\n")
    with pytest.raises(DataError, match=r"line 2: field 'target' is 'no', and choice 1, .* is 'yes'"):
        read_examples(path)


@pytest.mark.parametrize("field", ["prompt", "target", "choices"])
def test_half_an_emoji_is_no_text(tmp_path, field):
    row = {"id": "1", "task": "t", "domain": "law", "prompt": "p", "target": "yes", "choices": ["yes", "no"]}
    broken = ["yes", "\ud83d"] if field == "choices" else "\ud83d"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**row, field: broken}) + "\n")
    with pytest.raises(DataError, match=f"line 1: field '{field}' is .* needed"):
        read_examples(path)


def test_missing_empty_and_damaged_files(tmp_path):
    with pytest.raises(DataError, match="There is no data file"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        read_examples(write(tmp_path / "empty.jsonl.gz"))
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "bad.jsonl.gz")
    whole = gzip.compress(json.dumps(ROW).encode())
    (tmp_path / "damaged.jsonl.gz").write_bytes(whole[:10] + b"\xff" * 8 + whole[18:])  # after the head of 10 bytes
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "damaged.jsonl.gz")


def test_a_wrong_data_folder_is_said(monkeypatch):
    monkeypatch.setenv("LORAMIXER_DATA", "/no/such/folder")
    with pytest.raises(DataError, match="LORAMIXER_DATA is '/no/such/folder', which is no folder"):
        mixed_examples(8, 0)


def test_what_is_named_comes_before_the_environment(monkeypatch, tmp_path):
    write(tmp_path / "gsm8k/train.jsonl.gz", ROW)
    monkeypatch.setenv("LORAMIXER_DATA", "generated")
    assert data_origin() == "generated"
    assert describe_source().startswith("GENERATED rows")
    assert task_licenses(["gsm8k"]) == {"gsm8k": "generated by loramixer"}
    assert [row.id for row in expert_examples("math", 0, tmp_path)] == ["1"]
    assert isinstance(find_source(tmp_path), FolderSource)
    assert find_source("hub").origin == "hub"
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path))
    assert (data_origin(), data_origin("generated"), data_origin(GeneratedSource())) == ("folder", *["generated"] * 2)
    assert str(tmp_path) in describe_source()
    assert task_licenses(["gsm8k"]) == {"gsm8k": "MIT"}


def test_every_domain_has_a_recipe_a_licence_and_generated_rows():
    assert set(DEFAULT_DOMAINS) == set(PAPER_DOMAINS) == set(RECIPES) - {"language"}
    for name, recipe in RECIPES.items():
        assert set(recipe.licenses) == set(recipe.tasks)
        rows = expert_examples(name, 0, "generated")
        assert {row.domain for row in rows} == {name}
        assert len(rows) == 400


def test_held_out_generated_rows_are_not_training_rows():
    for names in (DEFAULT_DOMAINS, ("math", "language")):
        trained = {row.id for row in mixed_examples(400, 0, names, source="generated")}
        for name in names:
            held_out = held_out_examples(name, 50, 0, source="generated")
            assert len(held_out) == 50
            assert not trained & {row.id for row in held_out}


def test_no_row_of_a_data_set_belongs_to_two_experts(real_data):
    with pytest.raises(DataError, match="'language' and 'sentiment' both hold the data set sst2"):
        mixed_examples(20, 0, ["language", "math", "sentiment"])


def test_the_shipped_zoo_was_trained_on_the_rows_that_are_drawn_today(real_data, embedded_backbone):
    _, tokenizer = embedded_backbone
    log = json.loads((ZOO / "rsl/run_log.json").read_text())["settings"]
    assert set(log["experts"]) == set(DEFAULT_DOMAINS)
    _, kept = encode_all(mixed_examples(2000, 0, log["experts"]), tokenizer, log["max_length"], log["max_answer"])
    assert fingerprint(kept) == log["rows_fingerprint"]
    for name in DEFAULT_DOMAINS:
        log = json.loads((ZOO / "experts" / name / "run_log.json").read_text())["settings"]
        _, kept = encode_all(expert_examples(name, 0), tokenizer, log["max_length"], log["max_answer"])
        assert fingerprint(kept) == log["rows_fingerprint"]


@pytest.mark.parametrize("names", [DEFAULT_DOMAINS, ("math", "language")])
def test_held_out_rows_share_nothing_with_training_rows(real_data, names):
    trained = {(row.task, row.prompt) for row in mixed_examples(400, 0, names)}
    for domain in names:
        held_out = held_out_examples(domain, 40, 0)
        assert len(held_out) == 40
        assert {row.domain for row in held_out} == {domain}
        assert not trained & {(row.task, row.prompt) for row in held_out}
    assert {row.domain for row in evaluation_examples(["science", "acceptability"])} == {"science", "acceptability"}


@pytest.mark.parametrize(("experts_seed", "seed"), [(0, 0), (0, 1), (1, 0), (2, 3)])
def test_routers_see_rows_that_their_experts_did_not(real_data, experts_seed, seed):
    all_mixed = mixed_examples(2000, seed, PAPER_DOMAINS)
    for name in set(PAPER_DOMAINS) - {"code"}:
        known = {(row.task, row.id) for row in expert_examples(name, experts_seed)}
        mixed = [row for row in all_mixed if row.domain == name]
        assert len(mixed) in (333, 334)
        assert not known & {(row.task, row.id) for row in mixed}


def test_loss_is_on_the_answer_only():
    tokenizer = tiny.tokenizer()
    example = Example("1", "t", "math", "the dose", "ten")
    row = encode(example, tokenizer, 100)
    answer = [label for label in row["labels"] if label != IGNORED_LABEL]
    assert tokenizer.decode(answer) == "ten</s>"
    assert len(row["labels"]) == len(row["input_ids"]) == len(row["own_tokens"])
    assert row["labels"][: -len(answer)] == [IGNORED_LABEL] * (len(row["labels"]) - len(answer))


def test_without_a_chat_template_a_row_begins_as_the_tokenizer_begins_a_text_and_does_not_end_before_the_answer():
    """Llama and Mistral as they were pretrained lose much without their first token."""
    tokenizer = tiny.tokenizer()
    example = Example("1", "t", "math", "the dose", "ten")
    plain = encode(example, tokenizer, 100)
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    row = encode(example, tokenizer, 100)
    assert row == {
        "input_ids": [first, *plain["input_ids"]],
        "labels": [IGNORED_LABEL, *plain["labels"]],
        "own_tokens": [0, *plain["own_tokens"]],
    }
    tokenizer.chat_template = CHATML.replace("TRIM", "")  # a template brings its own
    assert first not in encode(example, tokenizer, 100)["input_ids"]


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] TRIM}}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("prompt", ["a", "start", "im", "assistant", "user\n", "  the dose "])
@pytest.mark.parametrize("trim", ["", "| trim "])
def test_a_prompt_is_found_though_the_template_has_its_words(prompt, trim):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHATML.replace("TRIM", trim)
    found = encode_prompt(tokenizer, prompt)
    head = "<|im_start|>user\n"
    before = "" if trim else prompt[: len(prompt) - len(prompt.lstrip())]
    assert found.span == (len(head + before), len(head + before + prompt.strip()))
    assert any(found.is_own())
    plain = encode_prompt(tokenizer, prompt, chat=False)
    assert plain.text[slice(*plain.span)] == prompt.strip()


def test_a_template_that_depends_on_the_prompt_or_changes_it():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | length }}: {{ m['content'] }}.{% endfor %}"
    found = encode_prompt(tokenizer, "the dose")
    assert found.text[slice(*found.span)] == "the dose"
    tokenizer.chat_template = "{% for m in messages %}user: {{ m['content'] | upper }}{% endfor %}"
    assert not any(encode_prompt(tokenizer, "the dose").is_own())


def test_long_answers_are_cut_and_long_prompts_left_out():
    tokenizer = tiny.tokenizer()
    example = Example("1", "t", "math", "the dose", "ten " * 50)
    assert len(encode(example, tokenizer, 20)["input_ids"]) == 20
    assert sum(label != IGNORED_LABEL for label in encode(example, tokenizer, 100, max_answer=5)["labels"]) == 5
    assert encode(example, tokenizer, 3) is None
    assert token_counter(tokenizer, 20)(example) == 20
    assert token_counter(tokenizer, 3)(example) == 0
