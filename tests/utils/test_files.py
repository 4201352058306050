"""Files written whole or not at all."""

from __future__ import annotations

import pytest

from timm_robust.utils.files import write_atomically


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")

    def half(path):
        path.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, half)
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
