"""Generated rows: seeded, exact, with gold spans; and the checker of answers, which executes nothing."""

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loramixer.data import (
    DEFAULT_DOMAINS,
    FAMILIES,
    Example,
    answer_number,
    check_answer,
    generated_examples,
    mixed_examples,
)
from loramixer.errors import DataError

PROGRAM = Example("1", "t", "code", "", "def f(x):\n    return max(0, 12 - 3 * x)")


def numbers(text):
    return [int(word) for word in re.findall(r"\d+", text)]


def test_rows_are_seeded_and_those_of_earlier_versions():
    rows = generated_examples(90, seed=1)
    assert rows == generated_examples(90, seed=1) != generated_examples(90, seed=2)
    assert {row.domain for row in rows} == set(DEFAULT_DOMAINS)
    first = generated_examples(6, seed=0)
    assert [row.id for row in first] == [
        f"generated-{domain}-0-{index}" for index, domain in enumerate(DEFAULT_DOMAINS)
    ]
    assert first[0].prompt == "A shop has 8 boxes with 16 pens each and sells 1 pens. How many pens are left?"
    assert mixed_examples(90, 1, source="generated") == rows


@given(family=st.sampled_from(list(FAMILIES)), seed=st.integers(0, 10_000))
def test_every_gold_answer_passes_its_own_check_and_no_other_does(family, seed):
    first, second = generated_examples(2, seed, [family])
    assert first.domain == FAMILIES[family].domain
    assert check_answer(first, first.target)
    assert check_answer(first, f"{first.target}\n")
    assert not check_answer(first, "")
    if first.choices is None and second.target != first.target:
        same = not first.target.startswith("def") and answer_number(first.target) == answer_number(second.target)
        assert check_answer(first, second.target) == same
    elif first.choices is not None:
        assert [check_answer(first, choice) for choice in first.choices].count(True) == 1


@given(seed=st.integers(0, 10_000), family=st.sampled_from(["math-medical", "math-code"]))
def test_gold_spans_cover_the_prompt_and_name_both_domains(seed, family):
    (row,) = generated_examples(1, seed, [family])
    assert row.spans is not None
    assert {span.domain for span in row.spans} == set(family.split("-"))
    assert " ".join(row.prompt[span.start : span.end] for span in row.spans) == row.prompt
    texts = {span.domain: row.prompt[span.start : span.end] for span in row.spans}
    assert ("Python" in texts["code"]) if family == "math-code" else ("mg" in row.prompt or "ml" in row.prompt)


def test_either_domain_may_come_first():
    for family in ("math-medical", "math-code"):
        assert {row.spans[0].domain for row in generated_examples(40, 0, [family])} == set(family.split("-"))


def test_medical_arithmetic_is_right_when_done_again_from_the_words():
    kinds = {"boxes": 0, "drops": 0, "spilt": 0}
    for row in generated_examples(300, 3, ["math-medical"]):
        text = {span.domain: row.prompt[span.start : span.end] for span in row.spans}
        medical, arithmetic = numbers(text["medical"]), numbers(text["math"])
        if "boxes" in row.prompt:
            kinds["boxes"] += 1
            (weight, dose, times), (_, tablets, strength, days) = medical, [0, *arithmetic]
            expected = math.ceil(Fraction(weight * dose * times * days, tablets * strength))
        elif "drops" in row.prompt:
            kinds["drops"] += 1
            expected = Fraction(medical[0] * arithmetic[0], medical[1] * 60)
        else:
            kinds["spilt"] += 1
            expected = Fraction(medical[0], medical[1]) * arithmetic[0] + arithmetic[1]
        assert answer_number(row.target) == expected
    assert all(kinds.values())


def test_programs_are_right_when_done_again_from_the_words():
    for row in generated_examples(200, 5, ["math-code"]):
        text = {span.domain: row.prompt[span.start : span.end] for span in row.spans}
        given_numbers = numbers(text["math"])
        scope: dict = {}
        exec(row.target, scope)  # our own generator wrote it
        for x in (1, 7, 40):
            if "Pens" in row.prompt:
                size, boxes, back = given_numbers
                expected = x * boxes * size - back
            elif "tank" in row.prompt:
                volume, loss = given_numbers
                expected = max(0, volume - loss * x)
            else:
                price, people, less = given_numbers
                expected = x * (price - less if x >= people else price)
            assert scope["f"](x) == expected


def test_an_unknown_family_is_said():
    with pytest.raises(DataError, match="no generated family 'law'"):
        generated_examples(3, 0, ["law"])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 boxes\n#### 1,204", 1204),
        ("it is 7.", 7),
        ("#### -2.5 litres of 4", -2.5),
        ("none", None),
        ("####", None),
    ],
)
def test_the_final_number_is_found(text, number):
    assert answer_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return max(12 - x * 3, 0)",
        "Here it is:\n```python\ndef f(hours):\n    left = 12 - 3 * hours\n    if left < 0:\n        return 0\n"
        "    return left\n```\nDone.",
        'def f(x):\n    """Left."""\n    left = 12\n    left -= 3 * x\n    return left if left > 0 and x < 99 else 0\n\nf(2)',  # noqa: E501
    ],
)
def test_another_way_to_write_a_program_is_right(text):
    assert check_answer(PROGRAM, text)


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return 12 - 3 * x",
        "def f(x):\n    return",
        "def f(x):\n    if x > 0:\n        return 0",
        "def f(x, y):\n    return 0",
        "def f(x):\n    return __import__('os').system('true')",
        "def f(x):\n    return open('file').read()",
        "def f(x):\n    while True:\n        pass",
        "def f(x):\n    return f(x)",
        "def f(x):\n    return 9 ** 9 ** 9 ** 9",
        "def f(x):\n    x += 30\n" + "    x *= x\n" * 200 + "    return 0 * x",
        "def f(x):\n    return round(x, -999999999)",
        "def f(x):\n    return y",
        "def f(x):\n    return 1 / (x - x)",
        "def f(x):\n    return [0]",
        "def f(x) return",
        "def f(x):\n    return " + "(" * 3000,
        "12 - 3x",
        "",
    ],
)
def test_wrong_dangerous_and_endless_programs_are_wrong_and_never_run(text):
    assert not check_answer(PROGRAM, text)


def test_the_choice_that_an_answer_begins_with_counts():
    row = Example("1", "t", "science", "", "ice", ("water", "ice", "ice cream"), 1)
    assert check_answer(row, "Ice.")
    assert not check_answer(row, "Ice cream, since it is cold")
    assert not check_answer(row, "It is not water but ice")
