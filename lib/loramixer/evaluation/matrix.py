"""The expert × domain matrix: test loss of the backbone and of every expert alone, on every domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from loramixer.backbones import load_backbone
from loramixer.data import AnySource, held_out_examples
from loramixer.evaluation.harness import DomainResult, Progress, evaluate
from loramixer.experts import locate_expert
from loramixer.tuner import LoraMixerConfig
from loramixer.tuner.guards import has_state_space_mixers
from loramixer.tuner.runtime import set_gate


def expert_matrix(
    experts: dict[str, str | Path],
    domains: Sequence[str],
    *,
    backbone: str = "smollm2-135m",
    count: int = 100,
    seed: int = 0,
    source: AnySource = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    finished: dict[str, list[DomainResult]] | None = None,
    on_expert: Callable[[dict[str, list[DomainResult]]], None] | None = None,
) -> dict[str, list[DomainResult]]:
    """Evaluate the backbone (``"backbone"``) and each expert alone on held-out rows of each domain.

    Args:
        experts: expert name → folder or Hub id of a plain PEFT LoRA.
        domains: of the rows, see :meth:`loramixer.data.Source.domains`.
        backbone: what :func:`loramixer.load_backbone` takes.
        count: test rows per domain.
        seed: chooses the rows.
        source: where they come from, as :func:`loramixer.data.find_source` takes it.
        dtype: type of the backbone.
        device: where everything is measured.
        progress: receives ``(done, total)`` rows over the whole matrix.
        finished: lines of the same matrix that an earlier call measured; they are not measured again.
        on_expert: receives all lines so far after each one.

    Raises:
        ExpertError: an expert that is not there, or not in safetensors.
    """
    from peft import PeftModel, get_peft_model

    results: dict[str, list[DomainResult]] = dict(finished or {})
    if {"backbone", *experts} <= set(results):
        return results
    rows = [row for domain in domains for row in held_out_examples(domain, count, seed, source=source)]
    folders = {name: str(locate_expert(name, str(source))[0]) for name, source in experts.items()}
    model, tokenizer = load_backbone(backbone, dtype=dtype, device=device)
    total = len(rows) * (1 + len(experts))

    def measure(name: str, subject: Any) -> None:
        if name in results:
            return
        before = len(rows) * len(results)
        step: Progress | None = None
        if progress is not None:
            report = progress

            def step(done: int, _: int) -> None:
                report(before + done, total)

        results[name] = evaluate(subject, tokenizer, rows, routing=False, progress=step)
        if on_expert is not None:
            on_expert(results)

    measure("backbone", model)
    peft_model: Any = None
    if has_state_space_mixers(model):
        # A LoRA of PEFT would be passed over at their dt_proj, and is refused at their out_proj.
        peft_model = get_peft_model(model, LoraMixerConfig(experts=dict(folders)))
        for name in folders:
            set_gate(peft_model, "domain", domain=name)
            measure(name, peft_model)
        return results
    for name, folder in folders.items():
        if peft_model is None:
            peft_model = PeftModel.from_pretrained(model, folder, adapter_name=name)
        else:
            peft_model.load_adapter(folder, adapter_name=name)
        peft_model.set_adapter(name)
        measure(name, peft_model)
    return results
