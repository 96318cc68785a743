"""The internal snapshots of an image, as `inspect qcow2:IMAGE` lists them."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from proxy.captures.stream_files import open_image
from proxy.cli.lines import echo

if TYPE_CHECKING:
    from formats.files.qcow2 import Snapshot


def show_snapshots(path: str, *, as_json: bool) -> None:
    """Print them, the oldest first.

    Raises:
        ProxyError: It is no image, or cannot be read.
    """
    with open_image(path) as image:
        snapshots = image.snapshots
    if as_json:
        document = {"schema_version": 1, "image": path, "snapshots": [_as_dict(one) for one in snapshots]}
        click.echo(json.dumps(document, indent=1))
        return
    if not snapshots:
        click.echo(f"{path} has no internal snapshots.")
        return
    click.echo(f"{'id':>4} {'taken (UTC)':19} {'guest ran':>12} {'VM state':>14}  name")
    for one in snapshots:
        state = str(one.vm_state_size) if one.vm_state_size else "none"
        click.echo(f"{one.id:>4} {_taken(one):%Y-%m-%d %H:%M:%S} {_clock(one):>12} {state:>14}  {one.name}")
    if named := next((one for one in snapshots if one.vm_state_size), None):
        echo(f"\nTo look into one: vmstate-proxy inspect 'qcow2:{path},snapshot={named.name}'", indent=4)


def _taken(one: "Snapshot") -> datetime:
    return datetime.fromtimestamp(one.seconds, UTC)


def _clock(one: "Snapshot") -> str:
    minutes, seconds = divmod(one.vm_clock // 10**9, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _as_dict(one: "Snapshot") -> dict[str, object]:
    return {
        "id": one.id,
        "name": one.name,
        "taken": _taken(one).isoformat().replace("+00:00", "Z"),
        "vm_clock_ns": one.vm_clock,
        "vm_state_size": one.vm_state_size,
        "disk_size": one.disk_size,
    }
