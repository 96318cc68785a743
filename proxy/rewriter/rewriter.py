"""The rewriter: bytes in, bytes out, report. It does no IO; the relay and the offline commands use the same one."""

from typing import TYPE_CHECKING

from formats.errors import EncryptedStreamError, FormatError
from formats.frame.event import NEED_DATA, Raw
from formats.frame.records import CommandType
from formats.limits import DEFAULT_DEVICE_STATE_LIMIT
from formats.stream.events import (
    AnyEvent,
    Command,
    Configuration,
    FileHeader,
    LateVmdesc,
    PostcopyData,
    TrailingBytes,
)
from formats.stream.parser import StreamParser
from formats.stream.trailing import Trailing
from formats.vmstate.device_state import DeviceState
from formats.vmstate.vmdesc_counts import vmdesc_with_counts
from proxy.errors import ExitCode, ProxyError, RefusedError, exit_code_of
from proxy.judged_state import Replacement, in_one_line, judge_state
from proxy.judging.advice import would_go
from proxy.judging.judge import Judge
from proxy.judging.verdict import Action
from proxy.policy.policy import NO_RETURN_PATH, Mode
from proxy.report.report import Outcome, Report, cause_of
from proxy.rewriter.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.judging.verdict import Registers


class Rewriter(Progress):
    """Passes one migration stream on, with the registers that must change changed.

    What `feed`, `end` and `vmdesc_overdue` return is to be sent on, in order, before the next call; it may be views of
    what was fed. When one of them raises, the stream must not go on: `report` says why, and the destination must not
    see a clean end.

    Attributes:
        report: What came of the stream; its outcome is final once `complete`, or once an error was raised. Whoever
            sends the bytes counts `bytes_out`.
        replacements: All that was changed, in order, unless the stream is live.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        live: bool,
        allow_no_return_path: bool = False,
        device_state_limit: int = DEFAULT_DEVICE_STATE_LIMIT,
        source: "Sequence[Registers]" = (),
        defer: bool = False,
        take_trailing: bool = False,
    ) -> None:
        """Make a rewriter for one stream.

        Args:
            judge: Knows the destination and the policy.
            live: Whether a migration hangs on it. Then a stream without a return path is refused, and a mapped-ram
                stream, whose place is a file; and a mere observer passes on what it cannot read, and ends nothing.
            allow_no_return_path: Whether a live stream without a return path may pass.
            device_state_limit: Bytes of device state held at most.
            source: What the source's guests look like, where it is known ahead; announced postcopy is judged by it.
            defer: Whether the caller looks at `must_judge` after each call, so that it can ask the kernel elsewhere.
            take_trailing: Whether more may follow the end of the stream, as in a file. It keeps its place there: where
                registers were left out, so many zeroes go before it.
        """
        self.report = Report(
            mode=judge.policy.mode.value,
            policy=judge.policy.origin,
            profile=None if judge.host is None else judge.host.origin,
            kvm=judge.trial is not None,
        )
        self.replacements: list[Replacement] = []
        self._live = live
        self._judge = judge
        self._observing = judge.policy.mode is Mode.OBSERVE
        self._source = source
        self._require = judge.policy.require
        self._require_return_path = live and self._require.return_path and not allow_no_return_path
        self._require_machine = bool(self._require.machines)
        self._keep_going = live and self._observing
        self._deferring = defer
        self._pending: AnyEvent | None = None
        super().__init__(
            StreamParser(device_state_limit=device_state_limit, take_mapped_ram=not live, take_trailing=take_trailing)
        )
        self._shorter = 0
        self._given_up = False
        self._would_refuse: str | None = None
        self._refusal: FormatError | ProxyError | None = None
        self._left: dict[int, int] = {}
        self._package = bytearray()

    @property
    def complete(self) -> bool:
        """Whether the source may end the stream here; when observing a stream that cannot be read, anywhere."""
        done = self._parser.complete and self._refusal is None and self._pending is None
        return self._given_up or done

    @property
    def must_judge(self) -> bool:
        """Whether `judge_now` has to be called next: the stream has come to what is judged, and that was deferred."""
        return self._pending is not None

    @property
    def opaque(self) -> bool:
        """Whether what is still to come is passed on as it is: a postcopy guest's memory, or what cannot be read."""
        return self._given_up or self._parser.postcopy

    def feed(self, data: Raw) -> list[Raw]:
        """Take bytes from the source; return those that may go on.

        Raises:
            FormatError: The stream is broken, or cannot be read on safely.
            RefusedError: The policy does not let the guest pass.
            KvmError: The destination's kernel cannot be asked.
        """
        self.report.bytes_in += len(data)
        if self._given_up:
            return [data]
        self._parser.feed(data)
        return self._events()

    def judge_now(self) -> list[Raw]:
        """Judge what was deferred, and go on; return and raise as `feed` does. It may run in another thread."""
        return self._events()

    def recover(self) -> None:
        """Say that the stream is the rest of a postcopy migration, whose vCPUs were judged before."""
        self.report.postcopy = True
        self._parser.recover()

    def abandon(self) -> bool:
        """Pass nothing more on of a source that waits in postcopy; return whether it has sent all it wants to.

        Raises:
            FormatError: The stream is broken.
        """
        self._refusal = None
        self._parser.abandon_package()
        return self._has_ended()

    def has_ended(self, data: Raw) -> bool:
        """Take what an abandoned source sends next; return and raise as `abandon` does."""
        self.report.bytes_in += len(data)
        self._parser.feed(data)
        return self._has_ended()

    def _has_ended(self) -> bool:
        while self._parser.next_event() is not NEED_DATA:
            pass
        return self._parser.complete

    def end(self) -> list[Raw]:
        """Say that the source ended the stream; return what may go on before the end does. Raises as `feed` does."""
        if self._given_up:
            return []
        self._parser.feed(b"")
        return self._events()

    def vmdesc_overdue(self, *, last_word: bool = False) -> list[Raw]:
        """Say that the vmdesc does not come; return what may go on without it. Raises as `feed` does.

        Args:
            last_word: Whether nothing else is waited for either.
        """
        self._parser.vmdesc_overdue(last_word=last_word)
        return self._events()

    def without_vmdesc(self) -> list[Raw]:
        """Return what may go on without the vmdesc that is awaited; nothing if there is a doubt. Raises as `feed` does.

        See `StreamParser.without_vmdesc`.
        """
        if self._require.vmdesc:
            return []
        self._parser.without_vmdesc()
        return self._events()

    def skip(self, length: int, *, zeroes: bool = False) -> None:
        """Step over bytes that stay as they are; see `StreamParser.skip`."""
        event = self._parser.skip(length, zeroes=zeroes)
        if isinstance(event, TrailingBytes):
            self._followed_by(event)
        self.report.bytes_in += length

    def _events(self) -> list[Raw]:
        if self._refusal is not None:
            raise self._refusal
        out: list[Raw] = []
        changes_passed_on = len(self.report.changes)
        deferred, self._pending = self._pending, None
        try:
            while (event := deferred or self._parser.next_event()) is not NEED_DATA:
                if self._deferring and deferred is None and self._is_judged(event):
                    self._pending = event
                    if isinstance(event, DeviceState):
                        self.report.times.holds()
                    return out
                deferred = None
                out.append(event.raw)  # what an observer passes on when it cannot be judged
                out[-1] = self._passed_on(event)
        except (FormatError, ProxyError) as error:
            del self.report.changes[changes_passed_on:]
            self._fail(error)
            if not self._keep_going:
                self._refusal = error
                raise
            self._given_up = True
            out.append(self._parser.unread())
            return out
        if self._parser.complete and self.report.outcome is Outcome.FAILED:
            self.report.outcome = Outcome.REWRITTEN if self.report.changes else Outcome.UNCHANGED
            self.report.exit_code, self.report.cause = ExitCode.OK, None
            self.report.reason = self._would_refuse
        return out

    def _is_judged(self, event: AnyEvent) -> bool:
        if isinstance(event, Command):
            return event.command is CommandType.POSTCOPY_ADVISE and bool(self._source)
        return isinstance(event, DeviceState)

    def _passed_on(self, event: AnyEvent) -> Raw:
        """Return what goes on in an event's place."""
        match event:
            case Configuration():
                self.report.machine = event.machine
                if event.uuid is not None:
                    self.report.known_uuid(event.uuid)
                self._check_machine(event.machine, event.offset)
                self._check_source(event.offset)
                return event.raw
            case Command():
                return self._commanded(event)
            case FileHeader() | PostcopyData():
                return event.raw
            case TrailingBytes():
                self._followed_by(event)
                padding, self._shorter = bytes(self._shorter), 0
                return padding + event.raw if padding else event.raw
        self._check_what_is_required(event)
        if isinstance(event, DeviceState | LateVmdesc):
            return self._with_changes(event)
        return event.raw

    def _check_source(self, offset: int) -> None:
        """Refuse at once what is known ahead of the source, and the destination or its QEMU was not started for."""
        refused = next(filter(None, map(self._judge.ahead, self._source)), None)
        if refused is not None:
            self._refuse(f"offset {offset:#x}: by what is known of the source, {in_one_line([refused], helped=True)}")

    def _check_what_is_required(self, event: AnyEvent) -> None:
        """Refuse, before the first section passes, a stream that does not bring what the policy wants."""
        if self._require_machine:
            self._check_machine("", event.offset)
        if self._require_return_path and not self._parser.return_path:
            self._require_return_path = False
            self._refuse(f"offset {event.offset:#x}: {NO_RETURN_PATH}")

    def _with_changes(self, event: DeviceState | LateVmdesc) -> Raw:
        """Return the device state, or its vmdesc that comes late, as they go on."""
        before = b"" if self._live else bytes(event.raw)
        after = event.raw
        if isinstance(event, DeviceState):
            after = self._judged(event)
        elif self._left:
            after = vmdesc_with_counts(bytes(event.raw), self._left, event.offset)
        if not self._live:
            self.replacements.append(Replacement(event.offset, before, bytes(after)))
        self._shorter += len(event.raw) - len(after)
        return after

    def _followed_by(self, event: TrailingBytes) -> None:
        if self.report.trailing is None:
            self.report.trailing = Trailing()
        self.report.trailing.add(event)

    def _commanded(self, command: Command) -> Raw:
        match command.command:
            case CommandType.POSTCOPY_ADVISE:
                verdicts = [verdict for registers in self._source for verdict in self._judge.judge(registers)]
                refusals = [verdict for verdict in verdicts if verdict.action is Action.REFUSE]
                if refusals:
                    words = in_one_line(refusals, helped=would_go(self._judge, self._source, verdicts))
                    what = "postcopy is announced, and by what is known of the source would be refused"
                    self._refuse(f"offset {command.offset:#x}: {what}: {words}")
            case CommandType.PACKAGED:
                self.report.postcopy = True
                self._package = bytearray(command.raw)
                return self._package
        return command.raw

    def _check_machine(self, machine: str, offset: int) -> None:
        self._require_machine = False
        if not self._require.takes_machine(machine):
            what = f"machine type {machine}" if machine else "a stream that does not say its machine type"
            listed = ", ".join(self._require.machines)
            self._refuse(f"offset {offset:#x}: {what}, and the policy's require.machines has {listed}")

    def _judged(self, state: DeviceState) -> Raw:
        """Judge every vCPU, then change what is to be changed: values in place, registers that go in a copy."""
        if self._require.vmdesc and state.vmdesc is None and not state.early:
            advice = "migrate without postcopy" if state.packaged else "start the source with suppress-vmdesc=off"
            self._refuse(
                f"offset {state.offset:#x}, section device state: there is no vmdesc, and the policy's require.vmdesc "
                f"wants one; {advice}"
            )
        self.report.times.holds()
        report, judged = self.report, judge_state(self._judge, state)
        report.vcpus += len(judged.vcpus)
        report.kinds, report.start, report.not_looked_at = judged.kinds, judged.start, judged.not_looked_at
        if judged.refusal is not None:
            report.refused_registers = judged.refused
            self._refuse(judged.refusal)
        if self._observing:
            report.would_change += judged.changes
            return state.raw
        report.changes += judged.changes
        changed = judged.changed(self._left)
        if state.packaged:
            # The command that announced the package is passed on together with it.
            length = int.from_bytes(self._package[-4:], "big") + len(changed) - len(state.raw)
            self._package[-4:] = length.to_bytes(4, "big")
        return changed

    def _refuse(self, reason: str) -> None:
        if not self._observing:
            raise RefusedError(reason)
        if self._would_refuse is None:
            self._would_refuse = f"would be refused: {reason}"

    def _fail(self, error: FormatError | ProxyError) -> None:
        report = self.report
        report.reason, report.cause = str(error), cause_of(error)
        report.exit_code = exit_code_of(error)
        if self._keep_going and isinstance(error, EncryptedStreamError):
            report.outcome, report.exit_code, report.cause = Outcome.UNREAD, ExitCode.OK, None
            return
        report.outcome = Outcome.REFUSED if report.exit_code is ExitCode.REFUSED else Outcome.FAILED
        if report.outcome is Outcome.REFUSED and self._keep_going:
            report.outcome, report.exit_code, report.cause = Outcome.UNCHANGED, ExitCode.OK, None
            self._refuse(str(error))
            report.reason = self._would_refuse
