"""Domains: which data sets an expert is made of, how many rows it takes of each, and under which licence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loramixer.errors import DataError


@dataclass(frozen=True)
class DomainRecipe:
    """What one domain is made of.

    Attributes:
        expert: name of the expert and of the domain.
        tasks: data sets of the domain and the number of training rows taken from each for its expert.
        epochs: passes over those rows when the expert is trained.
        licenses: licence of each task, as the source of the folder's copy states it; goes into model cards.
    """

    expert: str
    tasks: dict[str, int]
    epochs: int
    licenses: dict[str, str]


_COLA = "fair use for research, copyright stays with the authors of the texts"
_ARC = "Apache-2.0 (repository), ODC-By 1.0 (its data)"

RECIPES: dict[str, DomainRecipe] = {
    recipe.expert: recipe
    for recipe in (
        DomainRecipe("math", {"gsm8k": 1200}, 1, {"gsm8k": "MIT"}),
        DomainRecipe("medical", {"medquad": 700, "pubmedqa": 200}, 1, {"medquad": "CC BY 4.0", "pubmedqa": "MIT"}),
        DomainRecipe("code", {"mbpp": 371}, 3, {"mbpp": "MIT (repository; none stated for the data file)"}),
        DomainRecipe("language", {"cola": 1500, "sst2": 1500}, 1, {"cola": _COLA, "sst2": "MIT"}),
        # Of ARC, as of all others but MBPP, enough rows are left over for routers to see rows new to the expert.
        DomainRecipe(
            "science", {"arc_easy": 1200, "arc_challenge": 600}, 1, {"arc_easy": _ARC, "arc_challenge": _ARC}
        ),
        DomainRecipe("acceptability", {"cola": 1500}, 1, {"cola": _COLA}),
        DomainRecipe("sentiment", {"sst2": 1500}, 1, {"sst2": "MIT"}),
    )
}
"""All domains that can be trained; ``language`` is ``acceptability`` and ``sentiment`` in one."""

PAPER_DOMAINS = ("medical", "math", "code", "science", "acceptability", "sentiment")
"""The six domains of the paper's experiments: medical, GSM8K, code, ARC, CoLA and SST-2."""

DEFAULT_DOMAINS = ("math", "medical", "code", "science", "acceptability", "sentiment")
"""The paper's six in the order of the shipped experts: what commands train and mix when no domain is named."""


def domain_of_task(task: str, domains: Sequence[str] = ()) -> str | None:
    """The recipe that holds a task: one of ``domains`` where one does, else the first of all; None without any."""
    return next((name for name in (*domains, *RECIPES) if name in RECIPES and task in RECIPES[name].tasks), None)


DOMAIN_OF_TASK: dict[str, str] = {
    task: domain_of_task(task) or "" for recipe in RECIPES.values() for task in recipe.tasks
}
"""Task → the first recipe that holds it."""


def recipe_of(domain: str) -> DomainRecipe:
    """The recipe of a domain.

    Raises:
        DataError: there is none.
    """
    if domain not in RECIPES:
        raise DataError(f"There is no recipe for the domain '{domain}'; there are {', '.join(RECIPES)}.")
    return RECIPES[domain]


def check_disjoint(domains: Sequence[str]) -> None:
    """Refuse domains that share a data set: its rows would belong to two experts.

    Raises:
        DataError: two of the domains hold the same task, or a domain is named twice, or is unknown.
    """
    owners: dict[str, str] = {}
    for domain in domains:
        for task in recipe_of(domain).tasks:
            if task in owners:
                raise DataError(
                    f"The domains '{owners[task]}' and '{domain}' both hold the data set {task}; name one of them."
                )
            owners[task] = domain
