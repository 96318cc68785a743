"""The words by which files and options name registers, their values, and processors."""

import re
from typing import Final

from formats.arm.processor_sets import Processors, UnknownProcessorError, parse_processors
from formats.arm.sysreg import Kind, UnknownRegisterError, describe, parse_register
from proxy.errors import ConfigError

NO_MIDR: Final = "none"
"""How a whitelist names streams that hold no MIDR_EL1, as those of TCG guests."""

_NUMBER: Final = re.compile(r"0x[0-9a-f]{1,32}|0|[1-9][0-9]{0,31}", re.ASCII | re.IGNORECASE)


def register_id(name: str, where: object) -> int:
    """Return the id of a register that a setting names.

    Raises:
        ConfigError: There is no such register; `where`, written out, names the file and the key.
    """
    try:
        return parse_register(name)
    except UnknownRegisterError as error:
        raise ConfigError(f"{where}: {error}") from error


def register_value(text: str, where: object) -> int:
    """Return the register value that a setting gives: hexadecimal with 0x, or decimal, of at most 64 bits.

    Raises:
        ConfigError: It is no such number; `where`, written out, names the file and the key.
    """
    value = int(text, 0) if _NUMBER.fullmatch(text) else -1
    if not 0 <= value < 1 << 64:
        raise ConfigError(f"{where}: {text!r} is no register value; write it as 0x411fd070")
    return value


def one_midr(text: str, where: str) -> int:
    """Return the MIDR_EL1 value of one processor, named as a whitelist names it, or by that value.

    Raises:
        ConfigError: It names none, or several; `where` names the option.
    """
    if _NUMBER.fullmatch(text.strip()):
        midr = register_value(text.strip(), where)
        if not 0 < midr < 1 << 32:
            raise ConfigError(f"{where}: {text!r} is no MIDR_EL1 value: it has 32 bits, as 0x411fd070 has")
        return midr
    processors = whitelisted_processors(text, where)
    if processors.midr is None:
        raise ConfigError(
            f"{where}: {text!r} is {processors}; say which, with a revision after it, as in 'cortex-a57 r1p3', or by "
            "MIDR_EL1's value, as 0x411fd073"
        )
    return processors.midr


def parse_source(text: str, where: str) -> Processors | None:
    """Return processors that guests may come from; None for the word that stands for streams without a processor id.

    Raises:
        ConfigError: It is neither; `where` names the file and the key, or the option.
    """
    return None if text.strip().lower() == NO_MIDR else whitelisted_processors(text, where)


def whitelisted_processors(text: str, where: str) -> Processors:
    """Return the processors that a whitelist names; see `formats.arm.processor_sets.parse_processors`.

    Raises:
        ConfigError: It names none; `where` names the file and the key, or the option.
    """
    try:
        return parse_processors(text)
    except UnknownProcessorError as error:
        raise ConfigError(f"{where}: {error}") from error


def suggested(name: str, names: list[str]) -> str:
    """Return what to add to an error about an unknown name: names that look like it, or all of them."""
    import difflib  # for errors only

    close = difflib.get_close_matches(name, names, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; it has {', '.join(names)}" if names else ""


def host_register(name: str, where: str) -> int:
    """Return the id of a register whose value belongs to the host: processor, caches, firmware.

    Raises:
        ConfigError: There is no such register, or its value belongs to the guest.
    """
    register = describe(register_id(name, where))
    if not register.invariant and register.kind not in (Kind.FIRMWARE, Kind.FEATURE_BITMAP):
        raise ConfigError(
            f"{where}: {register.name} is of kind {register.kind.value}: the guest's own, and never touched"
        )
    return register.id


def invariant_register(name: str, where: str) -> int:
    """Return the id of a register that may be listed for a swap.

    Raises:
        ConfigError: There is no such register, or it belongs to the guest or the firmware.
    """
    register = describe(register_id(name, where))
    if not register.invariant:
        raise ConfigError(
            f"{where}: {register.name} is of kind {register.kind.value}, not an invariant register, and never swapped"
        )
    return register.id


def droppable_register(name: str, where: str) -> int:
    """Return the id of a register that may be listed to be left out where the destination lacks it.

    Raises:
        ConfigError: There is no such register, or it belongs to the firmware.
    """
    register = describe(register_id(name, where))
    if register.kind in (Kind.FIRMWARE, Kind.FEATURE_BITMAP):
        raise ConfigError(f"{where}: {register.name} is of kind {register.kind.value}, and never left out")
    return register.id
