"""A small Falcon-Mamba from nothing: its vocabulary and its weights, trained on the rows of the shipped domains.

It is there so that a state-space backbone can be routed without the Hub. A model of this size, trained for minutes,
has the statistics of its domains and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM, PreTrainedTokenizerFast

from loramixer.cards import write_backbone_card
from loramixer.data import (
    Example,
    chat_prompt,
    data_origin,
    data_revisions,
    draw_mixture,
    evaluation_examples,
    held_out_examples,
    rows_per_task,
    rows_used,
    task_licenses,
    token_counter,
)
from loramixer.distributed import say
from loramixer.errors import DataError
from loramixer.evaluation.texts import frequency_scores, model_scores, text_losses
from loramixer.training.checkpoints import CHECKPOINTS, conclude, is_finished
from loramixer.training.loop import run_training
from loramixer.training.run_log import RunLog
from loramixer.training.same_run import refuse_other_run
from loramixer.training.selective_scan import scan_by_hand
from loramixer.training.settings import LoopSettings
from loramixer.versions import library_versions

END, PAD = "<|end|>", "<|pad|>"
"""The only special tokens: what ends a text, and what fills a batch."""

SHARES: dict[str, float] = {
    "math": 3,
    "medical": 3,
    "code": 1,
    "science": 1.5,
    "acceptability": 0.5,
    "sentiment": 0.5,
}
"""Domain → its share of the training tokens: most for long answers, little for the two whose rows are one sentence and
one word."""

ROWS = 13_000
"""Rows of the shipped backbone."""

ROW_LENGTH = 192
"""Tokens of a training row: pieces of the texts of all rows, one behind the other."""

LONGEST_TEXT = 512

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class BackboneShape:
    """What the backbone is made of; the names are those of Transformers' ``FalconMambaConfig``.

    Attributes:
        vocabulary: tokens, of a byte-level BPE.
        hidden_size: features between the blocks; a block works on twice as many channels.
        layers: blocks.
        states: numbers that a block keeps per channel.
    """

    vocabulary: int = 2048
    hidden_size: int = 192
    layers: int = 4
    states: int = 8


SETTINGS = LoopSettings(
    learning_rate=3e-3,
    batch_size=12,
    epochs=0.6,
    warmup=0.05,
    weight_decay=0.05,
    save_steps=100,
    log_steps=20,
    max_length=ROW_LENGTH,
    autocast=True,
)
"""The loop of the shipped backbone; the weights are kept in float32, products are taken in bfloat16."""


def train_backbone(
    output: str | Path,
    *,
    rows: int = ROWS,
    seed: int = 0,
    shape: BackboneShape | None = None,
    shares: Mapping[str, float] | None = None,
    settings: LoopSettings = SETTINGS,
    test_rows: int = 100,
    command: str = "",
) -> Path:
    """Train a Falcon-Mamba and its vocabulary; resumes when ``output`` holds checkpoints.

    Args:
        output: folder that receives the backbone: configuration, bfloat16 weights, tokenizer, run log, model card.
        rows: rows of all domains together, from :func:`loramixer.data.draw_mixture`.
        seed: rows, their order and initial weights.
        shape: of the backbone.
        shares: domain → its share of the tokens; :data:`SHARES` by default.
        settings: how the run steps through the rows.
        test_rows: rows per domain on which the result is measured.
        command: the command to print in the model card.

    Returns:
        ``output``.

    Raises:
        DataError: no such rows, or too few for a piece.
        LoraMixerError: ``output`` holds a training with other settings; or the run had to stop, see
            :func:`loramixer.training.loop.run_training`.
    """
    folder = Path(output)
    shape, shares = shape or BackboneShape(), dict(shares or SHARES)
    asked = {"stage": "backbone", "shares": shares, **asdict(shape), **asdict(settings), "seed": seed}
    if is_finished(folder, WEIGHTS_FILE):
        refuse_other_run(folder, asked)
        say(f"{folder} holds a finished backbone; delete it to train it again.")
        return folder
    examples = backbone_examples(rows, seed, shares, shape.vocabulary)
    tokenizer = train_tokenizer(map(text_of, examples), shape.vocabulary)
    pieces = encode_pieces(examples, tokenizer, settings.max_length)
    if not pieces:
        raise DataError(
            f"{rows} rows do not fill one piece of {settings.max_length} tokens; ask for more (rows, --rows)."
        )
    torch.manual_seed(seed)
    model = FalconMambaForCausalLM(backbone_config(shape, tokenizer))
    log = RunLog(
        settings={
            **asked,
            "command": command,
            "parameters": model.num_parameters(),
            "data": data_origin(),
            "data_revisions": data_revisions(),
            **rows_used(examples),
            "licenses": task_licenses(list(rows_per_task(examples))),
            "dtype": "float32, products in bfloat16" if settings.autocast else "float32",
            "versions": library_versions(),
        }
    )
    say(
        f"Training a Falcon-Mamba of {model.num_parameters():,} parameters on {len(pieces)} pieces of "
        f"{settings.max_length} tokens from {len(examples)} rows ({data_origin()} data) …"
    )
    run_training(model, tokenizer, pieces, folder, settings, log)

    def write() -> None:
        model.to(torch.bfloat16)
        model.config.use_cache = True  # the Trainer turns it off
        log.summary["held_out"] = held_out_table(model, tokenizer, pieces, list(shares), test_rows, seed)
        log.save(folder)
        write_backbone_card(folder, log)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)

    conclude(folder / CHECKPOINTS, write)
    return folder


def backbone_examples(count: int, seed: int, shares: Mapping[str, float], vocabulary: int) -> list[Example]:
    """Rows whose tokens are shared between the domains as told; none whose prompt is in an evaluation split.

    Rows are weighed with a vocabulary of their own domains, trained on the first of them.
    """
    domains = list(shares)
    some = draw_mixture(min(count, 2000), seed, domains, shares=shares).rows
    counter = token_counter(train_tokenizer(map(text_of, some), vocabulary), LONGEST_TEXT, LONGEST_TEXT)
    return draw_mixture(
        count,
        seed,
        domains,
        shares=shares,
        balance="tokens",
        count_tokens=counter,
        evaluation=evaluation_examples(domains),
    ).rows


def text_of(example: Example) -> str:
    """A row as one text, as it is put when the backbone is asked: prompt, line end, answer."""
    return chat_prompt(None, example.prompt) + example.target


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE, so that no text is outside of it; every digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def encode_pieces(examples: Sequence[Example], tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """The texts of all rows behind each other, each with its end, in pieces of equal length; the rest is left out.

    Returns:
        Rows for :func:`loramixer.training.loop.run_training`; every token has a label.
    """
    line: list[int] = []
    for example in examples:
        line += tokenizer(text_of(example))["input_ids"][:LONGEST_TEXT]
        line.append(tokenizer.eos_token_id)
    whole = len(line) // length * length
    pieces = [line[start : start + length] for start in range(0, whole, length)]
    return [{"input_ids": piece, "labels": piece, "id": f"piece {number}"} for number, piece in enumerate(pieces)]


def backbone_config(shape: BackboneShape, tokenizer: Any) -> FalconMambaConfig:
    """The configuration of a backbone of this shape for this vocabulary."""
    return FalconMambaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        state_size=shape.states,
        initializer_range=0.05,  # the default, 0.1, is for wider ones
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def held_out_table(
    model: FalconMambaForCausalLM,
    tokenizer: Any,
    pieces: Sequence[dict[str, Any]],
    domains: Sequence[str],
    count: int,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Loss of held-out texts by domain: of token frequencies, of the backbone before its training, and after it.

    Args:
        model: the trained backbone; it is measured in float32, as it is loaded.
        tokenizer: of the backbone.
        pieces: what it was trained on.
        domains: names of recipes.
        count: test rows per domain.
        seed: chooses the rows, and made the first weights.

    Returns:
        Who → one row of :class:`loramixer.evaluation.texts.TextLoss` per domain.
    """
    texts = {
        domain: [
            [*tokenizer(text_of(row))["input_ids"][:LONGEST_TEXT], tokenizer.eos_token_id]
            for row in held_out_examples(domain, count, seed)
        ]
        for domain in domains
    }
    seen = Counter(token for piece in pieces for token in piece["input_ids"])
    torch.manual_seed(seed)
    untrained = FalconMambaForCausalLM(model.config).eval()
    trained = FalconMambaForCausalLM(model.config).eval()
    trained.load_state_dict(model.state_dict())
    scores = {
        "token frequencies": frequency_scores([seen[token] for token in range(len(tokenizer))]),
        "before training": model_scores(untrained),
        "trained": model_scores(trained),
    }
    with scan_by_hand(trained):
        return {name: [asdict(row) for row in text_losses(texts, score)] for name, score in scores.items()}
