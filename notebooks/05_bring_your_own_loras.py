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
# # 5 · Bring your own LoRAs: what can be mixed, and what comes out again?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/05_bring_your_own_loras.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer?room=own)
#
# LoRA adapters lie in thousands on the Hub, each with a rank and with projections of its own. This notebook takes
# plain PEFT folders that have nothing in common but the backbone, mixes them as they are, trains a router over them,
# and takes every piece out again. Then it shows what is refused, with the sentence that says why.

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
BACKBONE = "smollm2-135m"
LORA_ROWS = 8 if FAST else 400  # training rows of each LoRA
ROUTER_ROWS = 8 if FAST else 300  # training rows of the routers
SEED = 0
HUB_ID = ""  # "your-name/my-mixture" to put the mixture on the Hub at the end

# %%
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import loramixer
from loramixer import LoraMixerConfig, LoraMixerError, viz
from loramixer.data import data_origin, draw_mixture
from loramixer.experts import read_expert
from loramixer.fitting import check_fit, outline_backbone

WORK = Path("my-loras")  # deleted at the end
shutil.rmtree(WORK, ignore_errors=True)

# %% [markdown]
# ## Three LoRAs
#
# Yours would lie in three folders already. Two are trained here, on a few rows, by the library's `train_experts`,
# which writes ordinary PEFT folders; their ranks and projections differ on purpose. The third, *blank*, is fresh from
# PEFT: as every new LoRA it has B = 0, so it adds nothing to anything. It is here to see whether the views notice.

