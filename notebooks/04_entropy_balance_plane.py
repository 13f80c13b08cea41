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
# # 4 · The entropy–balance plane: can a router be balanced and know nothing?
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/loramixer/loramixer/blob/main/notebooks/04_entropy_balance_plane.ipynb)
# [Open the explorer](https://huggingface.co/spaces/loramixer/explorer?room=tradeoff)
#
# "Balanced" is what most routing losses ask for: every expert gets an equal share of the tokens. This notebook shows
# with one picture why that is not enough, proves the two facts that the picture stands on by trying them, and watches
# the paper's own descent (Appendix A.1) walk through it.

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
SEED = 0
ROUTERS = 200 if FAST else 2000  # random routers that are tried against the inequality
STEPS = 150 if FAST else 400  # of the descent
PROMPT = (
    "A patient takes 250 mg of amoxicillin three times a day for 7 days. How many mg does the patient take in all, "
    "and what are the side effects of amoxicillin?"
)

# %% tags=["imports"]
import numpy as np

import loramixer
from loramixer import viz
from loramixer.metrics import PlanePoint, entropy, mutual_information, plane_point, shuffled_token_band
from loramixer.viz.figures import convergence_figure, grid_figure
from loramixer.whatif import soft_gates

# %% [markdown]
# ## Two numbers for one router
#
# A router gives every token x a distribution p(x) over K experts. Two entropies describe what it does to a text:
#
# - **undecided**, E[H(p(x))] / ln K: how unsure it is about a single token. 0 means that every token has one expert.
# - **balanced**, H(E[p(x)]) / ln K: how even the load is over all tokens. 1 means that all experts get the same share.
#
# Four routers over six experts and 600 tokens, made by hand:

# %%
experts, tokens = 6, 600
uniform = np.full((1, tokens, experts), 1 / experts)
collapsed = np.eye(experts)[np.zeros((1, tokens), dtype=int)]
specialists = np.eye(experts)[np.arange(tokens)[None] % experts]
half_sure = 0.5 * specialists + 0.5 * uniform

made = {
    "uniform gates": uniform,
    "one expert": collapsed,
    "specialists": specialists,
    "half sure": half_sure,
}
points = {name: plane_point(p) for name, p in made.items()}
for name, point in points.items():
    print(f"{name:14} undecided {point.undecided:.2f}   balanced {point.balanced:.2f}")
viz.show(viz.plane(points, title="Four routers made by hand"), alt="Three of the four routers are perfectly balanced.")

assert points["uniform gates"].balanced > 0.999
assert points["specialists"].balanced > 0.999

# %% [markdown]
# Three of the four are perfectly balanced, and they could not be more different: *uniform gates* treats every token
# alike, *specialists* is sure of one expert for each token, *half sure* lies between them. A loss that looks at the
# load alone cannot tell them apart. That is what "balanced is not good" means.
#
# ## Why nothing lies below the diagonal
#
# Entropy is concave: the entropy of a mean is never below the mean of the entropies (Jensen). So y ≥ x for every
# router, and the grey triangle stays empty. We try it on random routers of all kinds, from undecided to decided:

# %%
random = np.random.default_rng(SEED)
tried = []
for _ in range(ROUTERS):
    concentration = 10 ** random.uniform(-1.5, 1.5)
    tried.append(plane_point(random.dirichlet(np.full(experts, concentration), size=(1, 64))))
smallest_gap = min(point.balanced - point.undecided for point in tried)
print(f"{ROUTERS} random routers: the smallest height above the diagonal is {smallest_gap:.4f}.")
assert smallest_gap >= 0

# %% [markdown]
# ## What the height above the diagonal is
#
# H(p̄) − E[H(p)] is the mutual information between the token and its expert: how many nats you learn about the token
# by hearing which expert was drawn for it. The library computes it as that difference; here is the definition,
# written out as a sum over the joint distribution of token and expert, for comparison.
#
# It does not say that the choice is a good one. *Specialists* above was dealt out in turn, as cards are: its height is
# the largest there is, and it has not looked at a single token. Specialisation needs height, and height does not prove
# it: the own expert's share, I(domain; expert) and the test loss say whether the experts were the right ones. DS-MoE
# in
# [docs/results.md](../docs/results.md) has the greatest height and not the lowest loss.

