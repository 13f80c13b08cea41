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
# # 7 · Beyond attention: where does a router sit when there is none?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/07_beyond_attention.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer?room=explore)
#
# A LoRA-Mixer expert is a low-rank update of a linear projection, and a router weighs the experts there for every
# token. Nothing in this needs attention. Here the backbone is a state-space model, Falcon-Mamba, in which a token
# meets the others through a recurrent state. The one that ships with this package is a toy in size: 1.4 million
# parameters, trained by this project for 42 minutes. It shows where things happen; the text that it writes is no good.

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
MIXER = "falcon-mamba-tiny/rsl"
PROMPT = "A nurse gives 15 mg of a drug 3 times a day. How many mg is that, and what are the side effects of the drug?"

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model

import loramixer
from loramixer import viz
from loramixer.metrics import entropy
from loramixer.viz.notebook import show

model, tokenizer = loramixer.load_mixer(MIXER)
backbone = model.get_base_model()
print(f"{type(backbone).__name__}, {backbone.config.num_hidden_layers} blocks, {backbone.config.hidden_size} features")
print("experts:", ", ".join(model.peft_config["default"].expert_order))

# %% [markdown]
# ## One block, four routers
#
# A Mamba block has four linear projections, and each of them carries its own router:
#
# | projection | from → to | what its output is | what an expert can change there |
# |---|---|---|---|
# | `in_proj` | features → 2 × channels | the signal *u*, the gate *z* | what enters the state, what is let out |
# | `x_proj` | channels → Δ-rank + 2 × states | a short form of Δ; B and C | how states are written (B) and read (C) |
# | `dt_proj` | Δ-rank → channels | Δ, the step size of every channel | for how long a channel remembers |
# | `out_proj` | channels → features | the block's output | what the next block gets |
#
# The scan between them keeps a state *h* for each channel, $h_t = e^{\Delta_t A}\, h_{t-1} + \Delta_t B_t u_t$, and
# reads $y_t = C_t h_t$. In attention the experts on q and k change who looks at whom, those on v and o what is
# passed on. The experts on `x_proj` and `dt_proj` have no counterpart: they change the dynamics, token by token. A
# large Δ lets the state forget and take in this token; a small one passes it over.

# %%
trace = loramixer.trace(model, tokenizer, PROMPT, max_new_tokens=0 if FAST else 12, contributions=True)
sites = pd.DataFrame(
    [
        {
            "projection": site.projection,
            "module": site.module,
            "features in": backbone.get_submodule(site.module).in_features,
            "features out": backbone.get_submodule(site.module).out_features,
        }
        for site in trace.sites
        if site.layer == 0
    ]
)
assert trace.projections == ("in_proj", "x_proj", "dt_proj", "out_proj")
assert len(trace.sites) == 4 * backbone.config.num_hidden_layers
assert np.allclose(trace.gates.sum(axis=-1), 1, atol=1e-5)
sites

# %% [markdown]
# The router of a projection reads what the projection reads. So the four routers of a block see four different
# things: the features, the channels after the convolution, the short form of Δ (very few numbers), and the channels
# after the scan.
#
# ## Routing a prompt
#
# Half of the prompt is arithmetic and half is medicine. First, who takes each token in each block, over all four
# projections together:

# %%
show(viz.token_map(trace), "Blocks by tokens, coloured by the expert with the largest mean gate")

# %% [markdown]
# The same for two projections by themselves: `in_proj`, which reads the features, and `dt_proj`, which reads no more
# than the short form of Δ.

# %%
show(viz.token_map(trace, projection="in_proj"), "The routers of in_proj alone")
show(viz.token_map(trace, projection="dt_proj"), "The routers of dt_proj alone")

# %% [markdown]
# The four routers of a block do not have to agree. How often two of them put the same expert first:

# %%
show(viz.agreement_matrix(trace), "How often two projections of a block put the same expert first")

# %% [markdown]
# ## How undecided is each projection?
#
# Token entropy over log K: 0 is one expert. Two of four experts act here, so 0.50 is the most there can be: both
# alike, ln 2 / ln 4. Beside it stands the same for a recorded run of the attention backbone (SmolLM2-135M, q, k, v and
# o), on a Math–Medical prompt too, where three of six act and the most is ln 3 / ln 6 = 0.61. The two have other
# experts, other sizes and other training, so this compares ways of looking, not architectures.

# %%
recorded = loramixer.RoutingTrace.load(Path("../explorer/traces/math-medical.npz"))


def by_projection(trace: loramixer.RoutingTrace) -> pd.DataFrame:
    """Mean normalised token entropy and the load of every expert, for each projection."""
    rows = {}
    for projection in trace.projections:
        chosen, _ = trace.select(projections=[projection])
        gates = trace.gates[chosen].reshape(-1, len(trace.experts))
        rows[projection] = {"entropy": entropy(gates).mean() / np.log(len(trace.experts))} | dict(
            zip(trace.experts, gates.mean(axis=0), strict=True)
        )
    return pd.DataFrame(rows).T.round(3)


state_space, attention = by_projection(trace), by_projection(recorded)
assert (state_space["entropy"] < 1).all()
assert set(state_space.index).isdisjoint(attention.index)
pd.concat({"Falcon-Mamba, tiny": state_space, "SmolLM2-135M (recorded)": attention})[["entropy"]]