# %%
(grammar,) = loramixer.train_experts(
    WORK, ["acceptability"], backbone=BACKBONE, rank=4, targets=("q_proj", "v_proj"), limit=LORA_ROWS, seed=SEED
)
(opinion,) = loramixer.train_experts(WORK, ["sentiment"], backbone=BACKBONE, rank=8, limit=LORA_ROWS, seed=SEED)
base, tokenizer = loramixer.load_backbone(BACKBONE)
fresh = get_peft_model(
    base,
    LoraConfig(r=16, lora_alpha=16, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
)
fresh.save_pretrained(WORK / "blank")
base = fresh.unload()
print(f"Rows: {data_origin()}.")
experts = {"acceptability": str(grammar), "sentiment": str(opinion), "blank": str(WORK / "blank")}

# %% [markdown]
# ## Do they fit? Ask before loading anything
#
# `check_fit` reads the two files of an adapter as shapes and compares them with the shapes of the backbone. No
# weights are loaded for that, neither the expert's nor the backbone's.

# %%
outline = outline_backbone(BACKBONE)
fits = [check_fit(name, source, outline) for name, source in experts.items()]
assert all(fit.usable for fit in fits)
pd.DataFrame(
    [
        {
            "expert": fit.name,
            "ranks": ", ".join(map(str, fit.ranks)),
            "projections": ", ".join(fit.targets),
            "sites": fit.matching,
            "parameters": f"{fit.parameters:,}",
        }
        for fit in fits
    ]
).set_index("expert")

# %% [markdown]
# ## Mix and freeze
#
# A mixture is a PEFT method like any other: `get_peft_model` with a `LoraMixerConfig`. At each site the experts that
# change it lie behind each other along the rank, so different ranks are no difficulty, and an expert that does not
# change a site is absent there: its logit is −∞. Backbone and experts are frozen; what trains is the routers.

# %%
mixed = get_peft_model(base, LoraMixerConfig(experts=experts, task_type="CAUSAL_LM"))
training = {name: weight.numel() for name, weight in mixed.named_parameters() if weight.requires_grad}
total = sum(weight.numel() for weight in mixed.parameters())
print(f"{len(training)} routers with {sum(training.values()):,} of {total:,} parameters will train.")
assert all("router" in name for name in training)
base = mixed.unload()

# %% [markdown]
# ## Train the routers
#
# Rows of the two domains; *blank* has no rows of its own and must find its place from the task alone. The folder that
# comes out holds the experts too (`routers_only=True` would name them by hash instead).
# For rows of your own give `source="rows.jsonl"`; [this is their form](../docs/data.md#your-own-rows).
#
# Here the experts stay as they are. They would train along with `train_experts=True`; with
# `training_gate="straight_through"` k of them act while the routers learn from the gates of all, and with
# `preserve=["sentiment"]` that one is held near where it was (Eq. 11 of the paper).

# %%
rows = draw_mixture(ROUTER_ROWS, SEED, ["acceptability", "sentiment"]).rows
mixture = WORK / "mixture"
loramixer.train_router(
    mixture, experts, examples=rows, backbone=BACKBONE, seed=SEED, title="My three LoRAs", measure_speed=False
)
model, tokenizer = loramixer.load_mixer(mixture)
assert list(model.active_peft_config.expert_order) == list(experts)

# %% [markdown]
# ## Who does what
#
# First the gates. Then *blank* by itself: the first map is its gate, the second what it adds. A gate is not a
# contribution.

# %%
PROMPT = (
    "Is the sentiment of this movie review text negative or positive?\n"
    "Text: a warm and funny film , and the ending is gripping ."
)
trace = loramixer.trace(model, tokenizer, PROMPT, contributions=True)
viz.show(viz.load_bars(trace), alt="Mean gate of each of the three experts in every layer.")
viz.show(viz.contribution_map(trace, "blank"), alt="Blank has gates, and adds nothing.")
blank = trace.experts.index("blank")
present = np.isfinite(trace.logits[..., blank])
print(f"blank has a mean gate of {trace.gates[..., blank][present].mean():.2f} where it is present, and adds")
print(f"{trace.contributions[..., blank].max():.1f} at most.")
assert trace.contributions[..., blank].max() == 0
assert (trace.gates[..., blank][~present] == 0).all()

# %% [markdown]
# At `down_proj` nobody else is present, so its gate is 1 there: a gate says how experts share a site, not how much
# they do.
#
# ## Take out what went in
#
# `export_expert` writes an expert as a plain PEFT folder again, bit for bit.

# %%
exported = loramixer.export_expert(model, "sentiment", WORK / "exported")
before, after = read_expert("before", opinion).sites, read_expert("after", exported).sites
assert before.keys() == after.keys()
assert all(
    torch.equal(before[site].A, after[site].A) and torch.equal(before[site].B, after[site].B) for site in before
)
print(f"{len(before)} sites, every matrix equal to the last bit.")

# %% [markdown]
# Servers that cannot route can still have a fixed blend, as one ordinary LoRA: its rank is the sum of the ranks. It is
# another model than the mixture, since the weights are the same for every token.

# %%
static = loramixer.export_static(model, {"acceptability": 0.5, "sentiment": 0.5}, WORK / "static")
blend = read_expert("static", static).sites
ranks = pd.Series({site.rpartition(".")[2]: part.rank for site, part in blend.items()}, name="rank of the blend")
served = PeftModel.from_pretrained(base, str(static))  # plain PEFT, nothing of LoRA-Mixer
ids = tokenizer(PROMPT, return_tensors="pt").input_ids
with torch.inference_mode():
    assert torch.isfinite(served(ids).logits).all()
assert ranks["q_proj"] == sum(fits[index].ranks[0] for index in (0, 1))
ranks.to_frame()

# %% [markdown]
# ## Change the mixture, save it, load it
#
# Experts can be added, removed and renamed in a loaded mixture; the router rows of those that stay are kept.

# %%
loramixer.remove_expert(model, "blank")
loramixer.rename_expert(model, "acceptability", "grammar")
model.save_pretrained(WORK / "smaller")
again, _ = loramixer.load_mixer(WORK / "smaller")
with torch.inference_mode():
    difference = (model(ids).logits - again(ids).logits).abs().max().item()
print(
    f"{', '.join(again.active_peft_config.expert_order)}; largest difference of a logit after reloading {difference:g}"
)
assert list(again.active_peft_config.expert_order) == ["grammar", "sentiment"]
assert difference < 1e-4
print("Files:", ", ".join(sorted(path.name for path in (WORK / "smaller").iterdir())))

# %% [markdown]
# ## Put it on the Hub
#
# `push_mixer` writes a model card along, replaces local paths, and answers with `organisation/name@commit`, which
# `load_mixer` takes anywhere. It needs a login (`hf auth login`) and an id in the parameters above.

# %%
if HUB_ID:
    try:
        print("Pushed as", loramixer.push_mixer(model, HUB_ID, private=True))
    except LoraMixerError as error:
        print("Not pushed:", error)
else:
    print("Not pushed: HUB_ID is empty. Set it in the parameters cell to put this mixture on the Hub.")

# %% [markdown]
# ## What is refused, and why
#
# Some adapters cannot be mixed exactly, some cannot be read safely. Each gets one sentence instead of a wrong result.
# Here is one of every common kind, made with PEFT on a tiny model or broken by hand:

# %%
tiny = LlamaForCausalLM(
    LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
)
made = {
    "another-backbone": LoraConfig(target_modules=["q_proj"]),
    "dora": LoraConfig(target_modules=["q_proj"], use_dora=True),
    "biases": LoraConfig(target_modules=["q_proj"], bias="lora_only"),
    "whole-modules": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
}
for name, config in made.items():
    adapted = get_peft_model(tiny, config)
    adapted.save_pretrained(WORK / name, save_embedding_layers=False)
    tiny = adapted.unload()

shutil.copytree(opinion, WORK / "pickled")
(WORK / "pickled" / "adapter_model.safetensors").rename(WORK / "pickled" / "adapter_model.bin")
shutil.copytree(opinion, WORK / "damaged")
weights = WORK / "damaged" / "adapter_model.safetensors"
weights.write_bytes(weights.read_bytes()[:1000])
shutil.copytree(opinion, WORK / "other-method")
settings = json.loads((WORK / "other-method" / "adapter_config.json").read_text())
(WORK / "other-method" / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))

