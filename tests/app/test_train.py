"""The room Train without a browser: what can be asked for, estimates, following, and the way to other rooms."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from urllib.parse import parse_qsl

import gradio as gr
import pytest

from explorer.rooms.train.choices import LOSSES, describe_data, domains_of, zoo_experts
from explorer.rooms.train.estimate import Speed, duration, estimate, logged_speed, memory_bytes, speed_of
from explorer.rooms.train.handlers import CONTROLS, LINK_FIELDS, NAMES, OWN, SHIPPED, TrainHandlers
from explorer.rooms.train.payload import python_of
from explorer.training_job import TrainingJob
from explorer.trainings import Trainings
from loramixer.errors import LoraMixerError
from loramixer.training.run_log import RunLog
from loramixer.tuner.config import RoutingLoss
from tests.app.synthetic import MIXERS, FakeSource
from tests.app.tiny_training import stand_in_command

EXPERTS = {"math": "somewhere/math", "medical": "somewhere/medical", "code": "somewhere/code"}
SECONDS = 60
SETTINGS: dict[str, Any] = {
    "experts": ["math", "medical"], "domains": ["math", "medical"], "data": "default", "loss": "rsl",
    "balance_weight": 1, "entropy_weight": 0.3, "entropy": "flatten", "scale": "unit", "examples": 32, "seed": 7,
    "top_k": 2, "probe": "How many mg?", "pool": SHIPPED, "file": None,
}  # fmt: skip


def session(name: str = "one", **query: str) -> Any:
    return SimpleNamespace(session_hash=name, query_params=query)


@pytest.fixture
def handlers(tmp_path: Path) -> Iterator[TrainHandlers]:
    trainings = Trainings(stand_in_command(tmp_path))
    yield TrainHandlers(FakeSource(), {}, trainings, EXPERTS)
    trainings.close()


def start(handlers: TrainHandlers, **changes: Any) -> tuple[Any, ...]:
    values = {**SETTINGS, **changes}
    return handlers.start(session(), *(values[name] for name in CONTROLS))


def follow(handlers: TrainHandlers, key: str, state: str, step: int = 0) -> list[tuple[Any, ...]]:
    """Ticks until the training is in a state; a step is allowed before each tick."""
    seen: dict[str, Any] = {}
    ticks = []
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if state == "finished":
            (handlers.trainings.folder(key) / "go").touch()
        tick = handlers.poll(key, seen)
        ticks.append(tick)
        seen = tick[-1]
        if seen["state"] == state and seen["step"] >= step:
            return ticks
        time.sleep(0.02)
    raise AssertionError(seen)


def test_every_loss_of_the_library_is_offered() -> None:
    assert set(LOSSES) == set(get_args(RoutingLoss))


def test_a_training_is_followed_to_its_end(handlers: TrainHandlers) -> None:
    key, seen, line, timer = start(handlers)
    assert (seen, line["kind"], timer.active) == ({}, "busy", True)
    ticks = follow(handlers, key, "finished")
    views = [tick[0] for tick in ticks if "curves" in tick[0]]
    assert views[-1]["step"] == 4
    assert [chart["name"] for chart in views[-1]["curves"]][:2] == ["Task loss, nats per token", "Entropies, nats"]
    frames = [tick[1] for tick in ticks if tick[1] and "frames" in tick[1]]
    assert frames[-1]["steps"] == [1, 2, 3, 4]
    *_, line, train, stop, resume, explore, compare, download, packed, timer, _ = ticks[-1]
    assert line == {"kind": "ready", "text": "Finished: 4 steps. The router is ready."}
    assert [button.interactive for button in (train, stop, resume, explore, compare, download)] == [
        True, False, False, True, True, True,
    ]  # fmt: skip
    assert not timer.active
    # Packed at each press: what Gradio was given earlier is gone after an hour.
    assert not packed.visible
    saved, _ = handlers.download(key)
    assert saved.visible
    assert zipfile.is_zipfile(saved.value["path"])


def test_there_is_no_router_to_download_yet(handlers: TrainHandlers) -> None:
    key, *_ = start(handlers)
    saved, line = handlers.download(key)
    assert not saved.visible
    assert "no router to download yet" in line["text"]


def test_what_has_not_changed_is_not_sent_again(handlers: TrainHandlers) -> None:
    key, *_ = start(handlers)
    (handlers.trainings.folder(key) / "go").touch()
    seen = follow(handlers, key, "training", step=1)[-1][-1]
    while (handlers.trainings.folder(key) / "go").exists():
        time.sleep(0.01)
    seen = handlers.poll(key, seen)[-1]
    view, frames, line, *buttons, timer, _ = handlers.poll(key, seen)
    assert view == frames == buttons[0] == gr.skip()
    assert line["text"] == "Training: step 1 of 4; about 2 s left, measured on the steps so far."
    assert timer.active


def test_stop_and_resume(handlers: TrainHandlers) -> None:
    key, *_ = start(handlers)
    (handlers.trainings.folder(key) / "go").touch()
    follow(handlers, key, "training", step=1)
    assert "checkpoint" in handlers.stop(key)[0]["text"]
    last = follow(handlers, key, "stopped")[-1]
    assert last[2]["kind"] == "note"
    assert last[5].interactive
    handlers.trainings._trainings[key].process.wait(SECONDS)  # type: ignore[union-attr]
    assert handlers.resume(key)[0]["kind"] == "busy"
    follow(handlers, key, "finished")


def test_a_second_training_is_refused_with_a_sentence(handlers: TrainHandlers) -> None:
    start(handlers)
    assert "Another training runs" in start(handlers)[2]["text"]


def test_a_reopened_page_finds_its_training(handlers: TrainHandlers) -> None:
    key, *_ = start(handlers)
    assert handlers.attach(key)[0] == key
    assert handlers.attach(key)[2].active
    assert handlers.attach("gone")[0] == ""
    assert handlers.attach("") == (gr.skip(),) * 3
    assert handlers.poll("gone", {})[2]["kind"] == "error"


def test_the_trained_router_goes_to_explore(handlers: TrainHandlers) -> None:
    key, *_ = start(handlers)
    assert "no router yet" in handlers.open_in_explore(key)[2]["text"]
    follow(handlers, key, "finished")
    tabs, wanted, _ = handlers.open_in_explore(key)
    assert tabs.selected == "explore"
    assert handlers.source.find(wanted["mixer"]).title == "RSL (this paper), trained here"
    assert handlers.pin_in_compare(key)[1]["mixer"] == wanted["mixer"]
    assert wanted["mixer"] not in [mixer.name for mixer in handlers.source.mixers()]


def test_a_job_is_what_the_controls_say(handlers: TrainHandlers) -> None:
    job = handlers.job({**SETTINGS, "domains": ["medical", "math"], "top_k": 5}, "one")
    assert job.experts == {"math": "somewhere/math", "medical": "somewhere/medical"}
    assert job.domains == ("math", "medical")
    assert (job.entropy, job.entropy_weight, job.seed, job.top_k) == ("flatten", 0.3, 7, 2)
    # A loss without a balance term has no form of it.
    assert handlers.job({**SETTINGS, "loss": "ds_moe", "scale": "paper"}, "one").scale == "unit"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts": ["math"]}, "at least 2 experts"),
        ({"experts": ["math", "poetry"]}, "no expert 'poetry' among math, medical, code"),
        ({"domains": []}, "at least one domain"),
        ({"examples": 1}, "1 examples were asked for"),
        ({"examples": 10**9}, "one for each domain"),
        ({"probe": " "}, "prompt is empty"),
        ({"loss": "magic"}, "no loss 'magic'"),
        ({"loss": "supervised", "domains": ["science"]}, "tick its domain"),
        ({"balance_weight": -1}, "α is -1"),
        ({"seed": 20_250_101_123}, "The seed is 20250101123; give a whole number from 0 to 2,147,483,647"),
        ({"entropy_weight": float("nan")}, "λ is nan"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(handlers: TrainHandlers, changes: Any, words: str) -> None:
    line = start(handlers, **changes)[2]
    assert line["kind"] == "error"
    assert words in line["text"]
    assert not handlers.trainings.is_busy()


def test_strangers_may_train_a_little(handlers: TrainHandlers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAMIXER_PUBLIC", "1")
    assert "to 200." in start(handlers, examples=500)[2]["text"]
    assert handlers.job(SETTINGS, "one").max_minutes == 5
    assert "ends after 5 minutes" in handlers.estimate_line(["math", "medical"], 32, SHIPPED, session())["text"]


def test_experts_of_ones_own_can_be_trained_over(handlers: TrainHandlers) -> None:
    handlers.services = {"own_experts": lambda who: ("mine", {"law": "a", "math": "b"} if who == "one" else {})}
    experts, domains, pool, _ = handlers.take_own("default", None, [], session())
    assert (experts.value, domains.value, pool) == (["law", "math"], ["math"], OWN)
    job = handlers.job({**SETTINGS, "experts": ["law", "math"], "domains": ["math"], "pool": pool}, "one")
    assert (job.backbone, job.experts) == ("mine", {"law": "a", "math": "b"})
    assert "handed over 0 experts" in handlers.take_own("default", None, [], session("other"))[-1]["text"]
    with pytest.raises(LoraMixerError, match="no longer here"):
        handlers.job({**SETTINGS, "experts": ["law", "math"], "pool": OWN}, "other")
    assert "no longer here" in handlers.estimate_line(["law", "math"], 32, OWN, session("other"))["text"]


def test_experts_of_ones_own_may_be_called_as_shipped_ones(handlers: TrainHandlers) -> None:
    mine = {"math": "mine/math", "medical": "mine/medical"}
    handlers.services = {"own_experts": lambda who: ("smollm2-135m", mine)}
    values = {**SETTINGS, "pool": handlers.take_own("default", None, [], session())[2]}
    assert handlers.job(values, "one").experts == mine
    experts, domains, pool, _ = handlers.take_shipped("default", None, [])
    assert (experts.value, domains.value) == (list(EXPERTS), list(EXPERTS))
    shipped = handlers.job({**values, "pool": pool}, "one").experts
    assert shipped == {name: EXPERTS[name] for name in mine}


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    """Five rows of two domains, one of which has an expert."""
    row = {"task": "mine", "prompt": "How many?", "target": "ten"}
    domains = ["math", "law", "math", "law", "math"]
    path = tmp_path / "secret-folder/rows.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(json.dumps({**row, "id": str(n), "domain": name}) for n, name in enumerate(domains)))
    return str(path)


def test_rows_may_come_from_a_file_of_ones_own(handlers: TrainHandlers, rows_file: str) -> None:
    radio, upload = handlers.choose_data("file")
    assert "one JSON object per line" in radio.info
    assert upload.visible
    assert not handlers.choose_data("hub")[1].visible
    domains, examples, line = handlers.take_file("file", rows_file, ["code"], ["math", "medical"], 200)
    assert examples == 8  # the least of the control; the job takes the five that there are
    assert ([name for name, _ in domains.choices], domains.value) == (["math", "law"], ["math"])
    assert line["text"] == "5 rows: 3 of math, 2 of law."
    assert handlers.usual_domains("file", rows_file, [], ["medical"]).value == ["math", "law"]
    assert handlers.usual_domains("file", None, ["math"], ["math"]).value == []

    settings = {**SETTINGS, "data": "file", "file": rows_file, "domains": ["law", "math"]}
    job = handlers.job(settings, "one")
    assert (job.domains, job.examples) == (("math", "law"), 5)
    key = handlers.trainings.start(job)
    Path(rows_file).unlink()  # as Gradio does after an hour
    kept = TrainingJob.load(handlers.trainings.folder(key))
    assert kept.environment == {"LORAMIXER_DATA": str(handlers.trainings.folder(key) / "rows.jsonl")}
    assert len(Path(kept.file).read_text().splitlines()) == 5
    code = python_of(kept)
    compile(code, "training.py", "exec")
    assert 'os.environ["LORAMIXER_DATA"] = "path/to/rows.jsonl"' in code
    assert "find_source(None, ['math', 'medical'])" in code
    with pytest.raises(LoraMixerError, match="no longer here"):
        handlers.job(settings, "one")


def test_a_file_of_another_form_is_one_sentence_without_its_folder(
    handlers: TrainHandlers, rows_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = Path(rows_file).read_text()
    Path(rows_file).write_text(text.replace('"mine"', "7", 1))
    domains, _, line = handlers.take_file("file", rows_file, ["code"], ["math"], 200)
    assert (domains.value, line["kind"]) == ([], "error")
    assert line["text"] == "rows.jsonl, line 1: field 'task' is 7; a text is needed."
    Path(rows_file).write_text(text)
    monkeypatch.setattr("explorer.rooms.train.choices.MOST_ROWS_BYTES", 10)
    assert "at most 0 MB of rows" in handlers.take_file("file", rows_file, [], ["math"], 8)[2]["text"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("domain", "law {}", "name 65 domains, and at most 64 are allowed here; give related rows the same name."),
        ("task", "cases {}", "name 1,001 tasks, and at most 1,000 are allowed here; give related rows the same name."),
    ],
)
def test_a_file_with_too_many_names_is_one_sentence(
    handlers: TrainHandlers, rows_file: str, name: str, value: str, words: str
) -> None:
    row = {"task": "mine", "domain": "math", "prompt": "How many?", "target": "ten"}
    for count, fits in ((64 if name == "domain" else 1000, True), (65 if name == "domain" else 1001, False)):
        rows = [{**row, "id": str(number), name: value.format(number)} for number in range(count)]
        Path(rows_file).write_text("\n".join(json.dumps(line) for line in rows))
        domains, _, line = handlers.take_file("file", rows_file, [], ["math"], 8)
        assert line["kind"] == ("quiet" if fits else "error")
    assert line["text"] == f"The rows of rows.jsonl {words}"
    assert domains.choices == []


def test_time_is_estimated_for_the_backbone_of_the_pool(
    handlers: TrainHandlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers.services = {"own_experts": lambda who: ("mine", dict(EXPERTS))}
    asked: list[str] = []
    monkeypatch.setattr(handlers, "_speed_here", asked.append)
    for pool in (SHIPPED, OWN):
        handlers.estimate_line(["math", "medical"], 32, pool, session())
    assert asked == ["smollm2-135m", "mine"]


def test_controls_follow_the_loss(handlers: TrainHandlers) -> None:
    info, balance, entropy, sign, scale = handlers.show_loss("supervised")
    assert "upper bound" in info.info
    assert (balance.visible, entropy.visible, sign.visible, scale.visible) == (True, False, False, False)
    # An address has its own α, and Gradio tells of a change that came from there too.
    assert "value" not in balance.constructor_args
    assert handlers.usual_weight("supervised", "rsl") == LOSSES["supervised"].balance_weight
    assert handlers.usual_weight("supervised", "supervised") == gr.skip()
    _, balance, entropy, sign, scale = handlers.show_loss("rsl")
    assert (balance.visible, entropy.visible, sign.visible, scale.visible) == (True, True, True, True)
    assert handlers.usual_domains("default", None, ["code"], ["math", "medical"]).value == ["math", "medical"]
    assert handlers.usual_domains("default", None, ["code"], ["law"]).value == ["code"]
    assert handlers.usual_domains("default", None, ["of a file"], ["law"]).value == list(EXPERTS)


def test_settings_come_back_from_their_address(handlers: TrainHandlers) -> None:
    query = dict(parse_qsl(handlers.query(*(SETTINGS[name] for name in NAMES))))
    assert query["room"] == "train"
    *controls, line = handlers.open_link(session(**query))
    found = dict(zip(NAMES, controls, strict=True))
    assert found == {name: SETTINGS[name] for name in NAMES}
    assert line == gr.skip()
    assert handlers.open_link(session(room="explore")) == (gr.skip(),) * (len(LINK_FIELDS) + 1)
    assert "'poetry'" in handlers.open_link(session(room="train", e="poetry"))[-1]["text"]


@pytest.mark.parametrize(
    ("public", "asked", "taken"), [("0", "8", 8), ("0", "2000", 2000), ("0", "2001", 200), ("0", "7", 200),
                                   ("1", "200", 200), ("1", "208", 200)],
)  # fmt: skip
def test_a_link_asks_for_as_many_examples_as_the_control_can_show(
    handlers: TrainHandlers, monkeypatch: pytest.MonkeyPatch, public: str, asked: str, taken: int
) -> None:
    monkeypatch.setenv("LORAMIXER_PUBLIC", public)
    *controls, line = handlers.open_link(session(room="train", n=asked))
    assert controls[NAMES.index("examples")] == taken
    assert (line == gr.skip()) is (asked == str(taken))


def test_time_is_scaled_by_tokens() -> None:
    found = estimate("smollm2-135m", 4, 100, Speed(tokens_per_second=200, tokens_per_row=190, here=False))
    assert found.seconds == pytest.approx(95)
    assert "19,000 tokens" in found.text
    assert "square of a row" in found.text
    unknown = estimate("smollm2-135m", 4, 100, None)
    assert unknown.seconds is None
    assert "after the first steps" in unknown.text


def test_speed_is_that_of_the_fastest_shipped_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others were trained beside something else."""
    two = MIXERS[:2]
    for seconds, mixer in zip((30, 10), two, strict=True):
        summary = {"seconds": seconds, "tokens": 3000}
        RunLog({"rows": {"math": 20}}, summary=summary).save(tmp_path / mixer.name)
    monkeypatch.setattr("explorer.rooms.train.estimate.mixer_folder", lambda name: tmp_path / name)
    assert logged_speed(two, "smollm2-135m") == Speed(300, 150, here=False)
    assert logged_speed(MIXERS, "another") is None
    assert speed_of({"summary": {}, "settings": {}}, here=True) is None


