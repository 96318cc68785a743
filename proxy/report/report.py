"""The report: what came of one migration or one rewritten file."""

import enum
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from formats.errors import FormatError, MalformedStreamError
from proxy.errors import ExitCode, PeerError, ProxyError, RefusedError
from proxy.hosts.kvm import KvmError
from proxy.hosts.local_guest import UNKNOWN, Guest
from proxy.hosts.qmp import QmpError
from proxy.judging.explain import lost_features, met_errata
from proxy.judging.verdict import Action, verdict_as_dict
from proxy.report.times import Times
from proxy.report.words import counted

if TYPE_CHECKING:
    from formats.arm.vcpu_features import Kind
    from formats.stream.trailing import Trailing
    from proxy.judging.start_flags import Start
    from proxy.judging.verdict import Verdict
    from proxy.settings.origin import Origin

SCHEMA_VERSION = 2
_UUID_SIZE = 16


class Outcome(enum.StrEnum):
    """What became of the stream."""

    REWRITTEN = "rewritten"
    UNCHANGED = "unchanged"
    REFUSED = "refused"
    UNREAD = "unread"
    """It is in TLS that does not end here, and passed as it came; only where nothing but watching is asked for."""
    FAILED = "failed"


class Cause(enum.StrEnum):
    """Of what kind the reason is that a stream did not pass."""

    POLICY = "policy"
    """The operator did not vouch for what would have to change, or for who came."""
    UNSUPPORTED = "unsupported"
    """The stream has what this program cannot read on safely."""
    MALFORMED = "malformed"
    """The stream is broken, or was cut."""
    SOURCE = "source"
    """The source could not be spoken to, broke the connection, or gave up."""
    DESTINATION = "destination"
    """The destination could not be reached or trusted, broke the connection, or did not take the guest."""
    KVM = "kvm"
    """The destination's kernel, or its QEMU, could not be asked."""
    FILE = "file"
    """A file could not be read or written."""
    STOPPED = "stopped"
    """The proxy was stopped."""
    INTERNAL = "internal"
    """A fault of this program's own."""


def cause_of(error: BaseException) -> Cause:
    """Return of what kind an error is."""
    match error:
        case MalformedStreamError():
            return Cause.MALFORMED
        case FormatError():
            return Cause.UNSUPPORTED
        case RefusedError():
            return Cause.POLICY
        case PeerError():
            return Cause(error.peer)
        case KvmError() | QmpError():
            return Cause.KVM
        case ProxyError() | OSError():
            return Cause.FILE
        case Exception():
            return Cause.INTERNAL
        case _:
            return Cause.STOPPED


