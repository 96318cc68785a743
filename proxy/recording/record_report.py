"""What came of a recording."""

import json
from dataclasses import asdict, dataclass
from typing import Final

from proxy.errors import ExitCode

SCHEMA_VERSION: Final = 1


@dataclass(slots=True)
class RecordReport:
    """What came of one recording.

    Attributes:
        file: What its file is called; None when there is none.
        bytes: Bytes that the source sent.
        sections: Sections, and parts of iterable ones, that were found in them.
        complete: Whether the file holds the whole stream.
        return_path: Whether the source opened a return path.
        confirmed: Whether the destination said that it has the guest; None when nobody could say so.
        not_understood_from: From which offset on the stream was not understood; None when all of it was.
        reason: What went wrong; None when nothing did.
        note: What is to be known besides, for people.
        exit_code: What the command ends with.
    """

    file: str | None = None
    bytes: int = 0
    sections: int = 0
    complete: bool = False
    return_path: bool = False
    confirmed: bool | None = None
    not_understood_from: int | None = None
    reason: str | None = None
    note: str | None = None
    exit_code: ExitCode = ExitCode.FAILED

    def as_json(self) -> str:
        """Return the report as one line of JSON."""
        values = asdict(self)
        del values["note"], values["exit_code"]
        return json.dumps({"schema_version": SCHEMA_VERSION, **values})

    def summary(self) -> str:
        """Return the report in one line, for people."""
        recorded = f"{self.bytes} bytes recorded, {self.sections} sections" if self.complete else None
        line = "; ".join(part for part in (recorded, self.reason, self.note) if part is not None)
        return line if self.file is None else f"{self.file}: {line}"
