"""How far a stream has come, for whoever carries it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formats.stream.parser import StreamParser
    from proxy.report.report import Report


class Progress:
    """What can be asked about a stream while it passes; the parser knows it.

    Attributes:
        report: What came of the stream so far.
    """

    report: "Report"

    def __init__(self, parser: "StreamParser") -> None:
        self._parser = parser

    @property
    def return_path(self) -> bool:
        """Whether the source opened a return path."""
        return self._parser.return_path

    @property
    def holds(self) -> bool:
        """Whether device state is being held: the guest stands."""
        return self._parser.holds

    @property
    def held(self) -> int:
        """How many of the bytes that were fed are not in what was returned."""
        return self.report.bytes_in - self._parser.offset

    @property
    def postcopy(self) -> bool:
        """Whether the device state of a postcopy migration has been passed on; the destination then runs the guest."""
        return self._parser.postcopy

    @property
    def postcopy_advised(self) -> bool:
        """Whether the source has announced that it may go over to postcopy."""
        return self._parser.postcopy_advised

    @property
    def source_waits_in_postcopy(self) -> bool:
        """Whether the source has gone over to postcopy, and the destination does not have the device state yet."""
        return self._parser.switching_to_postcopy and not self._parser.postcopy

    @property
    def source_waits(self) -> bool:
        """Whether the source of a precopy migration has sent all, and waits on its return path for an answer."""
        return self._parser.return_path and self._parser.complete and not self._parser.postcopy

    @property
    def awaiting_vmdesc(self) -> bool:
        """Whether only the vmdesc seems to be missing; see `StreamParser.awaiting_vmdesc`."""
        return self._parser.awaiting_vmdesc

    @property
    def amid_part(self) -> bool:
        """Whether memory comes, and it is not the last; see `StreamParser.amid_part`."""
        return self._parser.amid_part

    @property
    def amid_small_records(self) -> bool:
        """Whether memory comes in small records, and is not the last; see `StreamParser.amid_small_records`."""
        return self._parser.amid_small_records

    @property
    def brings_pages(self) -> bool:
        """Whether whole pages came on the main connection, as they do not with multifd, short of postcopy.

        Source: QEMU `migration/ram.c` (`ram_save_target_page`).
        """
        ram = self._parser.ram
        return ram is not None and ram.full_pages > 0 and not self._parser.postcopy

    @property
    def skippable(self) -> int:
        """How many of the next bytes need not be fed; see `StreamParser.skippable`."""
        return self._parser.skippable
