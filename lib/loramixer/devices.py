"""Which device a command measures on."""

from __future__ import annotations

import torch

from loramixer.errors import LoraMixerError


def choose_device(name: str = "auto") -> torch.device:
    """The device that a name means on this machine.

    Args:
        name: ``auto``, which is ``cuda`` where torch sees one and else ``cpu``; or what ``torch.device`` takes, such
            as ``cuda:1`` or ``mps``.

    Raises:
        LoraMixerError: torch knows no such device, this machine has none, or it holds no numbers (``meta``).
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    # What a build without this device raises depends on the device.
    except (RuntimeError, AssertionError, ImportError) as error:
        raise _no_device(name) from error
    if device.type == "meta":
        raise _no_device(name)
    return device


def _no_device(name: str) -> LoraMixerError:
    return LoraMixerError(
        f"The device '{name}' cannot be used on this machine; give auto, cpu, or another that torch has here, such as "
        "cuda or cuda:1."
    )
