"""The file of a routing trace: one ``.npz``, an archive of arrays with a header in JSON; see `docs/traces.md`.

Reading expects a file from anybody: nothing is unpickled, nothing is decompressed or allocated beyond a limit that is
given, and whatever is wrong is one sentence.
"""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np

from loramixer.errors import TraceError
from loramixer.trace import INTERVENTION_FIELDS, Role, RoutingTrace, Site, TraceTokens
from loramixer.whatif import SETTINGS

FORMAT_VERSION = 2
"""2 added contributions and base norms; files of version 1 are read as they were, without them."""

_READABLE = (1, 2)

_KINDS = {
    "header": "u",
    "ids": "iu",
    "spans": "iu",
    "special": "b",
    "logits": "f",
    "gates": "f",
    "contributions": "f",
    "base_norms": "f",
}
"""Array → kinds of number (as numpy names them) that it may hold."""

_OPTIONAL = ("contributions", "base_norms")

_MAX_HEADER_BYTES = 16_000_000

_FACTS: dict[str, type | tuple[type, ...]] = {
    "gate": str,
    "k": int,
    "renormalize": bool,
    "gate_renormalize": bool,
    "gate_temperature": (int, float),
    "masked": list,
    "site_gates": list,
    "site_rules": list,
    "interventions": list,
    "what_if": dict,
    "temperature": (int, float),
    "seed": int,
    "max_new_tokens": int,
}
"""Facts of the provenance that are computed with or written into scripts, and their types; the rest is for people."""


def write_trace(trace: RoutingTrace, path: Path) -> Path:
    """Write a trace; a file that is there is replaced at once and whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "format": FORMAT_VERSION,
        "text": trace.tokens.text,
        "roles": trace.tokens.roles,
        "sites": [[site.layer, site.projection, site.module] for site in trace.sites],
        "experts": trace.experts,
        "provenance": trace.provenance,
    }
    arrays = {
        "ids": trace.tokens.ids,
        "spans": trace.tokens.spans,
        "special": trace.tokens.special,
        "logits": trace.logits,
        "gates": trace.gates,
        **{name: array for name in _OPTIONAL if (array := getattr(trace, name)) is not None},
    }
    scratch = path.with_name(path.name + ".tmp")
    with scratch.open("wb") as file:
        np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)
    os.replace(scratch, path)
    return path


def read_trace(source: str | Path | bytes | BinaryIO, max_megabytes: float) -> RoutingTrace:
    """Read a trace; see :meth:`RoutingTrace.load`."""
    name = str(source) if isinstance(source, str | Path) else "This file"
    limit = int(max_megabytes * 1e6)
    try:
        return _trace_from(_arrays(_content(source, limit, name), limit, name), name)
    except TraceError:
        raise
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        RuntimeError,
        EOFError,
        OverflowError,
        MemoryError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
    ) as error:
        raise _no_trace(name, str(error) or type(error).__name__) from error


def _no_trace(name: str, reason: str) -> TraceError:
    return TraceError(f"{name} is no routing trace ({reason}); give a file that `loramixer trace` wrote.")


def _too_large(name: str, limit: int) -> TraceError:
    return TraceError(
        f"{name} takes more than the {limit / 1e6:,.1f} MB that are read here; trace a shorter text, or allow more "
        "with max_megabytes."
    )


def _content(source: str | Path | bytes | BinaryIO, limit: int, name: str) -> bytes:
    """The whole file, unless it is larger than allowed."""
    if isinstance(source, bytes):
        content = source
    elif isinstance(source, str | Path):
        with open(source, "rb") as file:
            content = file.read(limit + 1)
    else:
        content = source.read(limit + 1)
    if len(content) > limit:
        raise _too_large(name, limit)
    return content


def _arrays(content: bytes, limit: int, name: str) -> dict[str, np.ndarray]:
    """The arrays by name. Sizes are those that the archive states; what it holds beyond them is not read."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(names) != len(set(names)) or not set(names) <= set(_KINDS):
            raise _no_trace(name, "it holds other arrays than a trace does")
        if missing := sorted(set(_KINDS) - set(_OPTIONAL) - set(names)):
            raise _no_trace(name, f"it has no {missing[0]}")
        if sum(member.file_size for member in members) > limit:
            raise _too_large(name, limit)
        for array_name, member in zip(names, members, strict=True):
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _no_trace(name, "it is compressed in another way")  # those decompress without a limit
            with archive.open(member) as file:
                found[array_name] = _array(file.read(member.file_size), _KINDS[array_name], array_name, name)
    return found


