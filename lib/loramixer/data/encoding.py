"""Rows as tokens: the chat template around the prompt, and loss on the answer only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from loramixer.data.schema import Example

IGNORED_LABEL = -100
"""Label of tokens that carry no loss (the value that PyTorch's cross-entropy skips)."""


_STAND_IN = "\N{OBJECT REPLACEMENT CHARACTER}message\N{OBJECT REPLACEMENT CHARACTER}"
"""A message that no template contains, so that the template around it can be told apart."""


def chat_prompt(tokenizer: Any, prompt: str) -> str:
    """What a model is given for a prompt: its chat template filled in, else the prompt and a line end."""
    if getattr(tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return f"{prompt}\n"


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    Attributes:
        text: the prompt inside its chat template.
        span: character span of the user's own words in ``text``; empty where the template has changed them.
        ids: its tokens.
        offsets: character span of every token in ``text``.
    """

    text: str
    span: tuple[int, int]
    ids: list[int]
    offsets: list[tuple[int, int]]

    def is_own(self) -> list[bool]:
        """For every token, whether it belongs to the user's words and not to the template."""
        return [start >= self.span[0] and end <= self.span[1] and end > start for start, end in self.offsets]


def encode_prompt(tokenizer: Any, prompt: str, chat: bool = True) -> EncodedPrompt:
    """Tokenise a prompt, inside the chat template unless ``chat`` is false.

    A template brings the special tokens of its text. Without one, a text begins as the tokenizer begins it (pretrained
    Llama and Mistral lose much without their first token), and ends as it ends it only where ``chat`` is false: an
    answer follows a prompt.
    """
    text = chat_prompt(tokenizer, prompt) if chat else prompt
    # Some templates strip the message, so the trimmed prompt is what can be found again.
    words = prompt.strip()
    start = text.rfind(words, *(_message_span(tokenizer, text) if chat else ()))
    span = (start, start + len(words)) if start >= 0 else (0, 0)
    templated = chat and bool(getattr(tokenizer, "chat_template", None))
    encoded = tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    while chat and offsets and offsets[-1][1] == 0:  # added tokens stand nowhere in the text
        ids.pop(), offsets.pop()
    return EncodedPrompt(text, span, ids, offsets)


def _message_span(tokenizer: Any, text: str) -> tuple[int, int]:
    """Where the message of a filled-in template stands; the whole text where the template depends on the message."""
    head, found, tail = chat_prompt(tokenizer, _STAND_IN).partition(_STAND_IN)
    end = len(text) - len(tail)
    if not found or not text.startswith(head) or not text.endswith(tail) or end < len(head):
        return 0, len(text)
    return len(head), end


def encode(
    example: Example, tokenizer: Any, max_length: int, max_answer: int | None = None, target: str | None = None
) -> dict[str, list[int]] | None:
    """Tokens of one row with loss on the answer only.

    Args:
        example: the row.
        tokenizer: a fast tokenizer.
        max_length: longest allowed row in tokens; a longer answer is cut at its end.
        max_answer: longest allowed answer in tokens, within ``max_length``.
        target: another answer than the gold one (to score a choice).

    Returns:
        ``input_ids``, ``labels`` (:data:`IGNORED_LABEL` on the prompt) and ``own_tokens`` (1 on the user's words and
        the answer, 0 on the template); or None when the prompt leaves no room for an answer of at least one token.
    """
    prompt = encode_prompt(tokenizer, example.prompt)
    answer = example.target if target is None else target
    answer_ids = tokenizer(answer + (tokenizer.eos_token or ""), add_special_tokens=False)["input_ids"]
    room = max_length - len(prompt.ids)
    if room < 1 or not answer_ids:
        return None
    answer_ids = answer_ids[: room if max_answer is None else min(room, max_answer)]
    return {
        "input_ids": prompt.ids + answer_ids,
        "labels": [IGNORED_LABEL] * len(prompt.ids) + answer_ids,
        "own_tokens": [int(own) for own in prompt.is_own()] + [1] * len(answer_ids),
    }


def encode_all(
    examples: Iterable[Example], tokenizer: Any, max_length: int, max_answer: int | None = None
) -> tuple[list[dict[str, list[int]]], list[Example]]:
    """Encode rows, leaving out those whose prompt is too long; returns the encoded rows and the rows they are of."""
    encoded, kept = [], []
    for example in examples:
        if (row := encode(example, tokenizer, max_length, max_answer)) is not None:
            encoded.append(row)
            kept.append(example)
    return encoded, kept


def batches(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most ``size`` rows."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def token_counter(tokenizer: Any, max_length: int = 512, max_answer: int | None = 256) -> Callable[[Example], int]:
    """What :func:`loramixer.data.draw_mixture` weighs rows with: their tokens in training, 0 for a row left out there.

    Args:
        tokenizer: a fast tokenizer.
        max_length: longest row in tokens, as in training.
        max_answer: longest answer in tokens, as in training.
    """

    def count(example: Example) -> int:
        row = encode(example, tokenizer, max_length, max_answer)
        return 0 if row is None else len(row["input_ids"])

    return count
