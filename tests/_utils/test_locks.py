"""One process at a time writes to a folder, and a killed one keeps nobody out."""

import errno
import os
import signal
import threading

import pytest
from helpers import processes

from fastprompt._utils.locks import LOCK, holding, is_free, locked

fcntl = pytest.importorskip("fcntl", reason="needs flock")


def refused(folder, name="out"):
    with (
        pytest.raises(BlockingIOError, match=f"^{name}: another process") as error,
        locked(folder, name),
    ):
        pass
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["out", "--resume"])
def test_the_second_process_is_told_until_the_first_is_killed(tmp_path, name):
    with processes.locking(tmp_path):
        refused(tmp_path, name)
    with locked(tmp_path, name):  # at once
        pass


def test_a_child_of_a_killed_process_holds_no_lock(tmp_path):
    """As a data loader's workers, which live on for seconds."""
    children = []

    def fork():
        children.append(os.fork())
        if children[0]:
            (tmp_path / "forked").write_text(f"{children[0]}\n")
        signal.pause()

    with processes.locking(tmp_path, fork):
        while not (tmp_path / "forked").exists() or not (tmp_path / "forked").read_text():
            pass
    child = int((tmp_path / "forked").read_text())
    try:
        with locked(tmp_path, "out"):
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_thread_may_take_its_lock_again_and_another_may_not(tmp_path, monkeypatch):
    told = []

    def other():
        try:
            with locked(tmp_path, "out"):
                told.append(False)
        except BlockingIOError:
            told.append(True)

    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    with locked(tmp_path, "out"), locked(tmp_path / "link", "out"):
        with locked(type(tmp_path)(), "out"):
            pass
        thread = threading.Thread(target=other)  # after an inner hold ended
        thread.start()
        thread.join()
    assert told == [True]
    other()
    assert told == [True, False]


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, None])
def test_a_file_system_without_working_locks_is_refused(tmp_path, monkeypatch, error):
    def flock(handle, operation):
        if error is not None:
            raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with (
            pytest.raises(OSError, match=r"^(\[.*\] )?out: .*locks") as raised,
            locked(tmp_path, "out"),
        ):
            pytest.fail("entered without a lock")
        assert raised.value.errno == error
        assert str(tmp_path) in str(raised.value)
    with locked(tmp_path, "out"):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(NotADirectoryError, match=r"^out: .* file"), locked(tmp_path / "a", "out"):
        pass


def test_the_lock_removes_what_killed_writes_left(tmp_path):
    (tmp_path / ".a.json.0123abcd.tmp").touch()
    assert is_free(tmp_path)
    with locked(tmp_path, "out"):
        assert {p.name for p in tmp_path.iterdir()} == {LOCK}
    assert is_free(tmp_path)
    assert is_free(tmp_path / "none")
    (tmp_path / "job.json").touch()
    assert is_free(tmp_path, "job.json")
    assert not is_free(tmp_path)


def test_one_that_waits_goes_on_when_the_lock_was_removed(tmp_path):
    """As banks do, whose lock is removed once they are whole."""
    path, entered = tmp_path / "lock", []

    def other():
        with holding(path, "bank_dir", wait=True):
            entered.append(path.exists())

    with holding(path, "bank_dir"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.2)
        assert entered == []
        path.unlink()
    thread.join(30)
    assert entered == [True]
