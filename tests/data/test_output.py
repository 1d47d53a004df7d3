import pytest

from helm_megatron.data.errors import DataError
from helm_megatron.data.output import staged


def test_targets_appear_only_when_the_block_succeeds(tmp_path):
    targets = [tmp_path / "new" / "a", tmp_path / "new" / "b"]
    with staged(targets, overwrite=False) as paths:
        for path in paths:
            path.write_text(path.name)
        assert not any(target.exists() for target in targets)
    assert [target.read_text() for target in targets] == ["a", "b"]
    assert set(targets[0].parent.iterdir()) == set(targets)


def test_failure_keeps_what_was_there_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), staged([target], overwrite=True) as [path]:
        path.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_existing_target_needs_overwrite(tmp_path):
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(DataError, match="--overwrite"), staged([target], overwrite=False):
        pytest.fail("not refused")
    with staged([target], overwrite=True) as [path]:
        path.write_text("new")
    assert target.read_text() == "new"


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(DataError, match="cannot be written"),
        staged([tmp_path / "file" / "a"], overwrite=False),
    ):
        pytest.fail("not refused")
