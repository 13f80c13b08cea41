"""Rows of text for training and evaluation: one schema, four kinds of source, and mixtures by domain.

Rows come from files, from a folder of ``<task>/<split>.jsonl.gz`` files, from data sets on the Hugging Face Hub, or
from a seeded generator with exact answers, so that every command can be tried. :func:`find_source` says which of them
is taken, and :func:`data_origin` what was.
"""

from loramixer.data.checking import answer_number, check_answer
from loramixer.data.encoding import (
    IGNORED_LABEL,
    EncodedPrompt,
    batches,
    chat_prompt,
    encode,
    encode_all,
    encode_prompt,
    token_counter,
)
from loramixer.data.generated import DEFAULT_FAMILIES, FAMILIES, generated_examples
from loramixer.data.hub_sets import HUB_DATASETS, HubDataset
from loramixer.data.local_rows import FileSource, FolderSource, task_examples
from loramixer.data.mixtures import (
    Mixture,
    draw_mixture,
    evaluation_examples,
    expert_examples,
    held_out_examples,
    mixed_examples,
)
from loramixer.data.overlap import OverlapReport, without_overlap
from loramixer.data.recipes import (
    DEFAULT_DOMAINS,
    DOMAIN_OF_TASK,
    PAPER_DOMAINS,
    RECIPES,
    DomainRecipe,
    domain_of_task,
    recipe_has,
)
from loramixer.data.schema import (
    Example,
    Span,
    content_fingerprint,
    fingerprint,
    read_examples,
    rows_per_task,
    rows_used,
)
from loramixer.data.sources import (
    AnySource,
    GeneratedSource,
    HubSource,
    Source,
    data_folder,
    data_origin,
    data_revisions,
    describe_source,
    find_source,
    names_a_file,
    task_licenses,
)

__all__ = [
    "DEFAULT_DOMAINS",
    "DEFAULT_FAMILIES",
    "DOMAIN_OF_TASK",
    "FAMILIES",
    "HUB_DATASETS",
    "IGNORED_LABEL",
    "PAPER_DOMAINS",
    "RECIPES",
    "AnySource",
    "DomainRecipe",
    "EncodedPrompt",
    "Example",
    "FileSource",
    "FolderSource",
    "GeneratedSource",
    "HubDataset",
    "HubSource",
    "Mixture",
    "OverlapReport",
    "Source",
    "Span",
    "answer_number",
    "batches",
    "chat_prompt",
    "check_answer",
    "content_fingerprint",
    "data_folder",
    "data_origin",
    "data_revisions",
    "describe_source",
    "domain_of_task",
    "draw_mixture",
    "encode",
    "encode_all",
    "encode_prompt",
    "evaluation_examples",
    "expert_examples",
    "find_source",
    "fingerprint",
    "generated_examples",
    "held_out_examples",
    "mixed_examples",
    "names_a_file",
    "read_examples",
    "recipe_has",
    "rows_per_task",
    "rows_used",
    "task_examples",
    "task_licenses",
    "token_counter",
    "without_overlap",
]
