"""A damaged copy is set aside so that whoever opens its directory next knows, whenever the process dies."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from zbroker.errors import CopyDamagedError
from zbroker.storage.files import Files
from zbroker.workers.open_copy import SUSPECT_MARK, check_not_suspect, set_aside


def test_a_death_while_a_copy_is_set_aside_leaves_no_copy_that_looks_sound(tmp_path: Path) -> None:
    class Dies(Files):
        left = 0

        def rename(self, source: Path, target: Path) -> None:
            if not self.left:
                raise InterruptedError
            self.left -= 1
            super().rename(source, target)

    files, directory = Dies(), tmp_path / "t00000001-0"
    for left in range(1, 5):  # the first is the mark
        for name in ("a.log", "b.log", "b.index"):
            directory.mkdir(exist_ok=True)
            (directory / name).write_bytes(b"damaged")
        files.left = left
        with suppress(InterruptedError):
            set_aside(directory, CopyDamagedError("flipped"), files)
        with pytest.raises(CopyDamagedError):
            check_not_suspect(directory, files)
    assert [path.name for path in directory.iterdir()] == [SUSPECT_MARK]
    assert sorted(path.name for path in (tmp_path / "t00000001-0.damaged").iterdir()) == ["a.log", "b.index", "b.log"]
