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
# # 2 · Train a router on 2,000 examples: what does the Routing Specialization Loss do, term by term?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/02_train_a_router.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer?room=train)
#
# Experts exist already; what is missing is who decides. This notebook mixes rows of all domains, looks at the loss one
# term at a time, trains the routers of every projection with frozen experts, checks them on rows that nothing was
# trained on, and saves a folder that PEFT loads again.

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
EXAMPLES = 24 if FAST else 2000  # training rows
TEST_ROWS = 2 if FAST else 15  # held-out rows of each domain
SOURCE = "generated" if FAST else None  # None: LORAMIXER_DATA, else the Hub, else generated
LONGEST_ROW, LONGEST_ANSWER = 160, 48  # tokens; what ships was trained with 512 and 256
LOG_STEPS = 1 if FAST else 5  # optimiser steps between two points of the curves
SEED = 0
ALPHA, LAMBDA = 1.0, 0.3  # of K Σ p̄ f̄ and of E[H(p)] in nats: the weights of what ships

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

import loramixer
from loramixer import losses, viz
from loramixer.data import draw_mixture, held_out_examples
from loramixer.evaluation.harness import evaluate
from loramixer.training.presets import find_preset
from loramixer.training.routers import find_experts

# %% [markdown]
# ## The rows
#
# Rows come from the folder that `LORAMIXER_DATA` names, else from the Hub, else from a small generated set; the
# library says which. Every domain has one expert, and the mixture takes equally many rows of each.

# %%
experts = find_experts("smollm2-135m/rsl")
mixture = draw_mixture(EXAMPLES, SEED, list(experts), source=SOURCE)
print(f"Data: {mixture.origin}. {len(mixture.rows)} rows: {mixture.rows_of}")
shown = mixture.rows[0]
print(f"\nThe first is of {shown.domain} ({shown.task}); a prompt of {len(shown.prompt)} characters.")
assert set(mixture.rows_of) == set(experts)

# %% [markdown]
# ## The loss, one term at a time
#
# RSL = α · K Σ p̄ f̄ + λ · E[H(p)], per router, then the mean. Three tokens and three experts by hand:
#
# - **balance** K Σ p̄ f̄ is 1 when the load is even. When one expert takes all it is K if f̄ counts the likeliest
#   expert, as by hand here, and K / k if it counts the k likeliest, as in training below: 2 with six experts and k =
#   3. f̄ has no gradient; the gradient flows through p̄.
# - **token entropy** E[H(p)] is ln K for undecided tokens and 0 for decided ones. *Adding* it sharpens gates, which is
#   what the paper's text says; *subtracting* it, as Eq. 5 is printed, flattens them. The library names both.

# %%
cases = {
    "all undecided": torch.full((3, 3), 1 / 3),
    "one expert for all": torch.tensor([[0.98, 0.01, 0.01]] * 3),
    "one expert for each": torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [0.01, 0.01, 0.98]]),
}
rows = []
for name, p in cases.items():
    balance = float(losses.load_balance(p, usage="top_1"))
    entropy = float(losses.token_entropy(p))
    for_sign = {
        sign: float(losses.rsl(p, balance_weight=ALPHA, entropy_weight=LAMBDA, entropy=sign, usage="top_1"))
        for sign in ("sharpen", "flatten")
    }
    rows.append({"tokens": name, "K Σ p̄ f̄": balance, "E[H(p)], nats": entropy, **for_sign})
terms = pd.DataFrame(rows).set_index("tokens")
assert terms["sharpen"].idxmin() == "one expert for each"
balance = terms["K Σ p̄ f̄"]
assert abs(balance["all undecided"] - balance["one expert for each"]) < 1e-6 < balance["one expert for all"] - 1
terms.round(3)

