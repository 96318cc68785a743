"""CONFIGURATION: read whole, byte by byte, with more behind it; what it may not say."""

import pytest

from formats.errors import MalformedStreamError, UnsupportedFeatureError
from formats.stream.configuration import read_configuration, true_page_bits
from formats.stream.events import Configuration
from tests.streams import EOF, be32, configuration, configuration_subsection

UUID = bytes(range(16))
FULL = configuration("virt-9.9", page_bits=16, capabilities=["xbzrle", "x-ignore-shared"], uuid=UUID)


def read(data: bytes, *, take_mapped_ram: bool = False) -> Configuration | None:
    return read_configuration(memoryview(data), 8, take_mapped_ram=take_mapped_ram)


def test_whole_byte_by_byte_and_with_trailing_data() -> None:
    expected = Configuration(
        8, FULL, machine="virt-9.9", page_bits=16, capabilities=("xbzrle", "x-ignore-shared"), uuid=UUID
    )
    for length in range(len(FULL) + 1):
        assert read(FULL[:length]) is None, "a subsection may follow"
    for trailing in EOF, b"\x01" + bytes(100):
        assert read(FULL + trailing) == expected


@pytest.mark.parametrize(
    ("machine", "said", "true"),
    [("virt-9.9", None, 12), ("virt-2.7", None, 10), ("virt-2.7", 12, 12), ("virt-2.6", None, 10), ("", 14, 14)],
)
def test_the_page_size(machine: str, said: int | None, true: int) -> None:
    found = read(configuration(machine, page_bits=said) + EOF)
    assert found is not None
    assert (found.machine, found.page_bits, true_page_bits(found)) == (machine, said, true)
    assert (found.capabilities, found.uuid) == ((), None)


@pytest.mark.parametrize("bits", [9, 17])
def test_page_sizes_that_no_arm_has(bits: int) -> None:
    with pytest.raises(MalformedStreamError, match=f"target pages of {bits} bits") as caught:
        read(configuration(page_bits=bits) + EOF)
    assert (caught.value.offset, caught.value.section) == (8, "configuration")


def test_mapped_ram_is_for_files() -> None:
    stream = configuration(capabilities=["mapped-ram"]) + EOF
    found = read(stream, take_mapped_ram=True)
    assert found is not None
    assert found.capabilities == ("mapped-ram",)
    with pytest.raises(UnsupportedFeatureError, match="mapped-ram is not supported; it is for files"):
        read(stream)


def test_multifd_is_refused_in_a_file_too() -> None:
    with pytest.raises(UnsupportedFeatureError, match="multifd is not supported; turn the capability"):
        read(configuration(capabilities=["multifd"]) + EOF, take_mapped_ram=True)


def test_an_unknown_subsection() -> None:
    start = configuration()
    with pytest.raises(UnsupportedFeatureError, match="'configuration/new' is not known") as caught:
        read(start + configuration_subsection("new", b"") + EOF)
    assert caught.value.offset == 8 + len(start)


def test_an_endless_name() -> None:
    with pytest.raises(MalformedStreamError, match="does not parse"):
        read(b"\x07" + be32(256) + bytes(300))