@dataclass(slots=True)
class Report:
    """What came of one stream; filled in as it passes.

    `report.schema.json`, beside this file, describes its JSON.

    Attributes:
        mode: The policy's mode.
        outcome: What became of it; failed until its end was seen.
        reason: Why it was refused or failed, in one line; in observe mode, why it would have been.
        cause: Of what kind the reason is; None where the stream passed.
        refused_registers: The names of the registers for which it was refused.
        exit_code: What the command ends with.
        bytes_in: Bytes that came from the source.
        bytes_out: Bytes that went to the destination.
        machine: The machine type; None when the stream did not say.
        vcpus: How many arm64 vCPUs were judged.
        changes: What was changed.
        would_change: What would have been changed, in observe mode.
        channels: How many multifd channels, and the one of postcopy-preempt, went beside the main one.
        channel_bytes: Bytes that went to the destination on these.
        postcopy: Whether the guest's device state went as the package of a postcopy migration.
        recoveries: How many times a postcopy migration was taken up again after its connection broke.
        kinds: The kinds of vCPU that the guest has.
        start: How the destination has to be started for it; None where that is not known.
        not_looked_at: Sections of interrupt controllers that would be judged and could not be read, without a vmdesc.
        id: What no other report has.
        source: Where the stream came from: an address, or a file.
        destination: Where it went: an address as it was dialled, or a file.
        started: When it began, in UTC.
        ended: When it was over, in UTC.
        source_tls: Whom the source's certificate names; None where it came in plain text.
        destination_tls: Whom the destination's certificate names; None where it was spoken to in plain text.
        guest: The guest's name and UUID, as far as they are known.
        policy: The file with what the operator vouches for; None where options alone said it.
        profile: The file that says what the destination takes; None where something else does.
        kvm: Whether the destination's kernel was asked what it takes.
        times: How long its phases took.
        trailing: What follows the end of the stream in its file; None for nothing.
    """

    mode: str
    outcome: Outcome = Outcome.FAILED
    reason: str | None = "the stream did not come to its end"
    exit_code: ExitCode = ExitCode.FAILED
    bytes_in: int = 0
    bytes_out: int = 0
    machine: str | None = None
    vcpus: int = 0
    changes: "list[Verdict]" = field(default_factory=list)
    would_change: "list[Verdict]" = field(default_factory=list)
    channels: int = 0
    channel_bytes: int = 0
    postcopy: bool = False
    recoveries: int = 0
    kinds: "tuple[Kind, ...]" = ()
    start: "Start | None" = None
    not_looked_at: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: os.urandom(8).hex())
    source: str | None = None
    destination: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    source_tls: str | None = None
    destination_tls: str | None = None
    guest: Guest = UNKNOWN
    policy: "Origin | None" = None
    profile: "Origin | None" = None
    kvm: bool = False
    times: Times = field(default_factory=Times)
    cause: Cause | None = Cause.STOPPED
    refused_registers: tuple[str, ...] = ()
    trailing: "Trailing | None" = None

    def begin(self, source: str, destination: str) -> None:
        """Note that it begins, from where and to where."""
        self.started, self.source, self.destination = datetime.now(UTC), source, destination

    def known(self, name: str | None = None, uuid: str | None = None) -> None:
        """Note what has become known of the guest; what was known before stays."""
        self.guest = Guest(self.guest.name or name, self.guest.uuid or uuid)

    def known_uuid(self, uuid: bytes) -> None:
        """Note a guest's UUID, 16 bytes; QEMU sends zeros, and perhaps a greeting is cut, where there is none."""
        if len(uuid) == _UUID_SIZE and any(uuid):
            self.known(uuid=str(UUID(bytes=uuid)))

    def end(self) -> None:
        """Note that it is over."""
        self.ended = datetime.now(UTC)

    def failed(self, reason: str, cause: Cause) -> None:
        """Note that something outside the stream went wrong; a reason found in the stream stands."""
        if self.exit_code in (ExitCode.OK, ExitCode.FAILED):
            self.outcome, self.reason, self.exit_code = Outcome.FAILED, reason, ExitCode.FAILED
            self.cause = cause

    def refused(self, error: FormatError | RefusedError) -> None:
        """Note why it did not pass; a reason found in the stream is there already."""
        if self.exit_code is ExitCode.FAILED and isinstance(error, RefusedError):
            self.outcome, self.reason, self.exit_code = Outcome.REFUSED, str(error), error.exit_code
            self.cause = cause_of(error)

    def note(self, text: str) -> None:
        """Add what is to be known besides the reason."""
        self.reason = text if self.reason is None else f"{self.reason}; {text}"

    def as_dict(self) -> dict[str, Any]:
        """Return the report as it goes into JSON; register values and ids are hexadecimal strings."""
        return {
            "schema_version": SCHEMA_VERSION,
            "id": self.id,
            "started": _rfc3339(self.started),
            "ended": _rfc3339(self.ended),
            "source": self.source,
            "destination": self.destination,
            "source_tls": self.source_tls,
            "destination_tls": self.destination_tls,
            "guest": self.guest._asdict(),
            "outcome": self.outcome.value,
            "reason": self.reason,
            "cause": None if self.cause is None else self.cause.value,
            "refused_registers": list(self.refused_registers),
            "mode": self.mode,
            "policy": None if self.policy is None else self.policy.as_dict(),
            "profile": None if self.profile is None else self.profile.as_dict(),
            "kvm": self.kvm,
            "machine": self.machine,
            "vcpus": self.vcpus,
            "vcpu_features": [sorted(kind) for kind in self.kinds],
            "start": None if self.start is None else self.start.as_dict(),
            "channels": self.channels,
            "channel_bytes": self.channel_bytes,
            "postcopy": self.postcopy,
            "recoveries": self.recoveries,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": self.times.as_dict(),
            "changes": [verdict_as_dict(verdict) for verdict in self.changes],
            "would_change": [verdict_as_dict(verdict) for verdict in self.would_change],
            "lost_features": lost_features(self.changes),
            "unguarded_errata": met_errata(self.changes),
            "not_looked_at": list(self.not_looked_at),
            "trailing": None if self.trailing is None else self.trailing.as_dict(),
        }

    def as_json(self) -> str:
        """Return the report as one line of JSON."""
        return json.dumps(self.as_dict())

    def summary(self) -> str:
        """Return the report in one line, for people."""
        line = self.outcome.value
        if self.changes:
            line += f": {_count(self.changes)}"
        if self.would_change:
            line += f"; {_count(self.would_change, 'would be ')}"
        said = ("loses", lost_features(self.changes)), ("meets", met_errata(self.changes))
        for words, those in (*said, ("not looked at, without a vmdesc:", self.not_looked_at)):
            if those:
                line += f"; the guest {words} {', '.join(those)}"
        if self.reason is not None:
            line += f": {self.reason}"
        line += f" ({self.bytes_in} bytes in, {self.bytes_out} out)"
        return line if self.trailing is None else f"{line}; {self.trailing}"


def _rfc3339(time: datetime | None) -> str | None:
    """Write a time in UTC, in milliseconds: `2026-11-27T13:40:00.123Z`."""
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _count(changes: "list[Verdict]", would_be: str = "") -> str:
    swapped = [verdict for verdict in changes if verdict.action is not Action.DROP]
    dropped = [verdict for verdict in changes if verdict.action is Action.DROP]
    parts = []
    if swapped:
        names = ", ".join(sorted({verdict.name for verdict in swapped}))
        parts.append(f"{names} of {_vcpus(swapped)} {would_be}swapped")
    if dropped:
        count = counted(len({verdict.register for verdict in dropped}), "register")
        parts.append(f"{count} of {_vcpus(dropped)} {would_be}left out")
    return ", ".join(parts)


def _vcpus(changes: "list[Verdict]") -> str:
    return counted(len({verdict.vcpu for verdict in changes}), "vCPU")
