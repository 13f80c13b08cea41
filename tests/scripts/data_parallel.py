"""Router training as one of several processes; each writes what it saw to ``OUTPUT/RANK.pt``.

Started by ``python -m torch.distributed.run --nproc-per-node N -m tests.scripts.data_parallel EXPERTS OUTPUT``; the
functions also run in a single process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from loramixer.losses import aesl, ds_moe, gmoe, load_balance, router_z, rsl, supervised
from tests import tiny

ROWS = 8
LOSS = {"routing_loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.2, "usage": "top_1"}
RUNS = {
    "one step": {"accumulation": 1, "steps": 1},
    "accumulated": {"accumulation": 2, "steps": 1},
    "three steps": {"accumulation": 1, "steps": 3},
}


class KeepGradients(TrainerCallback):
    """Keeps the routers' gradients of the first step as the optimiser sees them: averaged over the processes."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.found:
            routers = ((name.removeprefix("module."), parameter) for name, parameter in model.named_parameters())
            self.found = {name: p.grad.detach().clone() for name, p in routers if p.grad is not None}


def rows() -> list[dict[str, list[int]]]:
    """Rows of different lengths whose first half carries no label."""
    found = []
    for index in range(ROWS):
        ids = tiny.token_ids(1, 4 + 3 * index, seed=index)[0].tolist()
        half = len(ids) // 2
        found.append({"input_ids": ids, "labels": [-100] * half + ids[half:]})
    return found


def train(experts: Path, output: Path, processes: int, accumulation: int, steps: int) -> dict[str, Any]:
    """Train over all rows per step; returns the logged losses, first gradients, last routers and routing loss."""
    model = tiny.mixture({name: str(experts / name) for name in tiny.EXPERT_SHAPES}, **LOSS)
    gradients = KeepGradients()
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=ROWS // processes // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        max_grad_norm=0,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(),
        data_collator=DataCollatorForSeq2Seq(tiny.tokenizer(), label_pad_token_id=-100),
        callbacks=[gradients],
    )
    trainer.train()
    routers = {name: p.detach() for name, p in model.named_parameters() if "lora_mixer_router" in name}
    return {
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "gradients": gradients.found,
        "routers": routers,
        "routing_loss": model.base_model.routing_statistics["routing_loss"],
    }


AESL = {"balance_weight": 0.3, "orthogonality_weight": 0.5, "variance_weight": 2.0}
RSL = {"balance_weight": 1.0, "entropy_weight": 0.3, "k": 2}
ALL = {"across_processes": True}
ALONE: dict[str, Callable[..., torch.Tensor]] = {
    "rsl top_k": lambda p, z, gram, own: rsl(p, usage="top_k", **RSL, **ALL),
    "rsl top_1": lambda p, z, gram, own: rsl(p, usage="top_1", **RSL, **ALL),
    "rsl soft": lambda p, z, gram, own: rsl(p, usage="soft", **RSL, **ALL),
    "load_balance": lambda p, z, gram, own: load_balance(p, **ALL),
    "ds_moe": lambda p, z, gram, own: ds_moe(p, **ALL),
    "gmoe": lambda p, z, gram, own: gmoe(p, poisson_weight=1.0, normal_weight=1.0, **ALL),
    "gmoe code": lambda p, z, gram, own: gmoe(p, poisson_weight=1.0, normal_weight=1.0, form="code", **ALL),
    "aesl": lambda p, z, gram, own: aesl(p, gram, k=2, **AESL, **ALL),
    "aesl code": lambda p, z, gram, own: aesl(p, gram, k=2, form="code", **AESL, **ALL),
    "router_z": lambda p, z, gram, own: router_z(z, **ALL),
    "supervised": lambda p, z, gram, own: supervised(p, own, **ALL),
}
"""Every loss that is a function of means over tokens."""


def loss_alone(processes: int, rank: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Value of a routing loss and its gradient, averaged over processes, for a linear router that all share.

    Tokens are spread unevenly: the first process has 3, the last one all others.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    router = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = torch.randn(12, 4, 6, generator=generator, dtype=torch.float64)
    own = torch.tensor([0, 1, -1, 2, 3, 3, -1, 0, 1, 2, 3, 1])
    mine = slice(None) if processes == 1 else (slice(0, 3) if rank == 0 else slice(3, None))
    z, mixed = x[mine] @ router.T, outputs[mine] * (x[mine] @ router.T).unsqueeze(-1)
    value = ALONE[name](z.softmax(dim=-1), z, mixed @ mixed.transpose(-1, -2), own[mine])
    (gradient,) = torch.autograd.grad(value, router)
    if processes > 1:
        distributed.all_reduce(gradient)
    return value.detach(), gradient / processes


def main() -> None:
    """Do all runs and save what they gave."""
    experts, output = Path(sys.argv[1]), Path(sys.argv[2])
    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    found: dict[str, Any] = {
        name: train(experts, output / "trainer", processes, **settings) for name, settings in RUNS.items()
    }
    found["alone"] = {name: loss_alone(processes, rank, name) for name in ALONE}
    if rank == 0:  # Evaluation must not wait for the other processes, which may not evaluate or hold other batches.
        model = tiny.mixture({name: str(experts / name) for name in tiny.EXPERT_SHAPES}, **LOSS)
        found["evaluated"] = model(input_ids=tiny.token_ids(), labels=tiny.token_ids()).loss.detach()
    torch.save(found, output / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
