"""Every check over every registered method."""

from timm_robust.testing import parametrize_with_checks


@parametrize_with_checks()
def test_conformance(check) -> None:
    check()