# %%
p = random.dirichlet(np.full(experts, 0.3), size=(1, 64))
joint = p[0] / p.shape[1]  # tokens are equally likely
independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
by_definition = float((joint * np.log(joint / independent)).sum())
as_height = float(entropy(p.mean(axis=1)).mean() - entropy(p).mean())
print(f"by definition {by_definition:.6f} nats, as a height {as_height:.6f} nats")
assert abs(by_definition - as_height) < 1e-9
assert abs(float(np.mean(mutual_information(p))) - as_height) < 1e-9

# %% [markdown]
# ## A trained router on one prompt, beside texts of the same length
#
# Now a real one: the shipped RSL routers on a prompt that crosses two domains. Every one of its routers (one for
# each projection of each layer) is placed by itself, and the point is their mean. One prompt has few tokens, and few
# tokens cannot be spread as evenly as many, so the box says where a text of as many tokens would fall if its tokens
# were drawn at random from all tokens of some prompts. A point is to be read against its own box, never against that
# of a longer text. Tokens of the chat template are left out: they are the same in every prompt.
#
# The box is no router without knowledge: its tokens keep the gates that this router gave them, so it lies high above
# the diagonal itself. It says how far one text differs from a random handful of tokens. A point below it: this text
# loads the experts less evenly, as a text of few topics does. A point to its right: its tokens are less decided than
# others. A router that knows nothing lies on the diagonal.

# %%
OTHERS = [
    "What are the symptoms of iron deficiency anemia, and how is it treated?",
    "Write a Python function that returns the second largest number in a list.",
    "A baker sells 48 loaves in the morning and half as many in the afternoon. How many loaves is that?",
]
model, tokenizer = loramixer.load_mixer("smollm2-135m/rsl")
traces = [loramixer.trace(model, tokenizer, prompt) for prompt in (PROMPT, *OTHERS)]
words = [np.array(trace.tokens.roles) != "template" for trace in traces]
# of the router itself: softmax of its logits, before top-k
soft = [soft_gates(trace.logits)[:, own] for trace, own in zip(traces, words, strict=True)]
everything = np.concatenate(soft, axis=1)
trained = plane_point(soft[0])
band = shuffled_token_band(everything, tokens=soft[0].shape[1], seed=SEED, draws=50 if FAST else 200)
figure = viz.plane({"RSL, this prompt": trained}, bands={"RSL, this prompt": band}, title="A trained router")
viz.show(figure, alt="The trained router lies above the diagonal.")
print(
    f"n = {soft[0].shape[1]} tokens, {soft[0].shape[0]} routers: mutual information "
    f"{trained.mutual_information:.3f} nats of at most {np.log(len(traces[0].experts)):.3f}"
)
assert trained.balanced > trained.undecided

# %% [markdown]
# ## Where descent leads
#
# Appendix A.1 of the paper studies exponentiated-gradient descent on the balance and entropy terms alone, without a
# model: F = α Σ p̄² ∓ λ E[H(p)]. It proves that the distance to the minimum (as KL divergence) shrinks by a constant
# factor in every step. The library has that descent; three objectives, the same random start:
#
# - **flatten**: the sign that Eq. 5 of the paper prints,
# - **flatten + task**: the same with a cost that differs from token to token, as a task loss would give it,
# - **sharpen**: the sign that the text of the paper describes. It is not convex, so the theorem does not speak of it.

# %%
from loramixer.evaluation.experiments.convergence import measure_convergence, ratios

