"""Two real processes on the stock Trainer: the loss and its gradient do not depend on how a batch is spread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from loramixer.errors import MixerError
from tests import tiny
from tests.scripts.data_parallel import ALONE, RUNS, loss_alone, train

PROCESSES = 2


@pytest.fixture(scope="module")
def parallel(experts, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    root, output = Path(__file__).parents[2], tmp_path_factory.mktemp("parallel")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(PROCESSES)]
    done = subprocess.run(
        [sys.executable, *command, "-m", "tests.scripts.data_parallel", str(Path(experts["a"]).parent), str(output)],
        env={**os.environ, "PYTHONPATH": f"{root}/lib:{root}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(output / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_of_four_rows_are_one_process_of_eight(parallel, experts, tmp_path, name):
    whole = train(Path(experts["a"]).parent, tmp_path, 1, **RUNS[name])
    for process in parallel:
        found = process[name]
        assert found["losses"] == pytest.approx(whole["losses"], rel=1e-3)
        torch.testing.assert_close(found["routing_loss"], whole["routing_loss"], atol=1e-5, rtol=1e-5)
        assert found["gradients"].keys() == whole["gradients"].keys()
        for router, gradient in whole["gradients"].items():
            torch.testing.assert_close(found["gradients"][router], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", RUNS)
def test_routers_stay_equal_on_both_processes(parallel, name):
    first, second = (process[name]["routers"] for process in parallel)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[router], second[router]) for router in first)


@pytest.mark.parametrize("name", ALONE)
def test_every_routing_loss_alone_with_uneven_tokens(parallel, name):
    value, gradient = loss_alone(1, 0, name)
    for process in parallel:
        torch.testing.assert_close(process["alone"][name][0], value)
        torch.testing.assert_close(process["alone"][name][1], gradient)


@pytest.mark.parametrize("training", [True, False])
def test_copies_of_a_model_in_one_process_are_refused(experts, training):
    """The stock Trainer makes them where one process sees several GPUs."""
    copy = tiny.mixture(experts).get_base_model().train(training)._replicate_for_data_parallel()
    with pytest.raises(MixerError, match=r"nn\.DataParallel copies the model.*start one process for each GPU"):
        copy(tiny.token_ids())


def test_evaluation_on_one_process_alone_waits_for_nobody(parallel, experts):
    ids = tiny.token_ids()
    torch.testing.assert_close(
        parallel[0]["evaluated"], tiny.mixture(experts)(input_ids=ids, labels=ids).loss.detach()
    )
