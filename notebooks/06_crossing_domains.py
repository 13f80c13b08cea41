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
# # 6 · Crossing domains: does every word find its expert, and does it matter?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/06_crossing_domains.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer?room=what_if)
#
# The case for routing tokens, and not whole prompts, is the prompt that needs two experts at once. Here such prompts
# are generated, with exact answers and with gold spans that say which words belong to which domain. Three questions:
# is the answer right, do the words go to their experts, and what is lost when an expert is taken away?

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
MIXER = "smollm2-135m/rsl"
ROWS = 2 if FAST else 16  # of each set
NEW_TOKENS = 4 if FAST else 120  # longest answer; 4 are enough to see that everything works, not to answer
DRAWS = 30 if FAST else 200  # shufflings of each row
SEED = 0

# %%
import numpy as np
import pandas as pd
from IPython.display import HTML, display

import loramixer
from loramixer import Intervention, viz
from loramixer.data import FAMILIES, generated_examples
from loramixer.evaluation.crossing import ablate, answer_rows, summarise_spans
from loramixer.spans import spans_in_trace

# %% [markdown]
# ## The rows
#
# Each prompt is made of two parts, one of each domain, in random order: where a word stands tells nothing about its
# domain. Neither part gives the answer alone. The answers are checked exactly: the last number, or what a Python
# function returns for 121 inputs (it is interpreted, never executed).

# %%
model, tokenizer = loramixer.load_mixer(MIXER)
experts = tuple(model.active_peft_config.expert_order)
sets = [name for name, family in FAMILIES.items() if all(part in experts for part in family.domain.split("-"))]
sets = [name for name in sets if "-" in FAMILIES[name].domain]  # those of two domains that both have an expert here
rows = [row for name in sets for row in generated_examples(ROWS, SEED, [name])]
for row in rows[::ROWS]:
    print(f"{row.domain}:", " | ".join(f"[{span.domain}] {row.prompt[span.start : span.end]}" for span in row.spans))
    print(f"  → {row.target}\n")
assert len(rows) == ROWS * len(sets)
assert all({span.domain for span in row.spans} == set(row.domain.split("-")) for row in rows)

# %% [markdown]
# ## One prompt
#
# Each token on the colour of the expert with the largest gate, mean over all routers, first. Then gold span × expert:
# if routing followed the spans perfectly, each row would have all its weight in the column of its own name.

# %%
answered = answer_rows(model, tokenizer, rows, NEW_TOKENS)
first = answered[0]
display(HTML(viz.text_lane(first.trace)))
gold = spans_in_trace(first.trace, first.example.prompt, first.example.spans)
viz.show(viz.span_confusion(first.trace, gold), alt="Mean gate of every expert over the tokens of each gold span.")
assert np.allclose(first.routed.confusion.sum(axis=-1), 1, atol=1e-3)

# %% [markdown]
# *Purity* is the gate mass that lies with each expert's commonest domain. It is never low, since the larger span
# alone gives its share of the tokens; so it is worth as much as its distance from *shuffled*: the same tokens with
# the same gates, dealt out to the spans at random. *Switch lag* is the number of tokens after the border until the
# expert of the new span is ahead.
#
# ## All rows
#
# Intervals are 95 %: Wilson's for the share of right answers, which stays honest with few rows and with none right,
# and a bootstrap over rows for the others. *n* is the number of prompts.

# %%
summaries = summarise_spans(answered, seed=SEED, draws=DRAWS)


def written(value: tuple[float, float, float], digits: int = 2) -> str:
    """Value and interval."""
    return f"{value[0]:.{digits}f} [{value[1]:.{digits}f}, {value[2]:.{digits}f}]"


table = pd.DataFrame(
    [
        {
            "set": found.domain,
            "n": found.n,
            "right answers": written(found.correct),
            "purity": written(found.purity, 3),
            "shuffled": round(found.purity_shuffled, 3),
            "rows above their null": f"{found.above_null} of {found.n}",
            "own expert's gate": written(found.own_share),
            "shuffled ": round(found.own_share_shuffled, 2),
            "switch lag, tokens": written(found.lag, 1),
            "shuffled  ": round(found.lag_shuffled, 1),
        }
        for found in summaries
    ]
).set_index("set")
assert all(found.purity[1] <= found.purity[0] <= found.purity[2] for found in summaries)
assert all(1 / 2 <= found.purity[0] <= 1 for found in summaries)  # two domains
table.T

