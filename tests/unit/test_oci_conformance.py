"""The page about the OCI runtime is correct."""

from __future__ import annotations

import pytest
from oci_conformance import MUSTS, NOTES, PAGE, TESTS, members, rewritten


def test_tables_of_the_page_are_current():
    page = PAGE.read_text()
    assert rewritten(page) == page, "run python tests/unit/oci_conformance.py"


@pytest.mark.parametrize(("file", "test"), sorted({(file, test) for _, _, file, test in MUSTS}))
def test_every_requirement_has_its_test(file, test):
    assert f"def {test}(" in (TESTS / file).read_text()


def test_every_note_is_about_a_member():
    assert set() == set(NOTES) - set(members())