refused = {
    name: check_fit(name, WORK / name, outline) for name in (*made, "pickled", "damaged", "other-method", "gone")
}
for name, fit in refused.items():
    print(f"{name}:\n   {' '.join(fit.reasons)}\n")
assert not any(fit.usable for fit in refused.values())
assert "never opened" in refused["pickled"].reasons[0]
assert "DoRA" in refused["dora"].reasons[0]

# %% [markdown]
# Nothing was unpickled for these sentences: of a `.bin` file only the name is looked at. `get_peft_model` and
# `load_mixer` say the same, as exceptions of the `LoraMixerError` family:

# %%
try:
    get_peft_model(served.unload(), LoraMixerConfig(experts={"mine": str(WORK / "dora")}, task_type="CAUSAL_LM"))
    raise AssertionError("this must have been refused")
except LoraMixerError as error:
    print(f"{type(error).__name__}: {error}")
shutil.rmtree(WORK)

# %% [markdown]
# ## What was learnt
#
# - LoRAs of any rank, scaling and choice of projections mix as they are; where an expert has no matrices it is absent.
# - Only routers train; experts come out again bit for bit.
# - A high gate can belong to an expert that adds nothing. Look at contributions before believing a gate.
# - What cannot be mixed exactly or read safely is refused before any weight is loaded, in a sentence.
#
# ## Exercise
#
# 1. Put a LoRA from the Hub for this backbone into `experts` as `"organisation/name@commit"`, and run `check_fit`.
# 2. Train the routers for *blank* out of the mixture: with more rows, does its gate at `q_proj` fall? Why has the task
#    loss a reason to lower it, although it adds nothing?
