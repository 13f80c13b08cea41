"""Generated rows with exact answers: single domains, and two domains that only together give the answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loramixer.data.schema import Example, Span
from loramixer.errors import DataError

Maker = Callable[[random.Random, str], Example]


@dataclass(frozen=True)
class Family:
    """One kind of generated row.

    Attributes:
        domain: of its rows.
        make: builds a row from a random generator and the row's id.
    """

    domain: str
    make: Maker


def generated_examples(count: int, seed: int, families: Sequence[str] | None = None) -> list[Example]:
    """Seeded rows with exact answers, which :func:`loramixer.data.check_answer` verifies.

    They exist so that every command runs with no data at all (screens and logs that use them say ``generated``), and
    as cross-domain sets whose gold spans say which words belong to which domain.

    Args:
        count: number of rows.
        seed: the same rows for the same seed.
        families: names of :data:`FAMILIES`, taken in turn; the six of :data:`DEFAULT_FAMILIES` by default.

    Raises:
        DataError: an unknown family.
    """
    names = list(families or DEFAULT_FAMILIES)
    if unknown := [name for name in names if name not in FAMILIES]:
        raise DataError(f"There is no generated family '{unknown[0]}'; there are {', '.join(FAMILIES)}.")
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        family = FAMILIES[names[index % len(names)]]
        row = family.make(rng, f"generated-{family.domain}-{seed}-{index}")
        rows.append(replace(row, task=f"generated_{family.domain.replace('-', '_')}", domain=family.domain))
    return rows


def _row(row_id: str, prompt: str, target: str, choices: tuple[str, ...] | None = None) -> Example:
    label = choices.index(target) if choices else None
    return Example(row_id, "", "", prompt, target, choices, label)


def _sum_row(rng: random.Random, row_id: str) -> Example:
    boxes, each, gone = rng.randint(2, 12), rng.randint(3, 20), rng.randint(1, 5)
    prompt = f"A shop has {boxes} boxes with {each} pens each and sells {gone} pens. How many pens are left?"
    total = boxes * each
    steps = f"There are {boxes} * {each} = {total} pens. {total} - {gone} = {total - gone} pens are left."
    return _row(row_id, prompt, f"{steps}\n#### {total - gone}")


def _dose_row(rng: random.Random, row_id: str) -> Example:
    weight, per_kilogram, times = rng.randint(10, 90), rng.choice([2, 5, 10, 15]), rng.randint(1, 4)
    prompt = (
        f"A patient weighs {weight} kg and receives {per_kilogram} mg of the drug per kg, {times} times a day. "
        "What is the daily dose?"
    )
    dose = weight * per_kilogram
    return _row(
        row_id, prompt, f"Each dose is {dose} mg, so the patient receives {dose * times} mg of the drug a day."
    )


def _function_row(rng: random.Random, row_id: str) -> Example:
    verb, sign = rng.choice([("adds", "+"), ("subtracts", "-"), ("multiplies by", "*")])
    number = rng.randint(2, 99)
    prompt = f"Write a Python function f(x) that {verb} {number}."
    return _row(row_id, prompt, f"def f(x):\n    return x {sign} {number}")


def _grammar_row(rng: random.Random, row_id: str) -> Example:
    subject, verb = rng.choice(
        [("The dogs", "run"), ("The dog", "runs"), ("My friends", "sing"), ("My friend", "sings")]
    )
    correct = rng.random() < 0.5
    if not correct:
        verb = verb[:-1] if verb.endswith("s") else f"{verb}s"
    place = rng.choice(["in the park", "at home", "by the sea", "every day", "after lunch", "before dawn"])
    prompt = f"Is this sentence grammatically acceptable? Answer yes or no.\nSentence: {subject} {verb} {place}."
    return _row(row_id, prompt, "yes" if correct else "no", ("no", "yes"))


_OPINIONS = {
    "positive": ["moving", "clever", "funny", "gripping", "beautiful", "warm"],
    "negative": ["dull", "clumsy", "boring", "tedious", "shallow", "lifeless"],
}


def _review_row(rng: random.Random, row_id: str) -> Example:
    opinion = rng.choice(["negative", "positive"])
    first, second = rng.sample(_OPINIONS[opinion], 2)
    part = rng.choice(["the acting", "the story", "the music", "the ending", "the dialogue"])
    prompt = (
        "Is the sentiment of this movie review text negative or positive?\n"
        f"Text: a {first} film , and {part} is {second} ."
    )
    return _row(row_id, prompt, opinion, ("negative", "positive"))


_KINDS = {
    "a metal": ["iron", "copper", "zinc", "gold", "silver"],
    "a gas at room temperature": ["oxygen", "nitrogen", "helium", "neon", "argon"],
    "a planet": ["Mars", "Venus", "Jupiter", "Saturn", "Neptune"],
    "a mammal": ["whale", "bat", "horse", "mouse", "seal"],
    "an organ of the body": ["liver", "heart", "kidney", "lung", "stomach"],
}


def _kind_row(rng: random.Random, row_id: str) -> Example:
    kinds = rng.sample(list(_KINDS), 4)
    options = tuple(rng.choice(_KINDS[kind]) for kind in kinds)
    gold = rng.randrange(4)
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    prompt = f"Question: Which of these is {kinds[gold]}?\nOptions:\n{listed}\nWhich option is correct?"
    return _row(row_id, prompt, options[gold], options)


def _crossed(rng: random.Random, row_id: str, parts: Sequence[tuple[str, str]], target: str) -> Example:
    """A row whose prompt is ``(domain, text)`` parts in random order, so that the place of a word tells no domain."""
    prompt, spans = "", []
    for domain, text in rng.sample(parts, len(parts)):
        start = len(prompt) + bool(prompt)
        prompt = f"{prompt} {text}" if prompt else text
        spans.append(Span(start, len(prompt), domain))
    return replace(_row(row_id, prompt, target), spans=tuple(spans))


_PRESCRIPTIONS = [
    ("asthma", "theophylline"),
    ("epilepsy", "valproate"),
    ("otitis media", "amoxicillin"),
    ("pneumonia", "clarithromycin"),
    ("rheumatoid arthritis", "naproxen"),
]


def _boxes_of_tablets(rng: random.Random, row_id: str) -> Example:
    condition, drug = rng.choice(_PRESCRIPTIONS)
    weight, per_kilogram, times = rng.randint(20, 90), rng.choice([2, 4, 5, 10]), rng.randint(1, 4)
    tablets, strength, days = rng.choice([10, 20, 30]), rng.choice([50, 100, 250]), rng.randint(3, 14)
    dose = weight * per_kilogram
    total, box = dose * times * days, tablets * strength
    boxes = -(-total // box)
    medical = (
        f"A patient with {condition} weighs {weight} kg and is prescribed {drug}, {per_kilogram} mg per kg of body "
        f"weight by mouth, {times} times a day."
    )
    math = (
        f"One box holds {tablets} pieces of {strength} mg each. What is the smallest number of boxes that is enough "
        f"for {days} days?"
    )
    target = (
        f"Each dose is {weight} * {per_kilogram} = {dose} mg, and {days} days need {dose} * {times} * {days} = "
        f"{total} mg. A box holds {tablets} * {strength} = {box} mg, so {boxes} boxes are enough.\n#### {boxes}"
    )
    return _crossed(rng, row_id, [("medical", medical), ("math", math)], target)


def _drops_per_minute(rng: random.Random, row_id: str) -> Example:
    condition = rng.choice(["dehydration", "sepsis", "burns", "ketoacidosis", "acute pancreatitis"])
    per_millilitre, hours, rate = rng.choice([10, 15, 20, 60]), rng.randint(2, 12), rng.randint(5, 40)
    volume = rate * 60 // per_millilitre * hours
    total, minutes = volume * per_millilitre, hours * 60
    medical = f"A patient with {condition} receives {volume} ml of intravenous saline over {hours} hours."
    math = f"If {per_millilitre} drops make 1 ml, how many drops is that per minute on average?"
    target = (
        f"{volume} * {per_millilitre} = {total} drops in {hours} * 60 = {minutes} minutes, and {total} / {minutes} = "
        f"{total // minutes}.\n#### {total // minutes}"
    )
    return _crossed(rng, row_id, [("medical", medical), ("math", math)], target)


def _millilitres_drawn(rng: random.Random, row_id: str) -> Example:
    drug = rng.choice(["morphine", "furosemide", "ondansetron", "haloperidol", "metoclopramide"])
    strength, each, patients, spare = rng.choice([2, 5, 10]), rng.randint(1, 6), rng.randint(2, 15), rng.randint(1, 9)
    dose = strength * each
    volume = each * patients + spare
    medical = f"The order is {dose} mg of {drug} by slow injection, and the ampoule contains {strength} mg per ml."
    math = f"How many ml are used up for {patients} such orders when {spare} ml in all are spilt?"
    target = (
        f"One order takes {dose} / {strength} = {each} ml. {each} * {patients} + {spare} = {volume} ml are used up."
        f"\n#### {volume}"
    )
    return _crossed(rng, row_id, [("medical", medical), ("math", math)], target)


def _pens_sold(rng: random.Random, row_id: str) -> Example:
    size, boxes, returned = rng.randint(3, 24), rng.randint(2, 9), rng.randint(1, 30)
    math = f"Pens come in boxes of {size}. Each of x customers buys {boxes} boxes, and {returned} pens come back."
    code = "Write a Python function f(x) that returns the number of pens that stay sold."
    target = f"def f(x):\n    return x * {boxes * size} - {returned}"
    return _crossed(rng, row_id, [("math", math), ("code", code)], target)


def _litres_left(rng: random.Random, row_id: str) -> Example:
    loss, hours = rng.randint(2, 15), rng.randint(5, 40)
    volume = loss * hours + rng.randint(0, loss - 1)
    math = f"A tank holds {volume} litres and loses {loss} litres every hour until it is empty."
    code = "Write a Python function f(x) that returns the litres that are left after x hours; use max."
    target = f"def f(x):\n    return max(0, {volume} - {loss} * x)"
    return _crossed(rng, row_id, [("math", math), ("code", code)], target)


def _group_price(rng: random.Random, row_id: str) -> Example:
    price, people = rng.randint(8, 40), rng.randint(4, 30)
    less = rng.randint(1, price // 2)
    math = f"A ticket costs {price} dollars, but groups of {people} or more pay {less} dollars less per person."
    code = "Write a Python function f(x) that returns the price in dollars for x people; use an if statement."
    target = f"def f(x):\n    if x >= {people}:\n        return x * {price - less}\n    return x * {price}"
    return _crossed(rng, row_id, [("math", math), ("code", code)], target)


def _one_of(*makers: Maker) -> Maker:
    return lambda rng, row_id: rng.choice(makers)(rng, row_id)


FAMILIES: dict[str, Family] = {
    "math": Family("math", _sum_row),
    "medical-dose": Family("medical", _dose_row),
    "code": Family("code", _function_row),
    "language": Family("language", _grammar_row),
    "science": Family("science", _kind_row),
    "acceptability": Family("acceptability", _grammar_row),
    "sentiment": Family("sentiment", _review_row),
    "math-medical": Family("math-medical", _one_of(_boxes_of_tablets, _drops_per_minute, _millilitres_drawn)),
    "math-code": Family("math-code", _one_of(_pens_sold, _litres_left, _group_price)),
}
"""Every kind of generated row; the last two cross domains and carry gold spans."""

DEFAULT_FAMILIES = ("math", "medical-dose", "code", "science", "acceptability", "sentiment")
