"""Recording the first migration that comes: listening, signals, and words on the way."""

import signal
from typing import TYPE_CHECKING, Final

import trio

from proxy.errors import ProxyError
from proxy.net.binding import bind
from proxy.net.listening import first_to_speak, listen_on
from proxy.recording.recorder import RecordConfig, Recorder
from proxy.stop_signals import STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from proxy.net.address import Address
    from proxy.recording.record_report import RecordReport
    from proxy.recording.recording_file import RecordingFile

_PROGRESS_EVERY: Final = 10.0


async def record(
    address: "Address", config: "RecordConfig", file: "RecordingFile", say: "Callable[[str], None]"
) -> "RecordReport":
    """Listen, record the first migration that comes, and tell what came of it.

    The first SIGTERM or SIGINT ends the listening; a recording that has begun goes on to its end, unless a second one
    breaks it off.

    Raises:
        ProxyError: The address cannot be listened on.
    """
    recorder = Recorder(config, file)
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        try:
            bounds = bind(address)
        except ProxyError:
            file.discard()
            raise
        onward = "with no destination" if config.destination is None else f"for the destination at {config.destination}"
        for one in bounds:
            say(f"listening on {one.name}, {onward}; recording into {file.name}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey_signals, signals, recorder, nursery.cancel_scope, say)
            nursery.start_soon(_tell_progress, recorder, say)
            source, opening = await first_to_speak([listen_on(one) for one in bounds], say, config.source_tls)
            say(f"recording what {source.name} sends")
            await recorder.run(source, opening)
            nursery.cancel_scope.cancel()
    return recorder.report()


async def _obey_signals(
    signals: "AsyncIterator[int]", recorder: Recorder, everything: trio.CancelScope, say: "Callable[[str], None]"
) -> None:
    told = False
    async for number in signals:
        if told or not recorder.length:
            everything.cancel()
            return
        told = True
        say(f"{signal.Signals(number).name}: the recording goes on to its end; send it again to break it off")


async def _tell_progress(recorder: Recorder, say: "Callable[[str], None]") -> None:
    while True:
        before = recorder.length
        await trio.sleep(_PROGRESS_EVERY)
        if recorder.length:
            rate = (recorder.length - before) / _PROGRESS_EVERY
            say(f"{recorder.length >> 20} MiB recorded, {rate / (1 << 20):.0f} MiB/s")
