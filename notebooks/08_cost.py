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
# # 8 · How much does it cost, and what makes it grow?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/08_cost.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer)
#
# A mixture adds parameters to keep and products to compute. This notebook counts the first without any weights,
# against the table of the paper, and measures the second on the machine that it runs on.

# %%
import sys

if "google.colab" in sys.modules:
    # !test -d loramixer || git clone -q https://github.com/loramixer/loramixer
    # %cd loramixer/notebooks
    # !pip install -q -e "..[notebooks]" -c ../requirements.txt
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
SHAPE = "tiny" if FAST else "smollm2-135m"  # tiny: the timing runs, and its numbers say nothing of a real model
ROUNDS = 3 if FAST else 7  # of every timing; each round times both sides back to back
BLOCK_SECONDS = 0.02 if FAST else 0.3
COUNTS = (2, 6) if FAST else (2, 6, 12, 24)  # numbers of experts

# %%
import json
import tempfile
from pathlib import Path

import pandas as pd

from loramixer import viz
from loramixer.accounting import count_mixture, parameter_table
from loramixer.viz.figures import scaling_figure

# %% [markdown]
# ## Parameters, without a single weight
#
# PyTorch's `meta` device has shapes and no memory. The library builds the backbone there, puts a real mixture on it
# with `get_peft_model`, and counts. So an eight-billion model can be counted on a laptop, in a second. The setting
# is the paper's (A.4): LLaMA3-8B, six experts of rank 64 on q, k, v and o.

# %%
found = parameter_table("llama3-8b", experts=6, rank=64)
pd.DataFrame(
    [
        {"share": row["what"], "counted": f"{row['counted']:.2%}", "paper": f"{row['paper']:.2%}"}
        for row in found["figures"]
    ]
)

# %%
for row in found["figures"]:
    print(f"{row['what']}: {row['explanation']}\n")
routers = next(row for row in found["figures"] if "routers" in row["what"])
assert round(routers["counted"], 4) == routers["paper"]
assert found["loramixer"]["trainable"] < 0.5 * found["mixlora"]["trainable"]

# %% [markdown]
# The router's share is exactly the paper's. The others depend on what one divides by and what one counts along; each
# sentence says which way of counting comes nearest. With the real shapes of k and v the mixture takes less than half
# of MixLoRA's parameters (with those of Table 17 it would be more), because its experts sit in the attention
# projections and not in the three, wider ones of the FFN.
#
# ## What makes parameters grow
#
# Experts grow with rank × number × (width in + width out), routers with number × width in. A router is so small that
# doubling it is nothing; doubling the rank doubles nearly everything that is trained.

# %%
rows = []
for experts, rank in ((6, 16), (6, 64), (12, 16), (24, 16)):
    count = count_mixture("smollm2-135m", experts, rank)
    rows.append(
        {
            "experts": experts,
            "rank": rank,
            "expert weights, M": round(count.experts / 1e6, 2),
            "router weights, M": round(count.routers / 1e6, 3),
        }
    )
table = pd.DataFrame(rows)
assert abs(table["expert weights, M"][1] / table["expert weights, M"][0] - 4) < 0.01  # four times the rank
assert abs(table["router weights, M"][3] / table["router weights, M"][0] - 4) < 0.05  # four times the experts
table

# %% [markdown]
# ## Time: measured here, now
#
# `benchmarks/overhead.py` times a mixture against its own backbone on the same weights: both sides back to back in
# random order, so that whatever else the machine does falls on both; the ratio of every round, then the median with
# a 95 % bootstrap interval. Weights are random, since time does not depend on them. *All experts, no routing* is the
# floor: the products of all experts and nothing else. With `FAST=1` a tiny shape is timed: such a ratio is all
# overhead and says nothing of a real model.

# %%
sys.path.insert(0, str(Path("..", "benchmarks").resolve()))
import overhead