# %% [markdown]
# Under *sharpen* the smallest loss belongs to one expert for each token: even load **and** decided tokens. The balance
# term alone finds the first and the last case equally good.
#
# ## Warm-up
#
# α and λ rise from 0 to their full value over the first 30 % of the steps (A.8): routers first learn what the experts
# are good for, and only then are pushed apart. The run log holds the factor as `loss_warmup`.
#
# ## Training
#
# One call. Experts and backbone are frozen; one linear router for each projection of each layer learns. A kill is no
# loss: the same call resumes from the last checkpoint. Long rows are left out and long answers cut here, so that it
# takes some ten minutes on two cores; the line below says how many rows are left. `viz.watch` draws the run log anew
# while it grows:
#
# - the **curves**: task loss, both terms of RSL, and the two entropies with their difference, the mutual information
#   of token and expert;
# - the **path** on the entropy–balance plane (notebook 4): it begins near uniform gates, at the upper right. Its
#   height above the dashed line is what the tokens say about their experts.

# %%
workplace = tempfile.TemporaryDirectory()
folder = Path(workplace.name) / "router"
preset = find_preset("cpu-small")
lengths = {"max_length": LONGEST_ROW, "max_answer": LONGEST_ANSWER}
preset = replace(preset, routers=replace(preset.routers, log_steps=LOG_STEPS, **lengths))
with viz.watch(folder):
    loramixer.train_router(
        folder,
        experts,
        loss="rsl",
        balance_weight=ALPHA,
        entropy_weight=LAMBDA,
        examples=mixture.rows,
        seed=SEED,
        routers_only=True,
        title="RSL from notebook 2",
        preset=preset,
    )

# %%
log = loramixer.RunLog.load(folder)
first, last = log.steps[0], log.steps[-1]
for name in ("task_loss", "balance", "token_entropy", "load_entropy", "mutual_information"):
    print(f"{name:20} {first[name]:7.3f} → {last[name]:7.3f}")
assert all(row["mutual_information"] > -1e-4 for row in log.steps)  # never below the dashed line
assert 0 < last["step"] <= -(-EXAMPLES // preset.routers.batch_size)

# %% [markdown]
# ## Held-out rows
#
# Test loss per answer token in nats, and the mean gate of the domain's own expert under the gate of the mixture,
# top-3: an undecided router gives 1 / 3 to each of the three that are ahead by a hair, which is 1 / 6 on average. The
# tables of docs/results.md are about soft gates, so their shares are others. Intervals are over rows (bootstrap, 95
# %); they say nothing of what another training seed would change.

# %%
model, tokenizer = loramixer.load_mixer(folder)
test = [row for domain in experts for row in held_out_examples(domain, TEST_ROWS, SEED, source=SOURCE)]
results = evaluate(model, tokenizer, test)
table = pd.DataFrame(
    [
        {
            "domain": row.domain,
            "n": row.n,
            "loss": row.loss,
            "low": row.loss_low,
            "high": row.loss_high,
            "own expert": row.own_expert_share,
        }
        for row in results
    ]
)
assert table["loss"].between(0, 20).all()
table.round(3)

# %% [markdown]
# ## It is an ordinary PEFT model
#
# `load_mixer` has read the folder that training wrote. `generate` works with its cache, since routing is per token:

# %%
question = tokenizer.apply_chat_template(
    [{"role": "user", "content": "A child of 18 kg takes 10 mg per kg. What is the dose?"}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
written = model.generate(**question, max_new_tokens=8 if FAST else 40, do_sample=False)
print(tokenizer.decode(written[0, question["input_ids"].shape[1] :], skip_special_tokens=True))
assert written.shape[1] > question["input_ids"].shape[1]

# %%
size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
print(f"The routers take {size / 1e6:.2f} MB on disk; the experts are named, not copied.")
workplace.cleanup()

# %% [markdown]
# ## What was learnt
#
# - A router is trained by the task itself; RSL only says what kind of routing is wanted besides.
# - Balance alone cannot tell undecided tokens from specialists; the entropy term can.
# - The last line that training prints says which share of a step was the frozen backbone's; the rest is what the
#   mixture costs.
# - Rows of other lengths are another training: the routers that ship saw the long answers whole.
#
# ## Exercise
#
# 1. Train with `entropy="flatten"` and compare the two paths on the plane.
# 2. Take half of the rows. How much worse is the loss on held-out rows, and is the interval of the difference above 0?
#    (Give `folder` a place that stays. `loramixer.evaluation.harness.score_rows` gives the loss and the tokens of
#    every row, and `loramixer.metrics.ratio_interval` a mean with its interval: of the differences, row by row.)
