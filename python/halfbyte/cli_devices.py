"""What ``halfbyte info`` says of devices: which there are, and what of a model would lie in a GPU's memory."""

from __future__ import annotations

import re
from typing import Any

from . import _core
from .errors import InvalidArgumentError
from .terminal import size_text

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h)\.(\d+)\.")


def print_devices() -> None:
    """One line for each device, and why there is no GPU where there is none."""
    for device in _core.list_devices():
        memory = f", {size_text(device['free_bytes'])} of {size_text(device['total_bytes'])} free"
        state = "" if device["available"] else "not available: "
        print(f"{device['name']:<8}{state}{device['description']}{memory if device['total_bytes'] else ''}")


def find_device(name: str) -> dict[str, Any]:
    """The entry of that name of _core.list_devices()."""
    devices = {device["name"]: device for device in _core.list_devices()}
    if name not in devices:
        raise InvalidArgumentError(f"--device: expected one of {', '.join(devices)}, found {name!r}")
    return devices[name]


def placement(checkpoint: _core.Checkpoint, name: str, limit: int | None) -> dict[str, Any]:
    """Where the weights of a model would lie.

    On the device up to `limit` bytes (None: what is free, less the reserve, where there is such a device), those behind
    in host memory, from where each use streams them.

    Returns device, description, available, limit (0: not known, all are reckoned to fit), device_bytes, host_bytes,
    host_layers (numbers of the layers that have weights in host memory), host_others (names beside the layers).
    """
    device = find_device(name)
    if limit is None:
        reserve = max(256 << 20, device["total_bytes"] // 16)
        limit = max(0, device["free_bytes"] - reserve)
    used = host = 0
    layers: set[int] = set()
    others: list[str] = []
    for source, hf_name, *_ in checkpoint.plan()[1]:
        size = checkpoint.weight(source).uploaded_bytes(name)
        if limit == 0 or used + size <= limit:
            used += size
            continue
        host += size
        found = _LAYER.search(hf_name)
        if found is None:
            others.append(hf_name)
        else:
            layers.add(int(found[1]))
    return {
        "device": name,
        "description": device["description"],
        "available": device["available"],
        "limit": limit,
        "device_bytes": used,
        "host_bytes": host,
        "host_layers": sorted(layers),
        "host_others": others,
    }


def rows_of(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines that ``halfbyte info`` prints of a placement."""
    here = "" if facts["available"] else "not available: "
    rows = [(facts["device"], here + facts["description"])]
    if facts["limit"]:
        rows.append(("  for weights", size_text(facts["limit"])))
    rows.append(("  on it", size_text(facts["device_bytes"])))
    if facts["host_bytes"]:
        parts = [*([_ranges(facts["host_layers"])] if facts["host_layers"] else []), *facts["host_others"]]
        rows.append(("  in the host's", f"{size_text(facts['host_bytes'])}, streamed for each use: {', '.join(parts)}"))
    return rows


def _ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] as "layers 3 to 5, 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return f"{'layer' if len(numbers) == 1 else 'layers'} {', '.join(texts)}"