with tempfile.TemporaryDirectory() as scratch:
    result = Path(scratch) / "overhead.json"
    arguments = ["--shape", SHAPE, "--rounds", ROUNDS, "--block-seconds", BLOCK_SECONDS, "--output", result]
    for name in ("prefill-64", "decode", "top-3", "lora"):
        arguments += ["--only", name]
    overhead.main([str(argument) for argument in arguments])
    timed = json.loads(result.read_text())

# %%
table = pd.DataFrame(timed["rows"])[["measure", "label", "reference", "ratio", "ratio_low", "ratio_high", "rounds"]]
assert (table["ratio"] > 0.5).all()
table.round(3)

# %% [markdown]
# A ratio of 1.10 means that a token costs ten per cent more than with the backbone alone. Read the intervals: with few
# rounds, or with something else running, they are wide, and then the medians say little. The goals that the command
# prints are this project's own; [docs/cost.md](../docs/cost.md) says why a dense sum of experts cannot meet them all.
# So here is the same table of a long run, from the repository, with the machine that it ran on:

# %%
RESULTS = Path("..", "docs", "results")
known = json.loads((RESULTS / "overhead.json").read_text())
machine = known["machine"]
print(f"{machine['processor']}, {machine['cores']} cores; {known['settings']['shape']}, {known['settings']['dtype']}")
columns = ["measure", "label", "reference", "ratio", "ratio_low", "ratio_high", "rounds"]
wanted = [row for row in known["rows"] if row["measure"] in ("prefill-64", "decode") and "ratio" in row]
assert wanted
assert all(row["ratio_low"] <= row["ratio"] <= row["ratio_high"] for row in wanted)
pd.DataFrame(wanted)[columns].round(3)

# %% [markdown]
# ## What grows with the number of experts
#
# First here and now, few counts of experts:

# %%
import scaling

with tempfile.TemporaryDirectory() as scratch:
    result = Path(scratch) / "scaling.json"
    arguments = ["--shape", SHAPE, "--rounds", ROUNDS, "--block-seconds", BLOCK_SECONDS, "--lengths", 64]
    arguments += ["--output", result, "--experts", *COUNTS]
    scaling.main([str(argument) for argument in arguments])
    scaled = json.loads(result.read_text())
table = pd.DataFrame(scaled["rows"])[["measure", "experts", "ratio", "ratio_low", "ratio_high"]]
assert set(table["experts"]) == set(COUNTS)
table.round(3)

# %% [markdown]
# And the long run from the repository:

# %%
known = json.loads((RESULTS / "scaling.json").read_text())["rows"]
viz.show(
    scaling_figure(known, title="What more experts cost in time (measured, docs/results/scaling.json)"),
    alt="Time against six experts, by number of experts, for reading 64 tokens and for writing one.",
)
most = max(known, key=lambda row: row["experts"])["experts"]
largest = max(row["ratio"] for row in known if row["experts"] == most)
print(f"{most} experts take at most {largest:.2f} times the time of six.")
assert largest < most / 6

# %% [markdown]
# Ratios are against six experts. All experts of a site lie in one matrix behind each other, so more of them make two
# products wider and no step more numerous; that is why time grows so much slower than their number. What `k` changes
# is which gates are zero, not what is multiplied, as long as there are few experts; from about a dozen on, only the
# chosen ones are read.
#
# ## What was learnt
#
# - Parameters: a router is a rounding error beside its experts; rank and number of experts decide.
# - The paper's share for routers is reproduced to the digit; the others depend on the denominator, which is printed.
# - Time: the floor is the experts' own products; what routing adds to it is the difference of two rows of the table.
#
# ## Exercise
#
# 1. Count the mixture with `targets=("q_proj", "v_proj")`. What is saved, and what does the paper's Table 3 use?
# 2. Run `overhead.main(["--only", "decode", "--only", "arrow", "--only", "x-lora", "--rounds", "3"])`: which peer has
#    no usable cache, and how can you tell?