rows = measure_convergence(seeds=(SEED,), steps=STEPS)
names = list(dict.fromkeys(row["setting"] for row in rows))
paths = {
    name: [
        PlanePoint(row["token_entropy"], row["load_entropy"], row["experts"]) for row in rows if row["setting"] == name
    ]
    for name in names
}
ends = {name: path[-1] for name, path in paths.items()}
viz.show(
    viz.plane(ends, paths=paths, title=f"{STEPS} steps of exponentiated-gradient descent, seed {SEED}"),
    alt="flatten ends at the corner of uniform gates, sharpen at that of balanced specialists.",
)
for name, point in ends.items():
    print(f"{name:15} undecided {point.undecided:.3f}   balanced {point.balanced:.3f}")
assert ends["flatten"].undecided > 0.99
assert ends["sharpen"].undecided < 0.5 < ends["sharpen"].balanced

# %% [markdown]
# The printed sign, with no task to hold against it, converges to *uniform gates*: the corner that the paper sets out
# to avoid. The sign that the text describes goes to the corner of balanced specialists; of which expert a token
# becomes one, the random start decides here, for there is no task. Both have an even load all along.
#
# And the theorem? It holds for the objective that it is about:

# %%
for name in ("flatten", "flatten + task"):
    own = [row for row in rows if row["setting"] == name]
    print(f"{name:15} largest factor per step {ratios(own).max():.5f}, promised at most {own[0]['bound']:.5f}")
    assert ratios(own).max() <= own[0]["bound"]
viz.show(convergence_figure(rows), alt="KL to the minimum falls as a straight line on a logarithmic scale.")

# %% [markdown]
# ## The α × λ grid
#
# How far do both weights move a router? First without a model: the same descent for several α and λ, both signs. α
# weighs Σ p̄² here, without K; the grid of trained routers below has α of K Σ p̄ f̄. In this descent α hardly matters,
# since random gates have an even load to begin with.

# %%
alphas, lambdas = ((0.1,), (0.05, 0.2)) if FAST else ((0.1, 1.0), (0.05, 0.2))
grid: dict[str, PlanePoint] = {}
for alpha in alphas:
    for strength in lambdas:
        ended = measure_convergence(seeds=(SEED,), balance_weight=alpha, entropy_weight=strength, steps=STEPS)
        for sign in ("flatten + task", "sharpen"):
            last = [row for row in ended if row["setting"] == sign][-1]
            end = PlanePoint(last["token_entropy"], last["load_entropy"], last["experts"])
            grid[f"{sign} {alpha:g} / {strength:g}"] = end
viz.show(
    viz.plane(grid, title=f"Where {STEPS} steps end, by sign and α / λ"),
    alt="Larger λ: flatten further right, sharpen further left.",
)
for name, point in grid.items():
    print(f"{name:25} undecided {point.undecided:.3f}   balanced {point.balanced:.3f}")
for alpha in alphas:
    weak, strong = (grid[f"flatten + task {alpha:g} / {strength:g}"] for strength in lambdas)
    assert strong.undecided > weak.undecided

# %% [markdown]
# With trained routers the same question takes hours, so its answer is read from the repository. `loramixer experiment
# grid` makes the file; what has not been trained yet is not in it.

# %% tags=["results"]
from pathlib import Path

from loramixer.evaluation.csv_files import read_csv

measured = Path("..") / "docs" / "results" / "grid.csv"
if measured.is_file():
    cells = read_csv(measured)
    viz.show(grid_figure(cells), alt="Test loss of trained routers by α and λ.")
    print(f"{len(cells)} trained routers.")
else:
    print(
        "The grid of trained routers has not been measured in this copy of the repository: loramixer experiment grid."
    )

# %% [markdown]
# ## What was learnt
#
# - Balanced is a statement about the mean; a router can be perfectly balanced and give every token the same gates.
# - y ≥ x always, and y − x is the mutual information of token and expert: specialisation is a *height*, not a place on
#   one axis.
# - The two signs of λ lead to opposite corners. The theorem of A.1 is true, and it is about the sign that flattens.
# - A short text is to be read against a box of its own length.
#
# ## Exercise
#
# 1. Make a router that lies at (0, 0.61): decided about every token, and unevenly loaded. How many of six experts does
#    it use, if it uses them evenly?
# 2. Give `shuffled_token_band` only 5 tokens. Why does the box move down and not to the side?
