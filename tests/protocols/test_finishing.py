"""A cell's folder that comes from a worker replaces the old one, wherever a kill stops it."""

import os

import pytest

from fastprompt.protocols.finishing import _files, _put, _tidy

CALLS = ("open", "fsync", "replace", "rename", "unlink", "mkdir", "rmdir")
OLD = {"config.json": b"old", "metrics.jsonl": b"1\n"}
NEW = {"config.json": b"new", "evaluations/clean/result.json": b"{}", "metrics.jsonl": b"1\n2\n"}


class Killed(BaseException):
    """What stands for SIGKILL: nothing is written any more."""


def until(moment, function, *arguments):
    """Call the function, stopped before its ``moment``-th write; the number of writes."""
    done = 0
    with pytest.MonkeyPatch.context() as patch:

        def watched(real):
            def call(*given, **options):
                nonlocal done
                # reading a folder writes nothing
                if real is not os.open or given[1] & (os.O_WRONLY | os.O_RDWR):
                    if done == moment:
                        raise Killed
                    done += 1
                return real(*given, **options)

            return call

        for name in CALLS:
            patch.setattr(os, name, watched(getattr(os, name)))
        try:
            function(*arguments)
        except Killed:
            return None
    return done


def whole(path):
    """The files of a folder, which are all of the old or all of the new ones."""
    files = _files(path)
    assert files in ({}, OLD, NEW)
    assert [each.name for each in path.parent.iterdir()] in ([path.name], [])
    return files


@pytest.mark.parametrize("before", [{}, OLD], ids=["no folder", "a folder"])
def test_a_folder_is_the_old_or_the_new_one(tmp_path, before):
    seen, moment = [], 0
    while True:
        path = tmp_path / str(moment) / "cell"
        path.parent.mkdir()
        if before:
            _put(path, before)
            assert whole(path) == before
        ended = until(moment, _put, path, NEW) is not None
        # a stop of what tidies up is tidied up, too
        again = 0
        while until(again % 20, _tidy, path) is None:
            again += 1
        seen.append(whole(path))
        if ended:
            break
        moment += 1
    assert seen[-1] == NEW
    switch = seen.index(NEW)
    assert 0 < switch <= moment
    assert all(each == before for each in seen[:switch])
    assert all(each == NEW for each in seen[switch:])


def test_temporary_files_and_the_lock_are_not_sent(tmp_path):
    for name in ("a.json", ".a.json.0123abcd.tmp", ".lock", "deep/b"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert _files(tmp_path) == {"a.json": b"1", "deep/b": b"1"}