def test_memory_grows_with_experts() -> None:
    two, six = memory_bytes("smollm2-135m", 2), memory_bytes("smollm2-135m", 6)
    assert 1e9 < two < six < 20e9
    # The part of attention grows with the square of a row, so that half the length takes less than half of the rest.
    half, quarter = memory_bytes("smollm2-135m", 2, 256), memory_bytes("smollm2-135m", 2, 128)
    assert two - half > 2 * (half - quarter)


def test_durations_are_for_people() -> None:
    assert [duration(seconds) for seconds in (0.2, 40, 720, 12_600)] == ["1 s", "40 s", "12 min", "3.5 h"]


def test_rows_are_named_without_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path))
    assert describe_data("default") == "Rows from the folder that LORAMIXER_DATA names."
    monkeypatch.setenv("LORAMIXER_DATA", str(tmp_path / "gone"))
    assert "not there" in describe_data("default")
    monkeypatch.setenv("LORAMIXER_DATA", "generated")
    assert describe_data("default").startswith("Generated rows")


def test_experts_of_the_zoo_are_in_the_order_of_their_domains() -> None:
    found = zoo_experts("smollm2-135m")
    assert len(found) >= 2
    assert all((Path(folder) / "adapter_config.json").is_file() for folder in found.values())
    assert domains_of(found) == [name for name in found if name in domains_of(found)]
    assert zoo_experts("nothing") == {}
