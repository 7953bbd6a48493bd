"""Folders that tests read."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
"""The checkout."""

SHARED = ROOT.parent / "shared"
"""Images and benchmark tasks beside the checkout."""

HELPERS = TESTS / "helpers"
FIXTURES = TESTS / "fixtures"
