"""Which iterable sections a stream has, and the one at hand."""

import pytest

from formats.errors import MalformedStreamError, UnlocatableSectionError
from formats.iterable.sections import IterableSections
from tests.streams import RAM_EOS, ram_page, ram_setup, ram_zero

SETUP = ram_setup({"a": 0x10000}) + RAM_EOS
ZEROES = ram_zero(0, "a") + ram_zero(0x1000) + ram_zero(0x2000)
PAGES = ram_page(0, bytes(4096), "a") + ram_page(0x1000, bytes(4096))


def read(sections: IterableSections, data: bytes) -> tuple[int, bool]:
    return sections.read(memoryview(data), 0)


def begun() -> IterableSections:
    """Return the sections of a stream in which `ram`, as section 2, has started."""
    sections = IterableSections()
    sections.start(2, "ram", 0, 4, 100)
    assert read(sections, SETUP) == (len(SETUP), True)
    sections.end(2, 100)
    return sections


def test_one_section_to_its_end() -> None:
    sections = IterableSections()
    started = sections.start(2, "ram", 0, 4, 100)
    assert (started.name, started.instance_id, started.version_id, started.label) == ("ram", 0, 4, "'ram' instance 0")
    assert sections.at_hand is started
    assert read(sections, SETUP + b"\x7e") == (len(SETUP), True)
    sections.end(2, 100)
    assert sections.go_on(2, 200, last_part=False) is started
    assert read(sections, PAGES) == (len(PAGES), False)
    assert read(sections, RAM_EOS) == (len(RAM_EOS), True)
    sections.end(2, 300)
    assert sections.go_on(2, 400, last_part=True) is started
    assert sections.ram is not None
    assert sections.ram.full_pages == 2


def test_before_and_between_sections() -> None:
    assert IterableSections().ram is None
    assert IterableSections().to_come
    assert begun().to_come
    assert IterableSections().at_hand is None
    assert begun().at_hand is None


def test_another_one_is_still_to_come() -> None:
    sections = begun()
    sections.start(3, "dirty-bitmap", 0, 1, 200)
    sections.go_on(2, 300, last_part=True)
    assert sections.to_come
    sections.go_on(3, 400, last_part=True)
    assert not sections.to_come


def test_what_the_configuration_said_counts() -> None:
    sections = IterableSections()
    sections.page_bits = 16
    sections.start(2, "ram", 0, 4, 100)
    page = ram_page(0, bytes(1 << 16), "a")
    read(sections, SETUP)
    assert read(sections, page + RAM_EOS) == (len(page) + len(RAM_EOS), True)


@pytest.mark.parametrize(
    ("records", "amid"),
    [
        (ZEROES, True),
        (ZEROES[:-5], True),
        (PAGES, True),
        (PAGES + ZEROES, True),
        (PAGES[:-1], False),
        (ZEROES + PAGES[:-4000], False),
    ],
    ids=["zeroes", "cut", "pages", "both", "cut page", "another cut page"],
)
def test_among_small_records(records: bytes, amid: bool) -> None:
    for last_part in False, True:
        sections = begun()
        assert not sections.amid_small_records
        sections.go_on(2, 200, last_part=last_part)
        assert read(sections, records) == (len(records), False)
        assert sections.amid_small_records == (amid and not last_part)


def test_a_section_that_starts_twice() -> None:
    with pytest.raises(MalformedStreamError, match="section 2 starts twice") as caught:
        begun().start(2, "ram", 0, 4, 300)
    assert caught.value.offset == 300


def test_a_section_that_has_not_started() -> None:
    with pytest.raises(MalformedStreamError, match="section 3 goes on without a start") as caught:
        begun().go_on(3, 300, last_part=True)
    assert caught.value.offset == 300


def test_records_that_are_not_known() -> None:
    with pytest.raises(UnlocatableSectionError, match="its end cannot be told; detach the device") as caught:
        begun().start(3, "spapr/htab", 1, 2, 300)
    assert (caught.value.offset, caught.value.section) == (300, "'spapr/htab' instance 1")


def test_the_footer_of_another_section() -> None:
    sections = begun()
    sections.go_on(2, 300, last_part=False)
    with pytest.raises(MalformedStreamError, match="names section 7, not 2") as caught:
        sections.end(7, 400)
    assert (caught.value.offset, caught.value.section) == (400, "'ram' instance 0")
