"""Records the example prompts, for the page to show before a model is loaded: ``python -m explorer.record``."""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import deque
from pathlib import Path

# Works from a clone where the package is not installed.
sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "lib")]

from explorer.examples import EXAMPLES, ExamplePrompt, find_example  # noqa: E402
from explorer.recordings import FOLDER, INDEX  # noqa: E402
from explorer.registry import ModelRegistry, ModelSource  # noqa: E402
from explorer.settings import DEFAULT_K, DEFAULT_MIXER, DEFAULT_NEW_TOKENS, RunRequest  # noqa: E402
from loramixer.trace import RoutingTrace  # noqa: E402

OTHER_ROUTERS = tuple(("math-medical", f"smollm2-135m/{name}") for name in ("load-balance", "none", "supervised"))
"""Examples that are recorded with other routers too, for the ready-made comparisons; routers that are not installed
are left out."""


def record(source: ModelSource, example: ExamplePrompt, mixer: str, k: int, max_new_tokens: int) -> RoutingTrace:
    """Run one example to its end."""
    request = RunRequest(example.prompt, mixer, "top_k", k, max_new_tokens, contributions=True)
    return deque(source.stream(request, threading.Event()), maxlen=1).pop()


def main() -> None:
    """Record every example and write the index."""
    parser = argparse.ArgumentParser(description="Record the example prompts of the explorer.")
    parser.add_argument("--mixer", default=DEFAULT_MIXER, help="name of the router")
    parser.add_argument("--k", type=int, default=DEFAULT_K, help="experts per token")
    parser.add_argument("--max-new-tokens", type=int, default=DEFAULT_NEW_TOKENS, help="longest answer in tokens")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the traces")
    arguments = parser.parse_args()
    source = ModelRegistry(arguments.mixer)
    rows = []
    for example in EXAMPLES:
        trace = record(source, example, arguments.mixer, arguments.k, arguments.max_new_tokens)
        path = trace.save(arguments.out / f"{example.key}.npz")
        rows.append({"example": example.key, "file": path.name})
        print(f"{path}: {len(trace.tokens)} tokens, {path.stat().st_size / 1024:.0f} KB", file=sys.stderr)
    installed = {mixer.name for mixer in source.mixers()} - {arguments.mixer}
    for key, mixer in [pair for pair in OTHER_ROUTERS if pair[1] in installed]:
        trace = record(source, find_example(key), mixer, arguments.k, arguments.max_new_tokens)
        path = trace.save(arguments.out / f"{key}.{mixer.rsplit('/', 1)[-1]}.npz")
        rows.append({"example": key, "mixer": mixer, "file": path.name})
        print(f"{path}: {len(trace.tokens)} tokens, {path.stat().st_size / 1024:.0f} KB", file=sys.stderr)
    (arguments.out / INDEX).write_text(json.dumps({"traces": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
