"""Carries out a plan: trains what is missing, measures what is missing, writes the files after every run.

A kill at any time costs at most what was done since the last checkpoint or the last measured gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields
from functools import cache, partial
from pathlib import Path

from filelock import FileLock

from loramixer.data import Example
from loramixer.errors import DataError
from loramixer.evaluation.csv_files import read_csv
from loramixer.evaluation.experiments.losses import replayed
from loramixer.evaluation.experiments.measure import Measurement, measure
from loramixer.evaluation.experiments.plan import BASE_GATES, Experiment, Options, Plan, Run
from loramixer.evaluation.experiments.results import Results
from loramixer.evaluation.experiments.workshop import Workshop, key_rows
from loramixer.mixers import load_mixer
from loramixer.training.presets import find_preset
from loramixer.training.routers import train_router
from loramixer.viz.svg import to_svg
from loramixer.whole_files import write_whole

Say = Callable[[str], None]

KEPT_SHARES = (0, 0.05, 0.15, 0.3, 0.5, 0.75)
"""Parts of a training after which the routers are kept for replay; the end is the router itself."""


def perform(
    experiment: Experiment,
    options: Options,
    workshop: Workshop,
    output: Path,
    *,
    stored_only: bool = False,
    say: Say = print,
) -> list[Path]:
    """Carry out an experiment, and write its CSV files and figures into ``output``; resumes after a kill.

    Args:
        experiment: one of :data:`loramixer.evaluation.experiments.EXPERIMENTS`.
        options: seeds, sizes and coefficients.
        workshop: where runs are kept.
        output: receives ``NAME.csv``, ``NAME-summary.csv`` and ``figures/*.svg``.
        stored_only: write from what has finished, and train and measure nothing; test rows are not asked for where the
            archive holds numbers of one set of them.
        say: receives one line of text for every step.

    Returns:
        The figures that were drawn.

    Raises:
        DataError: the work folder belongs to other experts or data, or ``output`` holds numbers of other test rows or
            of runs that the work folder has not got.
    """
    rows: list[Example] = []
    key = None
    if experiment.needs_rows:
        workshop.check_origin(stored_only=stored_only)
        key = workshop.stored_key() if stored_only else None
        rows = workshop.test_rows() if key is None else []
    key = key or workshop.key(rows)
    results = Results(options, workshop, key_rows(key), key, stored_only=stored_only)
    if stored_only:
        results.data = workshop.stored_data() or results.data
    plan = experiment.plan(options) if experiment.plan is not None else None
    former = _runs_there(experiment, plan, output, workshop, key) if plan is not None else []
    if rows:
        workshop.check_test_rows(key, rows)  # when nothing is refused any more, since it begins a folder
    if plan is None:
        experiment.write(results, output)
        return draw(experiment, output, say)
    # By name, since a file rounds the numbers of a run that is planned exactly.
    runs = list({run.name: run for run in [*former, *plan.runs]}.values())
    if stored_only:
        runs = [run for run in runs if workshop.log(run) is not None]
    for number, run in enumerate(runs, start=1):
        say(f"run {number} of {len(runs)}: {run.name}")
        _finish(run, plan, rows, results, stored_only, say)
        if number < len(former):
            continue  # a file that is there already never becomes shorter
        if stored_only:
            experiment.write(results, output)
            continue
        with _alone(workshop, f"{experiment.name}.csv"):
            for other in _runs_there(experiment, plan, output, workshop, key):
                if other.name not in {run.name for run in runs}:  # of a process that was started with other seeds
                    _finish(other, plan, rows, results, True, say)
            experiment.write(results, output)
    return draw(experiment, output, say)


def _runs_there(experiment: Experiment, plan: Plan, output: Path, workshop: Workshop, key: str) -> list[Run]:
    """What the files hold already: of an experiment that draws another one's runs, those of its size."""
    runs = stored_runs(output / experiment.runs_file, workshop, key)
    if experiment.file is None:
        return runs
    return [run for run in runs if run.examples in {planned.examples for planned in plan.runs}]


def measure_finished(
    options: Options,
    workshop: Workshop,
    names: Sequence[str] = (),
    only_gates: Sequence[str] = (),
    *,
    say: Say = print,
) -> None:
    """Measure trained runs under the gates that experiments want of them; trains nothing and writes no table.

    Args:
        options: seeds, sizes and coefficients.
        workshop: where runs are kept.
        names: of the runs; all of every experiment that are trained by default.
        only_gates: of all gates that any experiment wants, these; all by default.
        say: receives one line of text for every step.

    Raises:
        DataError: a name that no experiment with these options has.
    """
    from loramixer.evaluation.experiments import EXPERIMENTS

    workshop.check_origin()
    rows = workshop.test_rows()
    key = workshop.key(rows)
    workshop.check_test_rows(key, rows)
    results = Results(options, workshop, len(rows), key)
    plans = [experiment.plan(options) for experiment in EXPERIMENTS.values() if experiment.plan is not None]
    gates: dict[Run, dict[str, None]] = {}
    for plan in plans:
        for run in plan.runs:
            gates.setdefault(run, {}).update(dict.fromkeys(plan.gates))
    known = {run.name: run for run in gates}
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"No experiment has a run {unknown[0]} with these options; it has {', '.join(known)}.")
    for run in [known[name] for name in names] or gates:
        if workshop.is_trained(run):
            say(run.name)
            wanted = tuple(gate for gate in gates[run] if not only_gates or gate in only_gates)
            _finish(run, Plan([run], wanted), rows, results, False, say)
        elif names:
            say(f"{run.name}: not trained yet")


def kept_steps(run: Run) -> list[int]:
    """The steps of :data:`KEPT_SHARES`, by the rows that were asked for; a few too long ones may be left out."""
    steps = run.examples / find_preset("cpu-small").routers.batch_size
    return sorted({int(share * steps) for share in KEPT_SHARES})


def draw(experiment: Experiment, output: Path, say: Say = print) -> list[Path]:
    """Draw the figures of an experiment from the CSV files in ``output``; those without a file yet are left out."""
    drawn = []
    for stem, figure in experiment.figures.items():
        try:
            made = figure(output)
        except FileNotFoundError:
            continue
        except ModuleNotFoundError as error:
            say(f"Figures are not drawn, since {error.name} is not installed; pip install 'loramixer[notebooks]'.")
            break
        path = output / "figures" / f"{stem}.svg"
        write_whole(path, to_svg(made))
        drawn.append(path)
    return drawn


def describe(experiment: Experiment, options: Options, workshop: Workshop) -> list[str]:
    """What an experiment would do: one line per run, and the time it takes by the runs that have been timed so far."""
    if experiment.plan is None:
        return [f"{experiment.name}: trains no router."]
    plan = experiment.plan(options)
    workshop.check_origin(begin=False)
    key = workshop.key(workshop.test_rows())
    per_example, per_gate = workshop.timings()
    lines, examples, gates_left = [], 0, set()
    for run in plan.runs:
        gates = [
            gate
            for gate in workshop.missing(key, run, plan.gates)
            # A gate that asks no router is measured once for all runs: its file is the same for all.
            if workshop.measurement_file(key, run, gate) not in gates_left
        ]
        training = workshop.needs_training(run)
        if gates and not training and not workshop.is_trained(run):
            lines.append(f"{run.name}: finished{without_routers(workshop, run, gates)}")
            continue
        gates_left |= {workshop.measurement_file(key, run, gate) for gate in gates}
        examples += run.examples if training else 0
        lines.append(f"{run.name}: {', '.join([*(['train'] if training else []), *gates]) or 'finished'}")
    if (examples and per_example is None) or (gates_left and per_gate is None):
        lines.append("Time: not known, since the work folder holds no timed run of this kind yet.")
    else:
        seconds = examples * (per_example or 0) + len(gates_left) * (per_gate or 0)
        lines.append(f"Time: about {seconds / 60:.1f} minutes, from the runs that were timed in {workshop.records}.")
    return lines


def stored_runs(path: Path, workshop: Workshop, key: str) -> list[Run]:
    """The runs of a CSV file that is there already, so that another choice of seeds adds to it and drops nothing.

    Raises:
        DataError: the file holds other test rows, or runs that neither archive nor work folder has.
    """
    rows = read_csv(path) if path.is_file() else []
    if not rows or "measurement" not in rows[0]:
        return []  # no file, or one that is made from the logs alone
    if other := next((row["measurement"] for row in rows if row["measurement"] != key), None):
        raise DataError(
            f"{path} holds numbers of other test rows ({other}, now {key}); give the former --limit and data, or "
            "another --output."
        )
    kinds = {"examples": int, "seed": int, "balance_weight": float, "entropy_weight": float, "learning_rate": float}
    runs = [Run(**{field.name: kinds.get(field.name, str)(row[field.name]) for field in fields(Run)}) for row in rows]
    if lost := [run.name for run in runs if workshop.log(run) is None]:
        raise DataError(
            f"{path} holds runs that {workshop.records} has not got (the first is {lost[0]}); give the --work folder "
            "that it was made in, or another --output."
        )
    return runs


def _finish(run: Run, plan: Plan, rows: Sequence[Example], results: Results, stored_only: bool, say: Say) -> None:
    """Train and measure a run as far as that has not been done, and put it into the results."""
    workshop = results.workshop
    with nullcontext() if stored_only else _alone(workshop, run.name):
        if not stored_only and workshop.needs_training(run):
            train_router(
                workshop.router_folder(run),
                workshop.sources,
                loss=run.loss,  # type: ignore[arg-type]
                balance_weight=run.balance_weight,
                entropy_weight=run.entropy_weight,
                entropy=run.entropy,
                examples=run.examples,
                backbone=workshop.backbone,
                seed=run.seed,
                learning_rate=run.learning_rate,
                top_k=results.options.top_k,
                dtype=workshop.training_dtype,
                routers_only=True,
                title=run.setting,
                keep_routers_at=kept_steps(run) if run in replayed(results.options) else (),
            )
        log = workshop.log(run)
        assert log is not None  # it was trained above, or perform asks for finished runs only
        if not workshop.log_file(run).is_file():
            log.save_small(workshop.log_file(run))
        found = _measured(run, plan, rows, results, stored_only, say)
    if found or not plan.gates:
        results.logs[run] = log
        results.measured[run] = found


def _measured(
    run: Run, plan: Plan, rows: Sequence[Example], results: Results, stored_only: bool, say: Say
) -> dict[str, Measurement]:
    workshop = results.workshop
    found: dict[str, Measurement] = {}
    missing = [] if stored_only else workshop.missing(results.key, run, plan.gates)
    if missing and not workshop.is_trained(run):
        say(f"  {run.name}{without_routers(workshop, run, missing)}")
        missing = []
    if missing:
        workshop.check_same_rows(run)
        mixer = cache(partial(load_mixer, workshop.router_folder(run), backbone=workshop.backbone,
                              dtype=workshop.dtype, device=workshop.device))  # fmt: skip
    for gate in plan.gates:
        path = workshop.measurement_file(results.key, run, gate)
        if gate in missing:
            # Gates that ask no router have one file for all runs, which another process may be at.
            with _alone(workshop, gate) if gate in BASE_GATES else nullcontext():
                if not path.is_file():
                    say(f"  measuring {gate} on {len(rows)} rows")
                    measured = measure(*mixer(), rows, gate)
                    measured.save(path)
                    say(f"  {gate}: loss {measured.values['loss']:.4f}, {measured.facts['seconds']:.0f} s")
        if path.is_file():
            (results.base if gate in BASE_GATES else found)[gate] = Measurement.load(path)
    return found


def without_routers(workshop: Workshop, run: Run, gates: Sequence[str]) -> str:
    """What is said of a run of the archive that lacks gates, and whose routers are not here."""
    return (
        f": {', '.join(gates)} not measured, since its routers are not in {workshop.work}; to train them again, "
        f"delete {workshop.log_file(run)} and what was measured of it"
    )


def _alone(workshop: Workshop, name: str) -> FileLock:
    """Held while one of several processes with the same work folder does something that is done once."""
    folder = workshop.work / "routers"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{name}.lock")
