"""What happens in the room Train: each method is one event, and takes and returns values of components."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import gradio as gr

from explorer.components.status_line import Status, status
from explorer.link import LinkField, parse, to_query
from explorer.page import want
from explorer.registry import ModelSource
from explorer.rooms.train.choices import (
    DATA_CHOICES,
    DEFAULT_EXAMPLES,
    LEAST_EXAMPLES,
    LEAST_EXPERTS,
    LOSSES,
    describe_data,
    domains_of,
    most_examples,
    own_rows,
    zoo_experts,
)
from explorer.rooms.train.estimate import estimate, logged_speed, speed_of
from explorer.rooms.train.payload import probe_payload, progress_text, training_payload
from explorer.sessions import session_of
from explorer.settings import DEFAULT_K, check_prompt, limits
from explorer.training_job import RUNNING, JobStatus, Probe, TrainingJob, logged_steps, trained_folder
from explorer.trainings import STOPPING, Trainings
from loramixer.data import RECIPES
from loramixer.errors import DataError, ExpertError, LoraMixerError, MixerError
from loramixer.training.run_log import RunLog

ROOM = "train"
LINK_FIELDS = (
    LinkField("e", "experts", ""),
    LinkField("d", "domains", ""),
    LinkField("data", "data", "default", choices=tuple(key for _, key in DATA_CHOICES)),
    LinkField("loss", "loss", "rsl", choices=tuple(LOSSES)),
    LinkField("a", "balance_weight", 1.0, "float", low=0, high=1000),
    LinkField("l", "entropy_weight", 0.3, "float", low=0, high=1000),
    LinkField("sign", "entropy", "sharpen", choices=("sharpen", "flatten")),
    LinkField("scale", "scale", "unit", choices=("unit", "paper")),
    LinkField("n", "examples", DEFAULT_EXAMPLES, "int", low=LEAST_EXAMPLES),
    LinkField("seed", "seed", 0, "int", low=0, high=2**31 - 1),
    LinkField("k", "top_k", DEFAULT_K, "int", low=1, high=64),
)
"""In the order of the controls."""

NAMES = tuple(field.name for field in LINK_FIELDS)

CONTROLS = (*NAMES, "probe", "pool", "file")
"""All controls, by the names of the values of :meth:`TrainHandlers.job`."""

SHIPPED, OWN = "shipped", "own"
"""Values of ``pool``: whose experts the names are. A visitor's may have the same names as those of the zoo."""

logger = logging.getLogger(__name__)

OwnExperts = Callable[[str], tuple[str, Mapping[str, str]]]


