"""One step of Transformers' own Trainer, for tests of what a mixture adds to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments


def one_step(model: Any, rows: list[dict[str, Any]], folder: Path, batch_size: int, accumulation: int) -> Any:
    """Loss and gradient norm that the Trainer logs for one optimiser step over the rows."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)  # type: ignore[arg-type]
    trainer.train()
    row = trainer.state.log_history[0]
    return row["loss"], row["grad_norm"]
