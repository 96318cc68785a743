"""What came of a migration in a shape, in the words of the table; see `tests.lab.attempt` for the migration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.lab.attempt import Attempt, attempted
from tests.lab.known_qemus import Qemus, Treatment
from tests.lab.qemu_words import KILLED, brief, unknown
from tests.lab.qmp import QmpError
from tests.lab.vm import VmExitedError

if TYPE_CHECKING:
    from tests.lab.shape import Shape

_TRIES = 6
"""How often a migration is tried whose guest's memory QEMU may lose; see `cross`."""

LOSES = " (QEMU loses memory at times, without the proxy, too)"
"""Follows what came of a migration that was tried more than once; see `cross`."""

NOT_THERE = "QEMU has it not"
"""A shape that needs what a QEMU does not know."""

_STANDS = "refused; the guest stands until `cont`"


async def cross(qemus: Qemus, shape: Shape, here: str, there: str, treatment: Treatment) -> str:
    """Migrate a running guest through the proxy; return what came of it, as the table has it.

    A guest that stands still at its destination, with memory that is not what its registers say, is tried again if this
    happens without the proxy, too.

    Args:
        qemus: what is known of them.
        shape: what to turn on.
        here: the source's Debian release.
        there: the destination's.
        treatment: what the processors and the policy are.

    Returns:
        "untouched", "repaired", "refused", "refused: WORDS", "refused; the guest stands until `cont`", "QEMU has it
        not", "QEMU refuses: WORDS", "fails without the proxy, too: WORDS"; or in bold, what must not be.
    """
    wanted = {*shape.capabilities, *shape.source_capabilities}
    for suite in here, there:
        if wanted - await qemus.capabilities(suite):
            return NOT_THERE
    loses = False
    try:
        attempt = await attempted(qemus, shape, here, there, treatment)
        if attempt.memory_lost:
            loses = await _loses_memory(qemus, shape, here, there)
            for _ in range(_TRIES if loses else 0):
                attempt = await attempted(qemus, shape, here, there, treatment)
                if not attempt.memory_lost:
                    break
    except QmpError as error:
        return NOT_THERE if unknown(error.desc) else f"QEMU refuses: {brief(error.desc)}"
    except VmExitedError as error:
        if KILLED in error.stderr:
            raise
        return NOT_THERE if unknown(error.stderr) else f"QEMU refuses: {brief(error.stderr)}"
    if attempt.problem and not attempt.problem.startswith("hangs"):
        return f"**{attempt.problem}**"
    if attempt.arrived:
        words = _arrived(attempt, treatment, between=here != there)
        return words + LOSES if loses else words
    if attempt.report.get("outcome") == "refused":
        if attempt.stands:
            return _STANDS
        listed = "--allow-register" in attempt.words or (here != there and "--allow-drop" in attempt.words)
        return "refused" if listed and treatment is Treatment.FORBID else f"refused: {brief(attempt.words)}"
    direct = await _directly(qemus, shape, here, there)
    if direct.arrived:
        return f"**fails: {brief(attempt.words)}**"
    return f"fails without the proxy, too: {brief(attempt.words or direct.words or direct.problem)}"


async def _directly(qemus: Qemus, shape: Shape, here: str, there: str) -> Attempt:
    try:
        return await attempted(qemus, shape, here, there, Treatment.SAME, proxied=False)
    except (QmpError, VmExitedError) as error:
        return Attempt(words=str(error))


async def _loses_memory(qemus: Qemus, shape: Shape, here: str, there: str) -> bool:
    """Tell whether QEMU loses a guest's memory in this shape without a proxy, if not each time."""
    for _ in range(2 * _TRIES):
        if (await _directly(qemus, shape, here, there)).memory_lost:
            return True
    return False


def _arrived(attempt: Attempt, treatment: Treatment, *, between: bool) -> str:
    outcome, changes = attempt.report["outcome"], attempt.report["changes"]
    dropped = sum(change["action"] == "drop" for change in changes)
    if treatment is Treatment.FORBID:
        return "**let through**"
    if treatment is Treatment.SAME and not between and outcome != "unchanged":
        return "**changed**"
    if outcome == "unchanged":
        return "untouched" if attempt.untouched and treatment is Treatment.SAME else "**changed otherwise**"
    if dropped:
        # An id and a value each; and the vmdesc tells the new lengths, with fewer digits perhaps.
        placed = attempt.local and 0 <= attempt.shorter - 16 * dropped < 64
    else:
        placed = attempt.differing is not None and 0 < attempt.differing <= 8 * len(changes)
    return "repaired" if placed and outcome == "rewritten" else "**changed otherwise**"