def _array(content: bytes, kinds: str, array_name: str, name: str) -> np.ndarray:
    """One ``.npy`` file, whose shape must be that of the bytes that are there."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise _no_trace(name, f"its {array_name} have an unknown format")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject or dtype.kind not in kinds or dtype.names is not None or dtype.shape:
        raise _no_trace(name, f"its {array_name} are of type {dtype}")
    if math.prod(shape) * dtype.itemsize != len(content) - file.tell() or any(length < 0 for length in shape):
        raise _no_trace(name, f"its {array_name} are not as long as they say")
    values = np.frombuffer(content, dtype, math.prod(shape), file.tell())
    return values.reshape(shape, order="F" if is_fortran else "C")


def _trace_from(arrays: dict[str, np.ndarray], name: str) -> RoutingTrace:
    header = _header(arrays["header"], name)
    roles, sites, experts = header["roles"], header["sites"], header["experts"]
    text, spans = header["text"], arrays["spans"].astype(np.int64)
    tokens = len(roles)
    for array_name, shape in (("ids", (tokens,)), ("spans", (tokens, 2)), ("special", (tokens,))):
        if arrays[array_name].shape != shape:
            raise _no_trace(name, f"its {array_name} have shape {arrays[array_name].shape}, expected {shape}")
    if not tokens or not sites or not experts:
        raise _no_trace(name, "it is empty")
    if ((spans < 0) | (spans > len(text))).any() or (spans[:, 0] > spans[:, 1]).any():
        raise _no_trace(name, "its tokens lie outside its text")
    with np.errstate(over="ignore"):  # what is too large for float32 is found below
        numbers = {key: arrays[key].astype(np.float32) for key in ("logits", "gates", *_OPTIONAL) if key in arrays}
    for key, values in numbers.items():
        # Minus infinity is the logit of an expert that is absent.
        faulty = (
            ~np.isfinite(values) & ~np.isneginf(values) if key == "logits" else ~(np.isfinite(values) & (values >= 0))
        )
        if faulty.any():
            raise _no_trace(name, f"its {key} hold {values[faulty][0]}")
    return RoutingTrace(
        tokens=TraceTokens(
            text=text,
            ids=arrays["ids"].astype(np.int64),
            spans=spans,
            roles=tuple(roles),
            special=arrays["special"].copy(),
        ),
        sites=tuple(Site(*site) for site in sites),
        experts=tuple(experts),
        provenance=header["provenance"],
        **numbers,
    )


def _header(content: np.ndarray, name: str) -> dict[str, Any]:
    """The header with every field of its type."""
    if content.nbytes > _MAX_HEADER_BYTES or content.dtype != np.uint8:
        raise _no_trace(name, "its header is none")
    header = json.loads(content.tobytes().decode())
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise _no_trace(name, "its header is none")
    if header["format"] not in _READABLE:
        raise TraceError(
            f"{name} is a trace of format {header['format']}; this version reads format "
            f"{' and '.join(map(str, _READABLE))}, so update loramixer."
        )
    fields = {"text": str, "roles": list, "sites": list, "experts": list, "provenance": dict}
    for key, kind in fields.items():
        if not isinstance(header.get(key), kind):
            raise _no_trace(name, f"its {key} are missing")
    roles, sites, experts = header["roles"], header["sites"], header["experts"]
    if not all(isinstance(role, str) and role in get_args(Role) for role in roles):
        raise _no_trace(name, f"a role is none of {', '.join(get_args(Role))}")
    if not all(
        isinstance(site, list) and [type(part) for part in site] == [int, str, str] and site[0] >= 0 for site in sites
    ):
        raise _no_trace(name, "a site is no layer, projection and module")
    if not all(isinstance(expert, str) and expert for expert in experts) or len(set(experts)) < len(experts):
        raise _no_trace(name, "its experts have no names of their own")
    _check_facts(header["provenance"], name)
    # Half a character, which JSON can hold, can be written nowhere.
    json.dumps(header, ensure_ascii=False).encode()
    return header


def _check_facts(provenance: dict[str, Any], name: str) -> None:
    """Raise a TraceError unless all facts that are computed with can be."""
    for key, kinds in _FACTS.items():
        if key in provenance and not isinstance(provenance[key], kinds):
            raise _no_trace(name, f"its provenance says {key} is {provenance[key]!r:.80}")
    rules = provenance.get("site_gates", [])
    for settings in (provenance, *rules):
        if not isinstance(settings, dict):
            raise _no_trace(name, "a rule for single sites is none")
        k, temperature = settings.get("k", settings.get("top_k", 1)), settings.get("temperature", 1.0)
        if settings is provenance:  # there it is the temperature of sampling
            temperature = settings.get("gate_temperature", 1.0)
        if not isinstance(k, int) or k < 1 or not _is_number(temperature) or temperature == 0:
            raise _no_trace(name, f"its provenance says k is {k!r:.20} and the temperature {temperature!r:.20}")
        if not isinstance(settings.get("gate", ""), str) or not isinstance(settings.get("renormalize", True), bool):
            raise _no_trace(name, "a rule for single sites is none")
    places = provenance.get("site_rules", [])
    if not all(place is None or (type(place) is int and 0 <= place < len(rules)) for place in places):
        raise _no_trace(name, "its sites follow rules that are not there")
    if not all(isinstance(expert, str) for expert in provenance.get("masked", [])):
        raise _no_trace(name, "its masked experts have no names")
    if not _is_number(provenance.get("temperature", 0.0)):
        raise _no_trace(name, f"its provenance says the temperature of sampling is {provenance['temperature']!r:.20}")
    for each in provenance.get("interventions", []):
        if not isinstance(each, dict) or "kind" not in each or not set(each) <= set(INTERVENTION_FIELDS):
            raise _no_trace(name, f"an intervention is {each!r:.80}")
    if not set(provenance.get("what_if", {})) <= {"note", *SETTINGS}:
        raise _no_trace(name, f"its what-if is {provenance['what_if']!r:.80}")


def _is_number(value: Any) -> bool:
    """Whether it is a number from 0 on, and not infinite."""
    return isinstance(value, int | float) and 0 <= value < math.inf