class TrainHandlers:
    """All events of the room.

    Args:
        source: knows the backbone, and takes the trained router.
        services: of the page; ``own_experts`` gives the experts of a visitor.
        trainings: the processes.
        experts: of the default backbone; those of the zoo by default.
    """

    def __init__(
        self,
        source: ModelSource,
        services: Mapping[str, Any],
        trainings: Trainings | None = None,
        experts: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self.services = services
        self.trainings = trainings or Trainings(forget_mixer=source.remove)
        self._experts = experts

    # ------------------------------------------------------------------ what can be chosen

    def backbone(self) -> str:
        """The one whose experts the zoo has."""
        return next(iter(self.source.backbones()), "")

    def experts(self) -> dict[str, str]:
        """Experts that everybody can choose: name → folder."""
        return dict(zoo_experts(self.backbone()) if self._experts is None else self._experts)

    def own_experts(self, session: str) -> tuple[str, dict[str, str]]:
        """Backbone and experts of the visitor; none where the room Your own is not there or empty."""
        service: OwnExperts | None = self.services.get("own_experts")
        if service is None:
            return "", {}
        backbone, experts = service(session)
        return backbone, dict(experts)

    def take_own(self, data: str, file: str | None, domains: list[str], request: gr.Request) -> tuple[Any, ...]:
        """Experts and domains of what the visitor brought, the pool, and the line."""
        _, found = self.own_experts(session_of(request))
        if len(found) < LEAST_EXPERTS:
            text = (
                f"Your own has handed over {len(found)} experts; tick at least {LEAST_EXPERTS} that fit there, and "
                "press “Train a router”."
            )
            return *(gr.skip(),) * 3, status("note", text)
        text = (
            f"{len(found)} experts of your own are chosen; their rows come from the domains below, or from a file of "
            "your own."
        )
        return *self._all_of(list(found), data, file, domains), OWN, status("quiet", text)

    def take_shipped(self, data: str, file: str | None, domains: list[str]) -> tuple[Any, ...]:
        """Back to the experts that everybody can choose: experts, domains, the pool, and the line."""
        line = status("quiet", "The shipped experts are chosen.")
        return *self._all_of(list(self.experts()), data, file, domains), SHIPPED, line

    def _all_of(self, experts: list[str], data: str, file: str | None, domains: list[str]) -> tuple[Any, Any]:
        """The control of these experts, all of them chosen, and their domains."""
        chosen = gr.CheckboxGroup(choices=experts, value=experts)
        return chosen, self.usual_domains(data, file, domains, experts)

    def take_wanted(
        self, wanted: dict[str, Any], data: str, file: str | None, domains: list[str], request: gr.Request
    ) -> tuple[Any, ...]:
        """The room Your own has sent its visitor here."""
        if wanted.get("room") != "train":
            return (gr.skip(),) * 4
        return self.take_own(data, file, domains, request)

    def usual_domains(self, data: str, file: str | None, domains: list[str], experts: list[str]) -> Any:
        """The domains that there are rows of, ticked where an expert has the name; as they were where none has."""
        try:
            there = list(RECIPES) if data != "file" else list(own_rows(file, experts).domains()) if file else []
        except DataError:
            there = []
        ticked = [name for name in experts if name in there] or [name for name in domains if name in there]
        usual = there if data == "file" else domains_of(self.experts())
        return gr.CheckboxGroup(choices=there, value=ticked or usual)

    def take_file(
        self, data: str, file: str | None, domains: list[str], experts: list[str], examples: float
    ) -> tuple[Any, Any, Status]:
        """The domains of a file that was brought or taken away, how many of its rows to take, and what it holds."""
        found = self.usual_domains(data, file, domains, experts)
        if not file:
            return found, gr.skip(), status("quiet", "")
        try:
            rows = Counter(row.domain for row in own_rows(file, experts).examples)
        except DataError as error:
            return found, gr.skip(), status("error", str(error))
        counts = ", ".join(f"{count} of {domain}" for domain, count in rows.items())
        fewer = max(LEAST_EXAMPLES, rows.total()) if rows.total() < examples else gr.skip()
        return found, fewer, status("quiet", f"{rows.total()} rows: {counts}.")

    def usual_weight(self, loss: str, former: str) -> Any:
        """The α that a loss begins with; α stays where the control was left with the loss that it was entered with."""
        return gr.skip() if loss == former else LOSSES[loss].balance_weight

    def show_loss(self, loss: str) -> tuple[Any, ...]:
        """Hint of a loss, and which of α, λ, sign and scale it has; their values stay as they are."""
        found = LOSSES[loss]
        label = "α: weight of the balance term" if found.has_scale else "α: weight of the whole loss"
        return (
            gr.Dropdown(info=found.hint),
            gr.Number(visible=found.has_balance, label=label),
            gr.Number(visible=found.has_entropy),
            gr.Radio(visible=found.has_entropy),
            gr.Radio(visible=found.has_scale),
        )

    def choose_data(self, data: str) -> tuple[Any, Any]:
        """The sentence under the choice of rows, and whether there is a file to give."""
        return gr.Radio(info=describe_data(data)), gr.File(visible=data == "file")

    def estimate_line(self, experts: list[str], examples: float | None, pool: str, request: gr.Request) -> Status:
        """Time and memory before anything begins."""
        if len(experts) < LEAST_EXPERTS:
            return status("note", f"Choose at least {LEAST_EXPERTS} experts.")
        try:
            backbone, _ = self._pool(pool, session_of(request))
            speed = self._speed_here(backbone) or logged_speed(self.source.mixers(), backbone)
            text = estimate(backbone, len(experts), int(examples or 0), speed).text
        except LoraMixerError as error:
            return status("note", f"No estimate: {error}")
        most = limits().training_minutes
        if most < 60:
            text += f" On this public page it ends after {most:g} minutes and keeps what it has."
        return status("quiet", text)

    def _speed_here(self, backbone: str) -> Any:
        """Of the last training on this backbone that has ended here."""
        for folder in reversed(self.trainings.folders()):
            try:
                if TrainingJob.load(folder).backbone != backbone:
                    continue
                log = RunLog.load(folder / "mixture")
            except (OSError, ValueError, KeyError):
                continue
            if found := speed_of(asdict(log), here=True):
                return found
        return None

    # ------------------------------------------------------------------ training

    def start(self, request: gr.Request, *values: Any) -> tuple[Any, ...]:
        """Begin; values are those of the controls in the order of ``CONTROLS``.

        Returns:
            Key of the training, what the page has seen of it, status, and a timer.
        """
        try:
            controls = dict(zip(CONTROLS, values, strict=True))
            key = self.trainings.start(self.job(controls, session_of(request)))
        except LoraMixerError as error:
            return gr.skip(), gr.skip(), status("error", str(error)), gr.skip()
        return key, {}, status("busy", "The training process starts …"), gr.Timer(active=True)

    def job(self, values: dict[str, Any], session: str) -> TrainingJob:
        """What the controls ask for.

        Raises:
            LoraMixerError: something does not go together.
        """
        names, domains = list(values["experts"] or ()), tuple(values["domains"] or ())
        if len(names) < LEAST_EXPERTS:
            raise ExpertError(f"A router needs a choice: tick at least {LEAST_EXPERTS} experts.")
        backbone, pool = self._pool(values["pool"], session)
        if unknown := [name for name in names if name not in pool]:
            raise ExpertError(f"There is no expert '{unknown[0]}' among {', '.join(pool)}.")
        experts = {name: source for name, source in pool.items() if name in names}
        if not domains:
            raise DataError("Rows are needed: tick at least one domain.")
        rows = own_rows(values["file"], names) if values["data"] == "file" else None
        there = list(RECIPES) if rows is None else rows.domains()
        domains = tuple(dict.fromkeys(name for name in [*experts, *there] if name in domains and name in there))
        examples, most = int(values["examples"] or 0), limits().training_examples
        if rows is not None:  # none is repeated to make up the number
            examples = min(examples, sum(row.domain in domains for row in rows.examples))
        if not len(domains) <= examples <= most:
            raise DataError(
                f"{examples} examples were asked for; here it can be {len(domains)} (one for each domain) to {most:,}."
            )
        check_prompt(values["probe"])
        if not 0 <= int(values["seed"] or 0) < 2**31:
            raise DataError(f"The seed is {int(values['seed'])}; give a whole number from 0 to {2**31 - 1:,}.")
        loss = LOSSES.get(values["loss"])
        if loss is None:
            raise MixerError(f"There is no loss '{values['loss']}'; there are {', '.join(LOSSES)}.")
        if loss.key == "supervised" and not set(domains) & set(experts):
            raise MixerError("The supervised loss tells a row its own expert, but no domain has one; tick its domain.")
        for name, text in (("balance_weight", "α"), ("entropy_weight", "λ")):
            if not 0 <= float(values[name] or 0) <= 1000:
                raise MixerError(f"{text} is {values[name]}; it is a weight from 0 to 1,000.")
        return TrainingJob(
            backbone=backbone,
            experts=experts,
            domains=domains,
            data=values["data"],
            loss=loss.key,
            balance_weight=float(values["balance_weight"] or 0),
            entropy_weight=float(values["entropy_weight"] or 0),
            entropy=values["entropy"],
            scale=values["scale"] if loss.has_scale else "unit",
            examples=examples,
            seed=int(values["seed"] or 0),
            top_k=min(int(values["top_k"] or DEFAULT_K), len(experts)),
            probe=values["probe"],
            max_minutes=limits().training_minutes,
            title=f"{loss.label}, trained here",
            file=values["file"] if values["data"] == "file" else "",
        )

    def _pool(self, pool: str, session: str) -> tuple[str, dict[str, str]]:
        """Backbone and experts that the names are taken from.

        Raises:
            ExpertError: the visitor's own, which are no longer here.
        """
        if pool != OWN:
            return self.backbone(), self.experts()
        backbone, experts = self.own_experts(session)
        if not experts:
            raise ExpertError(
                "Your own experts are no longer here; bring them again in the room Your own, or press Shipped experts."
            )
        return backbone, experts

    def attach(self, key: str | None) -> tuple[Any, Any, Any]:
        """A page that is opened again finds its training: key, what it has seen, and a timer that looks at once."""
        if not key:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            self.trainings.status(key)
        except LoraMixerError:
            return "", {}, gr.skip()
        return key, {}, gr.Timer(active=True)

    def poll(self, key: str, seen: dict[str, Any]) -> tuple[Any, ...]:
        """One tick.

        Returns:
            Views of curves and of the probe, status, the buttons Train, Stop, Resume, Explore, Compare, Download and
            Save, the timer, and what the page has seen now. What has not changed is not sent again.
        """
        if not key:
            return (*(gr.skip(),) * 10, gr.Timer(active=False), gr.skip())
        try:
            now = self.trainings.status(key)
            folder = self.trainings.folder(key)
            job = TrainingJob.load(folder)
        except (LoraMixerError, OSError, ValueError) as error:
            text = str(error) if isinstance(error, LoraMixerError) else "This training can no longer be read."
            return (gr.skip(), gr.skip(), status("error", text), *self._buttons(None, False),
                    gr.Timer(active=False), {})  # fmt: skip
        steps, probe = logged_steps(folder), Probe.load(folder)
        found = {"state": now.state, "step": now.step, "rows": len(steps), "frames": len(probe.steps)}
        has_router = trained_folder(folder) is not None and now.state not in RUNNING
        is_running = now.state in RUNNING
        buttons = (gr.skip(),) * 7
        if seen.get("state") != now.state:
            buttons = self._buttons(now, has_router)
        view = training_payload(key, job, now, steps) if found != seen else gr.skip()
        frames = probe_payload(key, job, now, probe) if found["frames"] != seen.get("frames") else gr.skip()
        return view, frames, _line(now), *buttons, gr.Timer(active=is_running), found

    def download(self, key: str) -> tuple[Any, Any]:
        """Pack the trained router: the button that saves the file, and the status.

        At the moment of the press, since Gradio deletes what it hands out after an hour.
        """
        try:
            file = self.trainings.zip_mixture(key)
        except LoraMixerError as error:
            return gr.DownloadButton(visible=False), status("error", str(error))
        except OSError:
            logger.exception("The trained router could not be packed")
            text = "The router could not be packed; make room in the temporary folder of this machine."
            return gr.DownloadButton(visible=False), status("error", text)
        return gr.DownloadButton(f"Save {file.name}", value=file, visible=True), gr.skip()

    def _buttons(self, now: JobStatus | None, has_router: bool) -> tuple[Any, ...]:
        is_running = now is not None and now.state in RUNNING
        stops = now is not None and now.state == "stopping"
        can_resume = now is not None and now.state in ("stopped", "failed")
        return (
            gr.Button(interactive=not is_running),
            gr.Button("End at once" if stops else "Stop", interactive=is_running),
            gr.Button(interactive=can_resume),
            gr.Button(interactive=has_router),
            gr.Button(interactive=has_router),
            gr.Button(interactive=has_router),
            gr.DownloadButton(visible=False),  # what was packed before is an older router
        )

    def stop(self, key: str) -> tuple[Status, Any]:
        """Ask for a checkpoint and an end."""
        try:
            self.trainings.stop(key)
        except LoraMixerError as error:
            return status("error", str(error)), gr.skip()
        return status("busy", STOPPING), gr.Timer(active=True)

    def resume(self, key: str) -> tuple[Status, Any, Any]:
        """Go on from the last checkpoint: status, what the page has seen, and the timer."""
        try:
            self.trainings.resume(key)
        except LoraMixerError as error:
            return status("error", str(error)), gr.skip(), gr.skip()
        return status("busy", "The training process starts again …"), {}, gr.Timer(active=True)

    # ------------------------------------------------------------------ to other rooms

    def open_in_explore(self, key: str) -> tuple[Any, Any, Any]:
        """Choose the trained router in Explore, and go there: tabs, the wish, and the status line."""
        return self._send("explore", key)

    def pin_in_compare(self, key: str) -> tuple[Any, Any, Any]:
        """Choose the trained router in Compare, and go there."""
        return self._send("compare", key)

    def _send(self, room: str, key: str) -> tuple[Any, Any, Any]:
        try:
            name = self.trainings.mixer(key, self.source.add)
            title = self.source.find(name).title
        except LoraMixerError as error:
            return gr.skip(), gr.skip(), status("error", str(error))
        return gr.Tabs(selected=room), want(room, name, title), gr.skip()

    # ------------------------------------------------------------------ links

    def query(self, *values: Any) -> str:
        """The address of the settings; values in the order of ``LINK_FIELDS``."""
        found = dict(zip(NAMES, values, strict=True))
        found["experts"] = ",".join(found["experts"] or ())
        found["domains"] = ",".join(found["domains"] or ())
        for field in LINK_FIELDS:
            if field.kind == "int" and found[field.name] is not None:
                found[field.name] = int(found[field.name])
        return to_query(ROOM, found, LINK_FIELDS)

    def open_link(self, request: gr.Request) -> tuple[Any, ...]:
        """The controls in the order of ``LINK_FIELDS``, and the status, of the address of the page."""
        query = dict(request.query_params)
        if query.get("room") != ROOM:
            return (gr.skip(),) * (len(LINK_FIELDS) + 1)
        # How many examples are allowed is the server's affair, and settled when it runs.
        most = most_examples()
        fields = [replace(field, high=most) if field.name == "examples" else field for field in LINK_FIELDS]
        values, notes = parse(query, fields)
        known = self.experts()
        for name, allowed in (("experts", list(known)), ("domains", list(RECIPES))):
            asked = [part for part in values[name].split(",") if part]
            values[name] = [part for part in asked if part in allowed] or gr.skip()
            notes += [f"The link names '{part}', which is not here." for part in asked if part not in allowed]
        line = status("note", " ".join(notes)) if notes else gr.skip()
        return *(values[name] for name in NAMES), line


def _line(now: JobStatus) -> Status:
    kinds = {"finished": "ready", "stopped": "note", "failed": "error"}
    return status(kinds.get(now.state, "busy"), progress_text(now))
