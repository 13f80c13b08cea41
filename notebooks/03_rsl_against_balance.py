# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · RSL against the balance loss: does balance alone flatten the gates?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/03_rsl_against_balance.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer?room=tradeoff)
#
# The paper says that a load-balance loss alone drives routers to uniform gates, and that RSL makes them specialise.
# This notebook trains routers on the same rows with several losses, strengths and seeds, at a size that fits a laptop,
# and then reads the results of the full size from the repository. What does not hold is printed as not held.

# %%
import sys

if "google.colab" in sys.modules:
    # !test -d loramixer || git clone -q https://github.com/loramixer/loramixer
    # %cd loramixer/notebooks
    # !pip install -q -e "..[notebooks,eval]" -c ../requirements.txt
    # !pip uninstall -q -y torchvision torchaudio  # those of Colab fit another torch
    sys.path.insert(0, "../lib")  # a kernel that runs already does not see what was just installed
    import importlib.metadata
    import os

    import numpy

    if numpy.__version__ != importlib.metadata.version("numpy"):
        print("The kernel restarts, since it holds an older numpy than was just installed; run all cells once more.")
        os.kill(os.getpid(), 9)

# %% tags=["parameters"]
import os

FAST = os.environ.get("FAST") == "1"
EXAMPLES = 16 if FAST else 72  # training rows of each router here; the results of 2,000 are read below
SEEDS = (0,) if FAST else (0, 1)
BATCH = 4 if FAST else 8  # rows in a step
SOURCE = "generated" if FAST else None  # None: LORAMIXER_DATA, else the Hub, else generated
LEARNING_RATE = 2e-2  # larger than what ships, since there are so few steps

# %% tags=["imports"]
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd

import loramixer
from loramixer import viz
from loramixer.data import draw_mixture
from loramixer.metrics import PlanePoint
from loramixer.training.presets import find_preset
from loramixer.training.routers import find_experts

# %% [markdown]
# ## The losses
#
# α weighs K Σ p̄ f̄ (1 when the load is even), λ weighs E[H(p)] in nats. `sharpen` adds the entropy, `flatten`
# subtracts it, as Eq. 5 of the paper is printed. DS-MoE's loss, E[H(p)] − H(p̄), is the closest relative of
# `sharpen`.

