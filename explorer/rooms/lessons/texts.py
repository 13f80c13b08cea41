"""The five lessons: what they say, what they ask, and which views they lead to. No number stands here."""

from __future__ import annotations

from dataclasses import dataclass

from explorer.examples import EXAMPLES
from explorer.link import to_query
from explorer.rooms.lessons import answers
from explorer.rooms.lessons.answers import Measure
from explorer.view_link import FIELDS as EXPLORE


@dataclass(frozen=True)
class View:
    """A link into another room.

    Attributes:
        label: its text.
        query: of the address, without a question mark.
    """

    label: str
    query: str


@dataclass(frozen=True)
class Lesson:
    """One short page.

    Attributes:
        key: in links, ``?room=lessons&lesson=key``.
        title: of the page.
        paragraphs: what is to be known before the question.
        question: to be answered before anything is shown.
        afterwards: what the answer means.
        measure: gives the answer.
        views: where to look.
        number_question: asks for a number too; empty where there is none to guess.
    """

    key: str
    title: str
    paragraphs: tuple[str, ...]
    question: str
    afterwards: str
    measure: Measure
    views: tuple[View, ...]
    number_question: str = ""


def explore(label: str, hide: str = "", **values: object) -> View:
    """A link to a view of Explore; ``hide`` names controls that a class does not need."""
    query = to_query("explore", values, EXPLORE)
    return View(label, f"{query}&hide={hide}" if hide else query)


LESSONS = (
    Lesson(
        "sees",
        "What a router sees",
        (
            "A LoRA expert is a small change of some weights, trained on one topic. Here several experts sit in one "
            "model, and in every layer a router decides, for every token, how much of each expert's change is used.",
            "A router is one small matrix. It sees no topic and no question: only the numbers that stand for this "
            "token at this place in the model. Each projection (q, k, v, o) of each layer has a router of its own.",
        ),
        "The Math example asks how much money a baker earns. Which expert gets the largest mean weight over its "
        "tokens?",
        "A mean hides a lot. Find on the map the layers where the winner is clear, those where the weights hardly "
        "differ, and the words that go another way than the rest.",
        answers.router_sees,
        (
            explore("Look at the Math example", example="math"),
            explore("Only the map and the text, for a class", hide="controls,share,sections", example="math"),
            explore("Where routers are undecided", example="math", measure="entropy"),
        ),
        "How large is that mean weight, as a share of all experts together?",
    ),
    Lesson(
        "balanced",
        "Why balanced is not good",
        (
            "If a router always took one expert, the others would be wasted. So routers are often trained with a "
            "balance loss that asks for an even load: over all tokens, every expert should be used as much as any "
            "other.",
            "There are two ways to an even load. A router can give every token to one expert, and different tokens to "
            "different ones. Or it can give every token a little of everything. The balance loss cannot tell them "
            "apart.",
        ),
        "One router was trained with RSL, which also rewards decided tokens, another with the balance loss alone. "
        "Which of them tells the domains apart more?",
        "Evenness alone says nothing about specialisation. The Trade-off room draws both against each other: the gap "
        "between balanced and undecided is what a token says about its expert.",
        answers.balanced_is_not_good,
        (
            View("See the routers on the plane", to_query("tradeoff", {}, ())),
            explore("Look at the balance loss at work", mixer="smollm2-135m/load-balance", example="math-medical"),
        ),
        "How balanced is the load of the router that was trained with RSL, from one expert alone to even?",
    ),
    Lesson(
        "sign",
        "The sign of λ",
        (
            "RSL adds a second term to the balance: λ times the entropy of single tokens. High entropy means that the "
            "router is undecided about a token.",
            "Eq. 5 of the paper prints the term with a minus. Training makes the loss small. Think it through before "
            "you look: what does each sign do to undecided tokens?",
        ),
        "With which sign do single tokens end with the lower entropy, that is, more decided?",
        "This project names the signs by what they do: sharpen adds the entropy to the loss, flatten subtracts it. "
        "Every router says which one it was trained with.",
        answers.sign_of_lambda,
        (
            View("See both signs on the plane", to_query("tradeoff", {}, ())),
            explore("Where routers are undecided", example="math-medical", measure="entropy"),
        ),
    ),
    Lesson(
        "math-medical",
        "Math–Medical",
        (
            "This prompt changes its topic in the middle: first a calculation, then a question about side effects. "
            "Nobody tells the routers where the border is.",
            "Words of the first part stay visible to the model in the second, since attention looks back. So a router "
            "need not switch at once, or at all.",
        ),
        "In the medical part of the prompt, which expert gets the largest mean weight?",
        "Compare the two columns: what matters is not only who wins, but how much the weights move at the border.",
        answers.math_medical,
        (
            explore("Look at the prompt word by word", example="math-medical", unit="word"),
            explore("The medical expert alone", example="math-medical", measure="medical"),
        ),
        "Which share of the weight in the medical part goes to the medical expert?",
    ),
    Lesson(
        "no-matter",
        "When routing does not matter",
        (
            "A router chooses between experts. If the experts hardly differ on a text, every choice is as good as "
            "another, and the finest router cannot improve the answer.",
            "So before judging a router, measure the experts: every expert alone, on test text of every domain.",
        ),
        "In which domain does it matter least which expert is used?",
        "Also note whether the best expert of a domain is the one that was trained on it. Where it is not, a router "
        "that follows the topic follows the wrong sign.",
        answers.does_not_matter,
        (explore("Look at a recorded prompt", example=EXAMPLES[-1].key),),
    ),
)
"""In the order in which they build on each other."""


def find_lesson(key: str) -> Lesson:
    """The lesson of that key, or the first."""
    return next((lesson for lesson in LESSONS if lesson.key == key), LESSONS[0])
