"""Every way of `generate` that Transformers ships, on a mixture whose gates make hard choices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import pipeline

from tests import tiny

LENGTHS = (3, 7, 5)
PAD = 2
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module", params=["other ranks", "equal ranks, dense", "equal ranks, sparse"])
def model(request: pytest.FixtureRequest, experts, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Experts of other ranks and sites, and experts of equal ones in both forms of the sum."""
    kind, _, mixing = request.param.partition(", ")
    if kind == "equal ranks":
        folder = tmp_path_factory.mktemp("equal")
        targets = list(tiny.ALL_PROJECTIONS)
        experts = {
            name: tiny.save_expert(folder / name, seed, target_modules=targets) for seed, name in enumerate("abc")
        }
    return tiny.mixture(experts, gate="top_k", top_k=2, mixing=mixing or "auto")


@pytest.fixture(scope="module")
def prompts() -> list[torch.Tensor]:
    """Token ids of three prompts of different lengths."""
    return [tiny.token_ids(1, length, seed=length)[0] for length in LENGTHS]


def padded(prompts: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    width = max(LENGTHS)
    ids, mask = torch.full((len(prompts), width), PAD), torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        place = slice(width - len(prompt), width) if side == "left" else slice(0, len(prompt))
        ids[row, place], mask[row, place] = prompt, 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(prompt: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": prompt[None], "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}


def test_a_left_padded_batch_writes_what_single_prompts_write(model, prompts):
    together = model.generate(**padded(prompts, "left"), **GREEDY)
    for row, prompt in zip(together, prompts, strict=True):
        single = model.generate(**alone(prompt), **GREEDY)[0]
        assert torch.equal(row[-8:], single[-8:])


def test_logits_of_a_right_padded_batch_are_those_of_single_prompts(model, prompts):
    with torch.no_grad():
        together = model(**padded(prompts, "right")).logits
        for row, prompt in zip(together, prompts, strict=True):
            torch.testing.assert_close(row[: len(prompt)], model(**alone(prompt)).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "settings", [{"num_beams": 3, "num_return_sequences": 3}, {"num_beams": 4, "do_sample": True}]
)
def test_beam_search_with_and_without_cache_agrees(model, prompts, settings):
    found = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        found.append(model.generate(**padded(prompts, "left"), **{**GREEDY, **settings}, use_cache=use_cache))
    assert len(found[0]) == len(prompts) * settings.get("num_return_sequences", 1)
    assert torch.equal(*found)


def test_several_samples_follow_the_seed(model, prompts):
    def samples(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(**alone(prompts[1]), do_sample=True, num_return_sequences=4, max_new_tokens=12)

    first = samples(1)
    assert len({tuple(row.tolist()) for row in first}) == 4
    assert torch.equal(first, samples(1))
    assert not torch.equal(first, samples(2))


@pytest.mark.parametrize("layers", [1, 2])
def test_an_assistant_changes_the_speed_and_not_the_text(model, prompts, layers):
    expected = model.generate(**alone(prompts[1]), **GREEDY)
    assert torch.equal(
        model.generate(**alone(prompts[1]), **GREEDY, assistant_model=tiny.llama(layers=layers)), expected
    )
    assert torch.equal(model.generate(**alone(prompts[1]), **GREEDY, prompt_lookup_num_tokens=3), expected)


def test_a_mixture_can_be_the_assistant(model, prompts):
    plain = tiny.llama()
    expected = plain.generate(**alone(prompts[1]), **GREEDY)
    assert torch.equal(plain.generate(**alone(prompts[1]), **GREEDY, assistant_model=model), expected)


def test_a_static_cache_writes_the_same(model, prompts):
    batch = padded(prompts, "left")
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, cache_implementation="static"), expected)


def test_embeddings_instead_of_ids(model, prompts):
    expected = model.generate(**alone(prompts[1]), **GREEDY)[:, LENGTHS[1] :]
    embeddings = model.get_input_embeddings()(prompts[1][None])
    assert torch.equal(model.generate(inputs_embeds=embeddings, **GREEDY), expected)


def test_the_text_generation_pipeline(model):
    tokenizer = tiny.tokenizer()
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    (found,) = write("the dose", max_new_tokens=8, min_new_tokens=8, do_sample=False)
    ids = model.generate(**tokenizer("the dose", return_tensors="pt", return_token_type_ids=False), **GREEDY)[0]
    assert found["generated_text"] == tokenizer.decode(ids, skip_special_tokens=True)
