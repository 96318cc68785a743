"""Asking a QEMU over its QMP socket what its vCPUs are.

Source: QEMU `docs/interop/qmp-spec.rst`, `qapi/machine.json` (`query-cpus-fast`), `qapi/qom.json` (`qom-get`).
"""

import json
import socket
from contextlib import closing
from typing import Any, Final

from formats.arm.vcpu_features import VcpuFeature
from proxy.errors import ProxyError
from proxy.hosts.started_qemu import CPU_PROPERTIES, StartedQemu

_PATIENCE: Final = 5.0
"""Seconds for an answer; a monitor that somebody else is connected to gives none."""


class QmpError(ProxyError):
    """A QMP socket cannot be reached, or does not answer as QEMU's."""


def ask_qmp(address: str) -> StartedQemu:
    """Ask a QEMU for the properties of its first vCPU.

    Args:
        address: The path of its QMP socket, or `HOST:PORT`.

    Raises:
        QmpError: It cannot be asked.
    """
    try:
        with closing(_connect(address)) as connection, connection.makefile("rwb") as channel:
            if "QMP" not in json.loads(channel.readline() or b"{}"):
                raise QmpError(f"{address}: no QMP greeting; is it a monitor with mode=control?")
            _execute(channel, "qmp_capabilities")
            path = _execute(channel, "query-cpus-fast")[0]["qom-path"]
            off: list[str] = []
            for name in CPU_PROPERTIES:
                try:
                    value = _execute(channel, "qom-get", path=path, property=name)
                except _RefusedError:
                    continue  # a QEMU that does not know it cannot turn it off
                if value is False:
                    off.append(name)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise QmpError(f"{address}: the destination's QEMU cannot be asked by QMP: {error}") from error
    features = frozenset[VcpuFeature]().union(*(CPU_PROPERTIES[name] for name in off))
    return StartedQemu(f"QMP at {address}", ",".join(["host", *(f"{name}=off" for name in off)]), features)


class _RefusedError(ValueError):
    """QEMU answered a command with an error."""


def _connect(address: str) -> socket.socket:
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in address:
        return socket.create_connection((host.strip("[]"), int(port)), _PATIENCE)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE)
    try:
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _execute(channel: Any, command: str, **arguments: str) -> Any:  # noqa: ANN401 - QMP's answers differ by command
    channel.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    channel.flush()
    while line := channel.readline():
        answer = json.loads(line)
        if "error" in answer:
            raise _RefusedError(answer["error"].get("desc", command))
        if "return" in answer:
            return answer["return"]
    raise OSError("it ended the connection")