# %% [markdown]
# Here the routers of `in_proj` are the most decided; those of `dt_proj` and `out_proj` weigh the two experts that they
# choose nearly alike. How much a router reads does not explain it: `out_proj` reads twice as many numbers as
# `in_proj`. The load of the experts at each projection:

# %%
assert state_space["entropy"].idxmin() == "in_proj"
state_space.drop(columns="entropy")

# %% [markdown]
# ## What do the experts add?
#
# A gate says how much of an expert is asked for. The contribution says what that changes: the length of the expert's
# part of the output, in units of the length of the projection's own output.

# %%
shares = trace.contribution_shares
added = pd.Series(
    {
        projection: float(np.nanmean(shares[trace.select(projections=[projection])[0]].sum(axis=-1)))
        for projection in trace.projections
    },
    name="experts' length over that of the projection",
).round(3)
assert (added > 0).all()
added

# %% [markdown]
# ## The special place of `dt_proj`
#
# Three of the four projections are called as functions. `dt_proj` is not: the mixer takes its *weight* and
# multiplies by itself, since the bias is added later, inside the scan. Whoever hooks calls or replaces `forward` is
# passed over there, without an error. PEFT's own LoRA is:

# %%
ids = tokenizer(f"{PROMPT}\n", return_tensors="pt")
plain, _ = loramixer.load_backbone("falcon-mamba-tiny")
with torch.no_grad():
    untouched = plain(**ids).logits
torch.manual_seed(0)
lora = get_peft_model(plain, LoraConfig(target_modules=["dt_proj"], r=4, init_lora_weights=False)).eval()
with torch.no_grad():
    with_peft = lora(**ids).logits
assert torch.equal(with_peft, untouched)
print("A random LoRA of PEFT on every dt_proj changes the logits by", float((with_peft - untouched).abs().max()))

# %% [markdown]
# A mixture with this same LoRA as its only expert does act: the weight of a routed `dt_proj` is a tensor whose
# product with *x* includes the mixture. It equals the LoRA merged into the weights, which is what the LoRA means.

# %%
with tempfile.TemporaryDirectory() as folder:
    lora.save_pretrained(folder)
    merged, _ = loramixer.load_backbone("falcon-mamba-tiny")
    for name, layer in lora.named_modules():
        if name.endswith("dt_proj"):
            site = merged.get_submodule(name.removeprefix("base_model.model."))
            site.weight.data += layer.get_delta_weight("default")
    base, _ = loramixer.load_backbone("falcon-mamba-tiny")
    mixture = get_peft_model(base, loramixer.LoraMixerConfig(experts={"probe": folder}, top_k=1)).eval()
    with torch.no_grad():
        with_mixture, with_merged = mixture(**ids).logits, merged(**ids).logits
assert torch.allclose(with_mixture, with_merged, atol=1e-3)
assert not torch.allclose(with_mixture, untouched, atol=1e-2)
print("The mixture changes them by", float((with_mixture - untouched).abs().max()))
print("and differs from the merged weights by", float((with_mixture - with_merged).abs().max()))

# %% [markdown]
# There is a second such place in training: the fused CUDA kernel takes the weights of `x_proj`, `dt_proj` and
# `out_proj` all at once. A mixture that routes one of these leaves that kernel; see
# [docs/backbones.md](../docs/backbones.md).
#
# ## A state instead of a cache that grows
#
# Routing is decided for each token from what the projection sees, so nothing has to be kept for it. In attention,
# the keys and values of all tokens are kept beside that, and experts have changed them. Here it is a state of fixed
# size, and the experts have shaped it: after the prompt it is as large as after one token.


# %%
def bytes_kept(tokens: int) -> int:
    """Bytes that the model keeps after so many tokens of the prompt."""
    with torch.no_grad():
        cache = model(input_ids=ids["input_ids"][:, :tokens], use_cache=True).cache_params
    return sum(part.nbytes for layer in cache.layers for part in (layer.conv_states[0], layer.recurrent_states[0]))


after_one, after_all = bytes_kept(1), bytes_kept(ids["input_ids"].shape[1])
assert after_one == after_all > 0
with torch.no_grad():
    cached, recomputed = (
        model.generate(**ids, max_new_tokens=6, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
assert torch.equal(cached, recomputed)
print(f"{after_all:,} bytes, after 1 token and after {ids['input_ids'].shape[1]}")

# %% [markdown]
# ## What was learnt
#
# - A router sits at every linear projection, four to a block. It reads what the projection reads and needs no
#   attention.
# - Experts on `in_proj` and `out_proj` change what is passed on, as in attention. Experts on `x_proj` and `dt_proj`
#   change the dynamics: what is written to the state, what is read, and for how long it is remembered.
# - `dt_proj` is never called. A LoRA that waits to be called does nothing there, and nobody says so; a mixture
#   follows the weight and equals the merged LoRA.
# - Per-token routing keeps the recurrent state valid: with and without it, the model writes the same tokens.
#
# ## Exercise
#
# `loramixer.mask_experts(model, "math")` takes an expert out of the choice. Trace the prompt again without it: who
# takes its tokens at `in_proj`, and is it the same expert at `dt_proj`? Then call `loramixer.mask_experts(model)` to
# give it back.