# %%
settings = {
    "no routing loss": {"loss": "none"},
    "balance 0.1": {"loss": "load_balance", "balance_weight": 0.1},
    "balance 4": {"loss": "load_balance", "balance_weight": 4.0},
    "RSL sharpen 1 / 0.3": {"loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.3, "entropy": "sharpen"},
    "RSL flatten 1 / 0.3": {"loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.3, "entropy": "flatten"},
    "DS-MoE 1": {"loss": "ds_moe", "balance_weight": 1.0},
}
if FAST:  # the two signs are enough to see that everything works
    settings = {name: settings[name] for name in ("RSL sharpen 1 / 0.3", "RSL flatten 1 / 0.3")}

# %%
experts = find_experts("smollm2-135m/rsl")
preset = find_preset("cpu-small")
preset = replace(preset, routers=replace(preset.routers, log_steps=1, batch_size=BATCH))
logs: dict[tuple[str, int], loramixer.RunLog] = {}
with tempfile.TemporaryDirectory() as workplace:
    for seed in SEEDS:
        mixture = draw_mixture(EXAMPLES, seed, list(experts), source=SOURCE)  # the same rows for every loss of a seed
        for number, (name, fields) in enumerate(settings.items()):
            folder = loramixer.train_router(
                Path(workplace) / f"{number}-{seed}",
                experts,
                examples=mixture.rows,
                seed=seed,
                learning_rate=LEARNING_RATE,
                routers_only=True,
                title=name,
                preset=preset,
                measure_speed=False,
                **fields,
            )
            logs[name, seed] = loramixer.RunLog.load(folder)
print(f"{len(logs)} routers on {mixture.origin} data, {EXAMPLES} rows each.")
assert len(logs) == len(settings) * len(SEEDS)

# %% [markdown]
# ## Where each of them ended
#
# Each point is the last step of a setting's training, over the few rows of that step, the mean of the seeds: a picture
# of the direction, not a measurement. The measurement follows.


# %%
def last_point(log: loramixer.RunLog) -> PlanePoint:
    row = next(row for row in reversed(log.steps) if "token_entropy" in row)
    return PlanePoint(row["token_entropy"], row["load_entropy"], len(experts))


def mean_point(points: list[PlanePoint]) -> PlanePoint:
    entropies = [(point.token_entropy, point.load_entropy) for point in points]
    token, load = (sum(values) / len(points) for values in zip(*entropies, strict=True))
    return PlanePoint(token, load, len(experts))


points = {name: mean_point([last_point(logs[name, seed]) for seed in SEEDS]) for name in settings}
viz.show(viz.plane(points, title=f"Routers after {EXAMPLES} rows"), alt="End points of all trainings on the plane.")
sharpen, flatten = (points[f"RSL {sign} 1 / 0.3"].undecided for sign in ("sharpen", "flatten"))
print(f"E[H] / log K at the end: sharpen {sharpen:.3f}, flatten {flatten:.3f}")
assert sharpen <= flatten  # the sign of λ does what its name says

# %%
viz.show(
    viz.training_curves({name: log for (name, seed), log in logs.items() if seed == SEEDS[0]}),
    alt="Task loss, balance and entropies of every loss by step.",
)

# %% [markdown]
# ## The measurement at full size
#
# `loramixer experiment losses` trains with 2,000 rows, measures on held-out rows, and writes
# [docs/results](../docs/results.md). Intervals cover seeds where there are several, and test rows in any case.

# %% tags=["results"]
from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.verdicts import shipped_gate
from loramixer.viz.figures import losses_figure

results = Path("..") / "docs" / "results"
path = results / "losses-summary.csv"
if path.is_file():
    summary = read_csv(path)
    viz.show(
        losses_figure(summary, shipped_gate(summary)),
        alt="Test loss, own-expert share and mutual information of every loss.",
    )
    wanted = {"token_entropy", "load_entropy", "mutual_information"}
    plain = [row for row in summary if row["quantity"] in wanted and not row.get("against")]
    display_columns = ["setting", "quantity", "value", "low", "high", "seeds"]
    table = pd.DataFrame(plain)[display_columns]
    print(table.round(3).to_string(index=False))
else:
    print("The comparison at full size has not been measured in this copy: loramixer experiment losses.")

# %% [markdown]
# ## The verdict, computed from those numbers
#
# Each claim of the paper is *held*, *not held* or *undecided* by a rule that is the same for all of them
# (`loramixer.evaluation.verdicts`): the whole interval must lie on one side.

# %% tags=["results"]
from loramixer.evaluation.verdicts import losses_verdicts

for verdict in losses_verdicts(read_csv(path)) if path.is_file() else []:
    print(f"{verdict.status}: {verdict.claim}. {verdict.numbers}\n")

# %% [markdown]
# ## What was learnt
#
# - The sign of λ does what its name says beside balance alone with the same α: `sharpen` lowers the entropy of single
#   tokens, `flatten` raises it. The formula that the paper prints is the latter. Against no routing loss `sharpen`
#   need not lower it, since the balance term raises it; [docs/results.md](../docs/results.md) says for which weights.
# - Balance alone flattens the gates at both strengths (the table above: E[H] of `load balance` and of `none`), but not
#   to uniform ones. The weak one costs no mutual information, the strong one does; the verdicts say what was found,
#   with how many seeds.
# - DS-MoE's loss asks for the same two things as `sharpen` with one weight instead of two.
#
# ## Exercise
#
# 1. Add "balance 16" to the settings. Does the load become more even, and what happens to the task loss?
# 2. Add `"supervised": {"loss": "supervised"}` to the settings: it is told the domain of every row. Of which number is
#    it an upper bound, and of which not?
