"""What the explorer takes on this machine: first view, first column, streaming, switching views, many clients, memory.

``python benchmarks/explorer.py --output docs/results/explorer.json`` starts the real page in a process of its own and
drives it with Chromium and by plain HTTP; ``--help`` lists the options. The backbone must be on disk already.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table
from timing import show, write_result

ROOT = Path(__file__).resolve().parents[1]
PROMPT = (
    "A child weighs 20 kg and needs 12 mg of ibuprofen per kg of body weight, given three times a day. How many mg is "
    "one dose, how many mg are given in a day, and what are the side effects that parents should watch for at home?"
)
"""About 60 tokens, and 87 with the chat template."""

ROUTER = "smollm2-135m/rsl"
SITES, TOKENS = 120, 256
TIME_FIRST_COLUMN = """() => { window.firstColumn = new Promise(done => {
  let pressed;
  document.addEventListener('click', event => { pressed = event.timeStamp; }, { capture: true, once: true });
  const seen = new MutationObserver(() => {
    if (!document.querySelector('[data-state=generating] .token')) return;
    seen.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - pressed)));
  });
  seen.observe(document.body, { subtree: true, childList: true, attributes: true });
}); }"""
"""Milliseconds from the click to the second frame after the first column is there. In the page itself, since a driver
that asks again and again takes time from the model that it waits for."""

PATIENCE = 300_000
"""Milliseconds until a browser gives up."""


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and write the result file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=16, help="callers at once")
    parser.add_argument("--runs", type=int, default=200, help="runs over which memory is watched")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of what is timed")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that the streaming comparison writes")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="path of the browser")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args(words)
    # This file has the name of the package, and its folder comes first.
    sys.path.insert(0, str(ROOT))
    before = os.getloadavg()
    rows: list[dict[str, Any]] = []
    with running_app() as (url, process):
        with browser_page(options.chromium) as page:
            rows += view_rows(page, url, options.rounds)
        rows.append(clients_row(url, options.clients))
        rows.append(memory_row(url, process, options.runs))
        rows.append(session_row(url, process))
    rows.append(streaming_row(options.rounds, options.tokens))
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "chromium")}
    # Said with the result: times on a machine that does other work too are upper bounds.
    settings["load_before"], settings["load_after"] = list(before), list(os.getloadavg())
    table = Table("measure", "value", "unit", "goal", "met")
    for row in rows:
        table.add_row(row["measure"], f"{row['value']:.3g}", row["unit"], row["goal"], "yes" if row["met"] else "no")
    show(table)
    write_result(options.output, "explorer", "cpu", settings, rows)


def row(measure: str, value: float, unit: str, goal: float, note: str = "", values: Sequence[float] = ()) -> dict:
    """One result; goals are upper bounds."""
    return {
        "measure": measure,
        "value": value,
        "unit": unit,
        "goal": f"≤ {goal:g}",
        "met": value <= goal,
        "values": [round(float(found), 4) for found in values],
        "note": note,
    }


@contextmanager
def running_app() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The real page on a free port; its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen([sys.executable, "explorer/app.py"], cwd=ROOT, env=environment, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + 300
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("The page did not start.")
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                time.sleep(0.5)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def browser_page(chromium: str) -> Iterator[Any]:
    """A page of 1440 × 900."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def view_rows(page: Any, url: str, rounds: int) -> list[dict[str, Any]]:
    """First view, first column, remounts, and switching views."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        page.goto(url)
        page.wait_for_selector(".token")
        seconds.append(time.perf_counter() - started)
    rows = [row("first recorded view", median(seconds), "s", 2, values=seconds)]

    call(url, "route", [PROMPT, ROUTER, 0])  # the model is in memory from here on
    page.fill("#prompt textarea", PROMPT)
    page.fill("#new-tokens input[type=number]", "8")
    seconds, remounts = [], 0
    page.eval_on_selector(".routing-view", "view => { window.firstView = view; }")
    for _ in range(rounds):
        page.wait_for_function("!document.querySelector('#generate').disabled")
        page.evaluate(TIME_FIRST_COLUMN)
        page.click("#generate")
        seconds.append(page.evaluate("window.firstColumn") / 1000)
        page.wait_for_function("document.querySelector('#run-status .text').textContent.startsWith('Done')")
        remounts += not page.evaluate("window.firstView.isConnected")
    rows.append(row("first column after Generate", median(seconds), "s", 1, values=seconds))
    rows.append(row("remounts while generating", remounts, f"in {rounds} runs", 0))
    return [*rows, switch_row(page, rounds)]


def switch_row(page: Any, rounds: int) -> dict[str, Any]:
    """Milliseconds from a key that changes what the map shows to the second frame after it."""
    with tempfile.TemporaryDirectory() as folder:
        page.set_input_files("input[type=file][accept*='.npz']", str(random_trace().save(Path(folder) / "trace.npz")))
        page.wait_for_function("document.querySelector('.strip').textContent.includes('Opened')")
    script = """key => new Promise(done => {
      const frame = document.querySelector('.map-frame');
      frame.focus();
      const started = performance.now();
      frame.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
      requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - started)));
    })"""
    times = [page.evaluate(script, key) for _ in range(rounds) for key in ("e", "1", "2", "0")]
    return row(f"view switch, {SITES} sites × {TOKENS} tokens", median(times), "ms", 150, values=times)


def random_trace() -> Any:
    """A trace of random logits; time does not depend on them."""
    from loramixer.trace import RoutingTrace, Site, TraceTokens
    from loramixer.whatif import soft_gates

    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    words = [f"w{number} " for number in range(TOKENS)]
    ends = np.cumsum([len(word) for word in words])
    logits = np.random.default_rng(0).normal(size=(SITES, TOKENS, 6)).astype(np.float32)
    return RoutingTrace(
        tokens=TraceTokens(
            text="".join(words),
            ids=np.arange(TOKENS),
            spans=np.stack([ends - [len(word) for word in words], ends], axis=1).astype(np.int64),
            roles=("prompt",) * TOKENS,
            special=np.zeros(TOKENS, dtype=bool),
        ),
        sites=tuple(Site(n // 4, projections[n % 4], f"layers.{n // 4}.{projections[n % 4]}") for n in range(SITES)),
        experts=("math", "medical", "code", "science", "acceptability", "sentiment"),
        logits=logits,
        gates=soft_gates(logits),
        provenance={"mixer": "random numbers", "gate": "soft", "renormalize": True},
    )


def call(url: str, endpoint: str, values: list[Any], session: str | None = None) -> str:
    """One call of a public endpoint by plain HTTP; returns how it ended: ``complete`` or ``error``.

    Without ``session`` the server begins a new session for the call.
    """
    data = json.dumps({"data": values, "session_hash": session}).encode()
    address = f"{url}/gradio_api/call/{endpoint}"
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{address}/{event}", timeout=600) as response:
        ends = [line for line in response.read().decode().splitlines() if line.startswith("event:")]
    return ends[-1].partition(": ")[2] if ends else "error"


def clients_row(url: str, clients: int) -> dict[str, Any]:
    """Many callers at once: how many were not answered."""
    started = time.perf_counter()

    def ask(number: int) -> str:
        try:
            return call(url, "route", [f"{PROMPT} ({number})", ROUTER, 0])
        except (OSError, ValueError, urllib.error.URLError) as error:
            return f"error: {error}"

    with ThreadPoolExecutor(clients) as pool:
        ends = list(pool.map(ask, range(clients)))
    failed = sum(end != "complete" for end in ends)
    note = f"the last answer came after {time.perf_counter() - started:.1f} s"
    return row(f"{clients} clients at once, not answered", failed, "clients", 0, note)


def memory_row(url: str, process: subprocess.Popen[bytes], runs: int) -> dict[str, Any]:
    """Growth of the server's resident memory over many runs of one visitor, after ten to warm up.

    Other visitors cost memory too, see :func:`session_row`.
    """
    values = []
    for number in range(10 + runs):
        prompt = f"{number} patients take {number} mg. How many mg is that?"
        call(url, "route", [prompt, ROUTER, 0], session="benchmark")
        if number >= 10 - 1 and (number - 9) % max(1, runs // 8) == 0:
            values.append(resident_megabytes(process.pid))
    growth = values[-1] / values[0] - 1
    note = f"{values[0]:.0f} MB after 10 runs, {values[-1]:.0f} MB after {10 + runs}"
    return row(f"memory growth over {runs} runs", growth, "share", 0.05, note, values)


def session_row(url: str, process: subprocess.Popen[bytes], visitors: int = 40) -> dict[str, Any]:
    """Memory of all the sessions that the server keeps: that of some visitors, times how many it keeps at most."""
    from explorer.layout import KEPT_SESSIONS

    before = resident_megabytes(process.pid)
    for number in range(visitors):
        call(url, "route", [f"Visitor {number} takes {number} mg.", ROUTER, 0])
    each = (resident_megabytes(process.pid) - before) / visitors
    note = f"{each:.2f} MB for each of {visitors} new sessions; {KEPT_SESSIONS} are kept"
    return row("memory of all sessions that are kept", each * KEPT_SESSIONS, "MB", 2000, note)


def resident_megabytes(pid: int) -> float:
    """Resident memory of a process; Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("This system does not say how much memory a process has.")


