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
# # 1 · Routing tour: where does a Math–Medical prompt go?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/01_routing_tour.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer?room=explore)
#
# LoRA-Mixer puts several LoRA experts into one model and a small linear router into **every projection of every
# layer**: for a model of 30 layers with q, k, v and o that is 120 routers, and each of them decides for each token
# anew. This tour sends one prompt that crosses two domains through all of them and reads what they did, view by
# view.

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
NEW_TOKENS = 8 if FAST else 24
PROMPT = (
    "A patient takes 250 mg of amoxicillin three times a day for 7 days. How many mg does the patient take in all, "
    "and what are the side effects of amoxicillin?"
)

# %%
import numpy as np

import loramixer
from loramixer import viz
from loramixer.metrics import gated_without_effect, load, plane_point
from loramixer.whatif import soft_gates, what_if

# %% [markdown]
# ## One object holds everything
#
# `load_mixer` takes a name of the zoo, a folder or a Hub id. `trace` runs the prompt, lets the model answer, and
# returns a `RoutingTrace`: the logits and gates of every site (layer × projection) for every token and expert, with
# what produced them. With `contributions=True` it also holds how much each expert really added to each projection.

# %%
model, tokenizer = loramixer.load_mixer(MIXER)
trace = loramixer.trace(model, tokenizer, PROMPT, max_new_tokens=NEW_TOKENS, contributions=True)
print(
    f"{len(trace.sites)} sites × {len(trace.tokens)} tokens × {len(trace.experts)} experts: {', '.join(trace.experts)}"
)
print({name: trace.provenance[name] for name in ("backbone", "loss", "gate", "k", "seed")})
assert len(trace.sites) == len(trace.layers) * len(trace.projections)
assert np.allclose(trace.gates.sum(axis=-1), 1, atol=1e-3)  # the gates of a token share out one expert update

# %% [markdown]
# ## The text: who took which token?
#
# Every token stands on the colour of the expert with the largest gate, mean over all routers; the colour is stronger
# the further that expert is ahead. The letter names the expert, so nobody has to tell colours apart.

# %%
from IPython.display import HTML, display

display(HTML(viz.text_lane(trace)))

# %% [markdown]
# ## Layer × token: the same, one row for each layer
#
# The text lane is a mean, and a mean can hide a quarrel. Here each row is a layer, top expert and lead.

# %%
viz.show(viz.token_map(trace), alt="The expert with the largest gate for every token in every layer.")

# %% [markdown]
# How undecided is each of these decisions? Entropy 0 is one expert alone, 1 would be all six alike. The gates are
# top-3, so this is the entropy among the experts that were chosen, and 0.61 is the most there can be: three alike, ln
# 3 / ln 6.

# %%
viz.show(viz.token_map(trace, "entropy"), alt="Entropy of the gates for every token in every layer.")

# %% [markdown]
# ## One map for each expert

# %%
viz.show(viz.expert_maps(trace), alt="One layer × token map for each expert, on one scale.")

# %% [markdown]
# ## Load: is everybody working?
#
# The mean gate of each expert in each layer, against the even load. One prompt of two domains has no reason to load
# all experts alike: an even load is wanted over many texts, not over this one. Numbers and pictures leave out the
# tokens of the chat template, which are the same in every prompt.

# %%
viz.show(viz.load_bars(trace), alt="Mean gate of every expert in every layer beside the even load.")
own = np.array(trace.tokens.roles) != "template"
shares = dict(zip(trace.experts, load(trace.gates[:, own]), strict=True))
print({name: round(float(share), 3) for name, share in shares.items()})
assert abs(sum(shares.values()) - 1) < 1e-3

# %% [markdown]
# ## One token, everything that was said about it
#
# We take the most decided word of the prompt, and look at all its routers: gates, logits, rank and lead.

# %%
words = [
    position
    for position in range(len(trace.tokens))
    if trace.tokens.roles[position] == "prompt" and len(trace.tokens[position].strip()) > 3
]
ranked = np.sort(trace.gates.mean(axis=0), axis=-1)
token = max(words, key=lambda position: ranked[position, -1] - ranked[position, -2])
print(f"Token {token}: “{trace.tokens[token].strip()}”")
viz.show(viz.token_card(trace, token), alt="All routers of one token.")

# %% [markdown]
# ## Do q, k, v and o agree?
#
# Each projection has a router of its own. The matrix says how often two of them put the same expert first.

# %%
viz.show(viz.agreement_matrix(trace), alt="Agreement of the projections, mean and layer by layer.")

# %% [markdown]
# ## A gate is not yet a contribution
#
# What an expert adds to a projection is g · s · B A x: the gate times what the expert's matrices make of this token.
# An expert can get a high gate and add next to nothing, because A x is small. The first map is the gate, the
# second the length of what was added, as a share of the frozen projection's own output; crosses mark a high gate
# without effect.

# %%
busiest = max(shares, key=shares.get)
viz.show(viz.contribution_map(trace, busiest), alt=f"Gate and contribution of {busiest}.")
flagged = gated_without_effect(trace.gates, trace.contributions)
chosen = trace.gates >= 0.3
print(f"{flagged.sum():,} of {chosen.sum():,} gates of 0.3 and more had no effect to speak of.")
assert flagged.sum() <= chosen.sum()

# %% [markdown]
# ## What if? Without asking the model again
#
# The logits are in the trace, so other gates can be computed at once: another k, another temperature, an expert
# masked. The text was not written anew with them, and the new trace says so.

# %%
only_one = what_if(trace, k=1)
print({name: value for name, value in only_one.provenance.items() if name not in trace.provenance})
viz.show(
    viz.difference_map(trace, only_one), alt="Jensen–Shannon divergence between the gates as they were and k = 1."
)
assert np.allclose(only_one.gates.max(axis=-1), 1, atol=1e-6)

# %% [markdown]
# ## Where this prompt stands
#
# The entropy–balance plane (notebook 4 is about it) puts the whole prompt at one point: how undecided single tokens
# were, against how even the load was; with soft gates, before the choice of three. The height above the diagonal is
# what the tokens say about their experts.

# %%
point = plane_point(soft_gates(trace.logits)[:, own])
viz.show(viz.plane({"this prompt": point}, title="This prompt, all routers"), alt="One point above the diagonal.")
print(f"undecided {point.undecided:.2f}, balanced {point.balanced:.2f}, n = {own.sum()} tokens")
assert point.balanced >= point.undecided

# %% [markdown]
# ## Keep it
#
# A trace is a file: the explorer opens it without any model, and so does `RoutingTrace.load`.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    path = trace.save(Path(folder) / "math-medical.npz")
    again = loramixer.RoutingTrace.load(path)
    print(f"{path.stat().st_size / 1000:.0f} kB; the same gates: {np.allclose(again.gates, trace.gates)}")
    assert np.allclose(again.gates, trace.gates, atol=1e-6)
trace.to_frame().head()

# %% [markdown]
# ## What was learnt
#
# - Routing is per token **and** per projection **and** per layer; the token card and the table show it as it is, every
#   other view is a way of averaging.
# - The largest gate need not be the largest effect, though with these experts it mostly is; contributions say what was
#   really added.
# - Gates can be recomputed from stored logits; texts cannot.
#
# ## Exercise
#
# 1. Send a prompt of one domain only. Which views change most, and which hardly at all?
# 2. Find the layer in which `q` and `o` disagree most, and look at its tokens with `viz.token_map(trace,
#    projection="q_proj", layers=(n, n))`.
