"""`LoraMixerConfig`: what a mixture is. Saved as ``adapter_config.json``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args

from peft import PeftConfig

from loramixer.cards import write_mixture_card
from loramixer.errors import MixerError
from loramixer.losses import Entropy, Form, Reduction, Scale, Usage
from loramixer.routing import DEFAULT_TOP_K, GateMode, check_gate_mode, check_temperature

RULE_FIELDS = {"top_k": "k", "temperature": "temperature", "renormalize": "renormalize"}
"""What a rule of `site_gates` can change besides the gate modes, and how `GateSettings` calls it."""

Mixing = Literal["auto", "dense", "sparse"]
RoutingLoss = Literal["rsl", "load_balance", "ds_moe", "gmoe", "aesl", "supervised", "none"]

BALANCED: tuple[RoutingLoss, ...] = ("rsl", "load_balance", "aesl")
"""Losses that have a balance term."""

WEIGHTS = (
    "entropy_weight",
    "poisson_weight",
    "normal_weight",
    "orthogonality_weight",
    "variance_weight",
    "z_weight",
    "preservation_weight",
)
"""Fields that weigh a term whose sign is fixed, or has a field of its own (``entropy``)."""


class MixerPeftType(str, Enum):
    """The PEFT type of a mixture."""

    LORA_MIXER = "LORA_MIXER"


@dataclass
class LoraMixerConfig(PeftConfig):
    """What a mixture of LoRA experts is, and how its routers are trained.

    Args:
        experts: expert name → folder or Hub id (``organisation/name[@revision]``) of a plain PEFT LoRA, or None for a
            new one that is trained together with the routers. After injection each value is a description (source,
            SHA-256, rank and scaling per site) instead; the source of an expert from the Hub is then pinned to the
            commit that was read, ``organisation/name@commit``.
        r: rank of new experts.
        lora_alpha: of new experts; their scaling is lora_alpha / r.
        use_rslora: whether the scaling of new experts is lora_alpha / √r.
        gate: gate mode in inference: ``top_k``, ``soft`` (all experts), ``domain`` (one known expert per row, see
            `set_gate`), ``uniform`` (the same weight for all) or ``off``.
        training_gate: gate mode in training: ``soft``, ``top_k``, ``straight_through`` (forward top-k, gradient of
            soft), or ``domain`` (the row's own expert, ``expert_index`` of the batch; for joint training of experts).
            The paper says soft in section 3.3 and top-3 in A.6; soft by default.
        top_k: experts per token; 3 by default, or all where there are fewer.
        renormalize: whether the weights of the chosen experts sum to 1.
        temperature: divides the router logits.
        site_gates: rules for sites that gate in another way than the rest: ``{"sites": regular expression}`` with any
            of ``gate``, ``training_gate``, ``top_k``, ``temperature``, ``renormalize``; the first rule that matches
            the whole module name counts. ``{"sites": r".*\\.k_proj", "gate": "off"}`` leaves k without experts.
        noise_std: standard deviation of normal noise on the logits in training; none by default.
        mixing: how the sum over experts is computed: ``auto`` takes the cheaper of ``dense`` and ``sparse``.
        dropout: on the input of the experts, in training.
        router_init_std: standard deviation of the routers' initial weights.
        train_experts: whether the experts train together with the routers; frozen by default.
        routing_loss: what is added to the task loss: ``rsl``, ``load_balance``, ``ds_moe``, ``gmoe``, ``aesl``,
            ``supervised`` (needs ``expert_index`` in every batch) or ``none``; see `docs/losses.md`.
        balance_weight: α, of the balance term (``rsl``, ``load_balance``, ``aesl``) or of the whole loss (``ds_moe``,
            ``supervised``).
        entropy_weight: λ, of the token entropy (``rsl`` only).
        entropy: ``sharpen`` (+λ) or ``flatten`` (−λ, as Eq. 5 is printed).
        usage: how the balance term counts use: ``top_k``, ``top_1`` or ``soft``; ``top_k`` needs more experts than k.
        scale: form of the balance term: ``unit`` (1 when even) or ``paper`` (1/K when even).
        reduction: routers one by one (``per_site``) or concatenated (``pooled``).
        loss_form: ``gmoe`` and ``aesl`` as in the ``paper`` or, where it differs, as in its released ``code``.
        poisson_weight: of the profile of single tokens (``gmoe``).
        normal_weight: of the profile of the load (``gmoe``).
        orthogonality_weight: β, of the overlap of the experts' outputs (``aesl``).
        variance_weight: γ, of the variance of probabilities (``aesl``).
        z_weight: of the router z-loss, which can be added to any routing loss; none by default.
        preserve: experts that are kept near what they were when they were read or loaded, or last edited (the set C
            of the paper's Eq. 11); for ``train_experts=True``.
        preservation_weight: β of Eq. 11; never warmed up.
        save_experts: whether a saved folder holds the experts too; otherwise it names them and checks their hashes.
        expert_order: names in the order of the gates; PEFT saves dictionaries sorted. Filled by itself.
        target_modules: which linear layers new experts change, as in `LoraConfig`; by default those that the other
            experts change. Filled at injection: the sites that at least one expert changes.
        untrained: whether the routers are known to be as they were initialised; training takes it back by itself.
        title: a short name for people.
        tasks: expert name → data sets that belong to it; evaluation uses it to know a row's own expert.
    """

    experts: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Expert name → folder or Hub id of a plain PEFT LoRA."}
    )
    r: int = field(default=64, metadata={"help": "Rank of new experts."})
    lora_alpha: float = field(default=128, metadata={"help": "Of new experts; scaling is lora_alpha / r."})
    use_rslora: bool = field(default=False, metadata={"help": "Scaling of new experts is lora_alpha / √r."})
    gate: GateMode = field(default="top_k", metadata={"help": "Gate mode in inference: top_k or soft."})
    training_gate: GateMode = field(
        default="soft", metadata={"help": "Gate mode in training: soft, top_k or straight_through."}
    )
    top_k: int | None = field(default=None, metadata={"help": "Experts per token; None is min(3, experts)."})
    renormalize: bool = field(default=True, metadata={"help": "Whether the chosen weights sum to 1."})
    temperature: float = field(default=1.0, metadata={"help": "Divides the router logits."})
    site_gates: list[dict[str, Any]] = field(
        default_factory=list, metadata={"help": "Rules for sites that gate in another way than the rest."}
    )
    noise_std: float = field(default=0.0, metadata={"help": "Noise on the logits in training; none by default."})
    mixing: Mixing = field(default="auto", metadata={"help": "auto, dense or sparse sum over the experts."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the experts, in training."})
    router_init_std: float = field(default=0.02, metadata={"help": "Standard deviation of initial router weights."})
    train_experts: bool = field(default=False, metadata={"help": "Whether experts train together with the routers."})
    routing_loss: RoutingLoss = field(default="none", metadata={"help": f"One of {', '.join(get_args(RoutingLoss))}."})
    balance_weight: float = field(default=1.0, metadata={"help": "α: of the balance term, or of the whole loss."})
    entropy_weight: float = field(default=0.05, metadata={"help": "λ: weight of the token entropy (rsl only)."})
    entropy: Entropy = field(default="sharpen", metadata={"help": "sharpen (+λ) or flatten (−λ)."})
    usage: Usage = field(default="top_k", metadata={"help": "How use is counted: top_k, top_1 or soft."})
    scale: Scale = field(default="unit", metadata={"help": "Balance term: unit (1 when even) or paper (1/K)."})
    reduction: Reduction = field(default="per_site", metadata={"help": "per_site or pooled."})
    loss_form: Form = field(default="paper", metadata={"help": "gmoe and aesl: of the paper, or of its code."})
    poisson_weight: float = field(default=0.005, metadata={"help": "Of the profile of single tokens (gmoe only)."})
    normal_weight: float = field(default=8.0, metadata={"help": "Of the profile of the load (gmoe only)."})
    orthogonality_weight: float = field(default=1.0, metadata={"help": "β: of the overlap of outputs (aesl only)."})
    variance_weight: float = field(default=1.0, metadata={"help": "γ: of the variance (aesl only)."})
    z_weight: float = field(default=0.0, metadata={"help": "Of the router z-loss, beside any routing loss."})
    preserve: list[str] = field(default_factory=list, metadata={"help": "Trained experts that are kept near."})
    preservation_weight: float = field(default=5e-5, metadata={"help": "β of Eq. 11, for `preserve`."})
    save_experts: bool = field(default=True, metadata={"help": "Whether saved folders hold the experts too."})
    expert_order: list[str] = field(
        default_factory=list, metadata={"help": "Names in the order of the gates; filled by itself."}
    )
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Filled at injection."})
    untrained: bool = field(default=False, metadata={"help": "Whether the routers are known to be untrained."})
    title: str = field(default="", metadata={"help": "A short name for people."})
    tasks: dict[str, list[str]] = field(
        default_factory=dict, metadata={"help": "Expert name → data sets that belong to it."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MixerPeftType.LORA_MIXER  # type: ignore[assignment]
        check_gate_mode(self.gate)
        check_gate_mode(self.training_gate)
        check_temperature(self.temperature)
        for name, allowed in (
            ("mixing", Mixing),
            ("routing_loss", RoutingLoss),
            ("entropy", Entropy),
            ("usage", Usage),
            ("scale", Scale),
            ("reduction", Reduction),
            ("loss_form", Form),
        ):
            if (given := getattr(self, name)) not in get_args(allowed):
                raise MixerError(f"{name} is '{given}'; it can be {', '.join(get_args(allowed))}.")
        if self.noise_std < 0:
            raise MixerError(f"noise_std is {self.noise_std}; it is a standard deviation, 0 or above.")
        if not 0 <= self.dropout < 1:
            raise MixerError(f"dropout is {self.dropout}; it is a probability, from 0 to below 1.")
        for name in WEIGHTS:
            if not getattr(self, name) >= 0:
                raise MixerError(f"{name} is {getattr(self, name)}; it is a weight, 0 or above.")
        for rule in self.site_gates:
            _check_rule(rule)
        if not self.experts:
            raise MixerError("A mixture needs experts; pass experts={'name': 'folder or Hub id of a LoRA', …}.")
        for name in self.experts:
            check_expert_name(name)
        trains = self.train_experts
        if None in self.experts.values() and not trains:
            raise MixerError("New experts (None) change nothing until they are trained; set train_experts=True.")
        if trains and not self.save_experts:
            raise MixerError("Trained experts would be lost with save_experts=False; leave it True, or export them.")
        self._check_preserved()
        self.expert_order = self.expert_order or list(self.experts)
        if sorted(self.expert_order) != sorted(self.experts):
            raise MixerError(f"expert_order is {self.expert_order}; it must name each of {list(self.experts)} once.")
        self.experts = _with_own_sites({name: self.experts[name] for name in self.expert_order})

    def _check_preserved(self) -> None:
        if unknown := sorted(set(self.preserve) - set(self.experts)):
            raise MixerError(f"preserve names '{unknown[0]}', but the mixture has {', '.join(self.experts)}.")
        if self.preserve and not self.train_experts:
            raise MixerError("preserve is for experts that train, these are frozen; set train_experts=True.")
        if new := [name for name in self.preserve if self.experts[name] is None]:
            raise MixerError(f"Expert '{new[0]}' is new, so there is nothing of it to preserve; leave it out.")

    def rule_of(self, site: str) -> int | None:
        """Index of the first rule of ``site_gates`` that matches a module name, or None."""
        return next((i for i, rule in enumerate(self.site_gates) if re.fullmatch(rule["sites"], site)), None)

    @property
    def has_idle_balance(self) -> bool:
        """Whether the balance term is the same whatever the gates are, since every token counts for all experts."""
        return self.balances_chosen and (self.top_k or DEFAULT_TOP_K) >= len(self.experts) > 1

    @property
    def balances_chosen(self) -> bool:
        """Whether there is a balance term that counts for whom tokens choose, k experts each."""
        return self.usage == "top_k" and self.routing_loss in BALANCED and self.balance_weight > 0

    @property
    def loss_text(self) -> str:
        """The routing loss in one line, with its coefficients and the form that they belong to."""
        if self.untrained:
            return "none: untrained routers"
        terms = [self._main_term]
        if self.z_weight:
            terms.append(f"{self.z_weight:g} · E[(logsumexp z)²]")
        if self.preserve:
            terms.append(f"{self.preservation_weight:g} · Σ‖θ − θ⁰‖² of {', '.join(self.preserve)}")
        return terms[0] if len(terms) == 1 else " + ".join([terms[0].removesuffix(" only"), *terms[1:]])

    @property
    def _main_term(self) -> str:
        balance = f"{self.balance_weight:g} · {'K ' if self.scale == 'unit' else ''}Σ p̄ f̄"
        match self.routing_loss:
            case "load_balance":
                return f"load balance: {balance}"
            case "rsl":
                sign = "+" if self.entropy == "sharpen" else "−"
                return f"RSL {self.entropy}: {balance} {sign} {self.entropy_weight:g} · E[H(p)]"
            case "ds_moe":
                return f"DS-MoE mutual information: {self.balance_weight:g} · (E[H(p)] − H(p̄))"
            case "gmoe":
                terms = f"{self.poisson_weight:g} · D(Poisson, p) + {self.normal_weight:g} · D(Normal, load)"
                return f"GMoE, {self.loss_form} form: {terms}"
            case "aesl":
                overlap = f"{self.orthogonality_weight:g} · overlap of outputs"
                over = "tokens" if self.loss_form == "paper" else "experts"
                variance = f"{self.variance_weight:g} · Var(p) over {over}"
                return f"AESL, {self.loss_form} form: {balance} + {overlap} − {variance}"
            case "supervised":
                return f"supervised: {self.balance_weight:g} · E[−log p of the own expert]"
            case _:
                return "task loss only"

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save; the sources of experts that are local folders are written relative to ``save_directory``.

        Experts of one shape change the same sites in the same way, so that the list of sites stands once: the others
        name the expert that has it.

        PEFT saves the configuration after it has written its own model card, an empty form; this puts the card of the
        mixture in its place.
        """
        original = self.experts
        here = Path(save_directory).resolve()
        self.experts = {
            name: {**value, "source": _relative_source(value["source"], here)}
            if isinstance(value, dict) and value["source"]
            else value
            for name, value in original.items()
        }
        own = self.experts
        try:
            self.experts = _with_shared_sites(own)
            super().save_pretrained(save_directory, **kwargs)
            self.experts = own
            if all(isinstance(value, dict) for value in self.experts.values()):
                write_mixture_card(Path(save_directory), self)
        finally:
            self.experts = original

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> LoraMixerConfig:
        """Load; relative sources of experts are resolved against the folder that the configuration came from.

        Raises:
            MixerError: another kind of adapter lies there.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        if not isinstance(config, cls):  # PEFT takes the class that the file names
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise MixerError(
                f"{pretrained_model_name_or_path} is a plain {kind} and no mixture; give a mixture, or the folder "
                "that holds your LoRAs."
            )
        folder = Path(pretrained_model_name_or_path, subfolder or "")
        if folder.is_dir():
            for value in config.experts.values():
                if isinstance(value, dict) and (value["source"] or "").startswith("."):
                    value["source"] = os.path.abspath(folder / value["source"])
        return config


def _with_shared_sites(experts: dict[str, Any]) -> dict[str, Any]:
    """Descriptions in which ``sites`` is the name of an earlier expert with the same ones."""
    found: dict[str, Any] = {}
    for name, value in experts.items():
        described = isinstance(value, dict) and isinstance(value.get("sites"), dict)
        twin = next((other for other in found if described and experts[other]["sites"] == value["sites"]), None)
        found[name] = value if twin is None else {**value, "sites": twin}
    return found


def _with_own_sites(experts: dict[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`_with_shared_sites`."""
    return {
        name: {**value, "sites": dict(experts[value["sites"]]["sites"])}
        if isinstance(value, dict) and isinstance(value.get("sites"), str)
        else value
        for name, value in experts.items()
    }


def check_expert_name(name: Any) -> None:
    """Raise a MixerError unless ``name`` can be the name of an expert."""
    if not isinstance(name, str) or not name or set(name) & set("./\\"):
        raise MixerError(f"{name!r} is no expert name; use a short text without dots and slashes.")


def _check_rule(rule: Any) -> None:
    allowed = ("sites", "gate", "training_gate", *RULE_FIELDS)
    if not isinstance(rule, dict) or not isinstance(rule.get("sites"), str) or not set(rule) <= set(allowed):
        raise MixerError(
            f"{rule!r} is no rule of site_gates; a rule is a dictionary with 'sites' (a regular expression as a "
            f"text) and any of {', '.join(allowed[1:])}."
        )
    try:
        re.compile(rule["sites"])
    except re.error as error:
        raise MixerError(f"{rule['sites']!r} in site_gates is no regular expression: {error}.") from error
    for key in ("gate", "training_gate"):
        check_gate_mode(rule.get(key, "soft"))
    check_temperature(rule.get("temperature", 1.0))


def _relative_source(source: str, folder: Path) -> str:
    if not os.path.isabs(source) and not Path(source).is_dir():
        return source  # a Hub id
    relative = os.path.relpath(Path(source).resolve(), folder)
    return relative if relative.startswith(".") else f"./{relative}"