def streaming_row(rounds: int, tokens: int) -> dict[str, Any]:
    """Time of a streamed run, encoded for the browser, over that of plain ``generate``; both in every round."""
    import torch

    import loramixer
    from explorer.payload import PayloadEncoder
    from loramixer.data import encode_prompt
    from loramixer.trace import stream_trace

    # As in the app, no thread but those of the runs computes: a second team of PyTorch's threads slows the first.
    model, tokenizer = _in_thread(lambda: loramixer.load_mixer(ROUTER))
    ids = torch.tensor([encode_prompt(tokenizer, PROMPT).ids])

    def streamed() -> int:
        encoder, last, due = PayloadEncoder(), None, 0.0
        for last in stream_trace(model, tokenizer, PROMPT, tokens, stop=threading.Event()):
            if time.monotonic() >= due:
                due = time.monotonic() + 0.1
                encoder.encode(last, "generating")
        return last.tokens.roles.count("generated") if last else 0

    written = streamed()

    def plain() -> None:
        with torch.no_grad():
            model.generate(
                input_ids=ids, max_new_tokens=written, min_new_tokens=written, do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip

    def timed(work: Callable[[], Any]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    _in_thread(plain)
    ratios = [timed(streamed) / timed(lambda: _in_thread(plain)) for _ in range(rounds)]
    note = f"{written} tokens"
    return row("streamed over plain generation", median(ratios), "ratio", 1.10, note, ratios)


def _in_thread(work: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


if __name__ == "__main__":
    main()
