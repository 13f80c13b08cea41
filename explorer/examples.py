"""The example prompts: two that cross domains, and one for each single domain."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A part of a prompt that is about one topic, marked by hand.

    Attributes:
        expert: name of the expert that was trained on this topic.
        text: the part, as it stands in the prompt.
    """

    expert: str
    text: str


@dataclass(frozen=True)
class ExamplePrompt:
    """A prompt that one press puts into the prompt box.

    Attributes:
        key: short name; a recorded trace refers to it.
        label: text of its button.
        prompt: the prompt itself.
        topics: its parts, in order, where it crosses domains.
        expert: name of the expert that the whole prompt is about, where it does not.
    """

    key: str
    label: str
    prompt: str
    topics: tuple[Topic, ...] = ()
    expert: str = ""


EXAMPLES = (
    ExamplePrompt(
        "math-medical",
        "Math–Medical",
        "A patient takes 250 mg of amoxicillin three times a day for 7 days. How many mg does the patient take in "
        "all, and what are the side effects of amoxicillin?",
        (
            Topic(
                "math",
                "A patient takes 250 mg of amoxicillin three times a day for 7 days. How many mg does the patient "
                "take in all,",
            ),
            Topic("medical", "and what are the side effects of amoxicillin?"),
        ),
    ),
    ExamplePrompt(
        "math-coding",
        "Math–Coding",
        "A loan of 12,000 dollars grows by 3 percent a year. Work out what is owed after two years, then write a "
        "Python function that returns the amount owed after n years.",
        (
            Topic(
                "math",
                "A loan of 12,000 dollars grows by 3 percent a year. Work out what is owed after two years,",
            ),
            Topic("code", "then write a Python function that returns the amount owed after n years."),
        ),
    ),
    ExamplePrompt(
        "math",
        "Math",
        "A baker sells 48 loaves in the morning and half as many in the afternoon. Each loaf costs 3 dollars. "
        "How much money does the baker earn that day?",
        expert="math",
    ),
    ExamplePrompt(
        "medical",
        "Medical",
        "What are the symptoms of iron deficiency anemia, and how is it treated?",
        expert="medical",
    ),
    ExamplePrompt(
        "code",
        "Code",
        "Write a Python function that returns the second largest number in a list, or None when there is none.",
        expert="code",
    ),
    ExamplePrompt(
        "science",
        "Science",
        "Question: Which of these lets electricity pass most easily?\nOptions:\nA. dry wood\nB. window glass\n"
        "C. a copper wire\nD. a rubber band\nWhich option is correct?",
        expert="science",
    ),
    ExamplePrompt(
        "acceptability",
        "Acceptability",
        "Is this sentence grammatically acceptable? Answer yes or no.\n"
        "Sentence: The committee have gave their answer before the meeting began.",
        expert="acceptability",
    ),
    ExamplePrompt(
        "sentiment",
        "Sentiment",
        "Is the sentiment of this movie review text negative or positive?\n"
        "Text: the plot wanders, but the two leads are a joy to watch",
        expert="sentiment",
    ),
)
"""In the order of their buttons; the first is on the page when it opens."""


def find_example(key: str) -> ExamplePrompt:
    """The example of that key; KeyError when there is none."""
    return {example.key: example for example in EXAMPLES}[key]