# %%
for found in summaries:
    better = "more than" if found.purity[1] > found.purity_shuffled else "not clearly more than"
    sooner = "sooner than" if found.lag[2] < found.lag_shuffled else "not clearly sooner than"
    print(f"{found.domain} (n = {found.n}): the routing follows the spans {better} shuffled tokens would, and the new")
    print(f"  span's expert is ahead {sooner} among shuffled tokens.")

# %% [markdown]
# These sentences are made from the numbers: whether the whole interval lies on one side. *Rows above their null* are
# prompts whose purity is above 97.5 % of their own shufflings. With `FAST=1` there are two
# rows of each set, and neither intervals nor sentences mean anything. With a backbone of this size
# a wrong answer is the usual one, and then the share of right answers cannot tell routers apart. The loss of the
# *gold* answer can: it moves by degrees.
#
# ## Taking experts away
#
# The same rows again, while the routing is changed for every token, layer and projection:
#
# - **without X**: an expert is masked, and its weight goes to the others;
# - **a random one masked**: the control for the number of masked experts, drawn anew for each token and router. Where
#   it is below 0, these rows are better off with less of their routing, and to be above it proves nothing: an expert
#   matters if its mask raises the loss, and by more than that of an expert of neither domain;
# - **X alone**: all weight to one expert, as if the prompt were of one domain;
# - **uniform**: the same weight for all, no routing at all.
#
# The number is the loss of the gold answer in nats per token, less that of the mixture as it is, on the same rows.
# Above 0 is worse, below 0 better: a mixture can be better off with less of its routing, and then its routers have not
# learnt these rows.

# %%
needed = list(dict.fromkeys(span.domain for row in rows for span in row.spans))
changes = {f"without {name}": [Intervention("mask", (name,))] for name in needed}
changes["a random one masked"] = [Intervention("random_mask", (needed[0],), seed=SEED)]
changes |= {f"{name} alone": [Intervention("force", (name,))] for name in needed}
changes["uniform"] = [Intervention("uniform")]
if FAST:
    changes = {name: changes[name] for name in (f"without {needed[0]}", "a random one masked", "uniform")}
found = ablate(model, tokenizer, rows, changes)
differences = pd.DataFrame(
    [{"change": row.change, "set": f"{row.domain}, n = {row.n}", "Δ": written(row.difference, 3)} for row in found]
).pivot(index="change", columns="set", values="Δ")
assert len(found) == len(changes) * len(sets)
differences.loc[list(changes)]

# %%
for row in found:
    if row.change == "uniform":
        _, low, high = row.difference
        said = "a lower loss" if high < 0 else "a higher loss" if low > 0 else "not clearly another loss"
        print(f"{row.domain} (n = {row.n}): with even gates the gold answers have {said} than with this router.")

# %% [markdown]
# ## Does it change what is written?
#
# A loss is a mean. Here is one answer with the routing as it is and without the expert of the first span: what is
# struck through stands only in the first, what is underlined only in the second.

# %%
gone = first.example.spans[0].domain
(without,) = answer_rows(model, tokenizer, [first.example], NEW_TOKENS, interventions=[Intervention("mask", (gone,))])
print(f"without {gone}:")
display(HTML(viz.text_difference(first.answer, without.answer)))
assert without.trace.provenance["interventions"] == [{"kind": "mask", "experts": [gone]}]

# %% [markdown]
# ## What was learnt
#
# - Purity is read against shuffled tokens, never by itself; a lag likewise.
# - Where few answers are right, count them with an honest interval, and compare routers by the loss of the gold
#   answer.
# - A mask needs its control, since losing any expert changes something, and not always for the worse.
# - Routing that follows the spans is one thing, needing the expert another. The table above shows both: math matters
#   in both sets, and without the code expert the math–code rows are better off, though their words go to it.
#
# ## Exercise
#
# 1. Mask the expert only in the span of its own domain (`Intervention("mask", (name,), tokens=(start, end))`), with
#    `loramixer.trace`. Which tokens outside the span change their gates, and how can that be?
# 2. Write a family of your own from one that `loramixer.data.FAMILIES` lists, and give its rows to `answer_rows`.
