"""Names are given whole or not at all, and what a run that died has left is taken back by the next one (docs/reliability/writes.md)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
from pathlib import Path

import numpy as np
import pytest

from onnxgrow import atomic, disk, transfer
from onnxgrow.atomic import Staging, check_apart, new_folder, recover, save
from onnxgrow.errors import FileError
from onnxgrow.interrupts import stoppable, undisturbed
from onnxgrow.mapped import ready
from onnxgrow.write import stage
from tests.test_write import grown, path, run, snapshot  # noqa: F401 (path is a fixture)

POSIX = pytest.mark.skipif(os.name != "posix", reason="forks")


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def dies(act) -> None:
    """Run `act` in a process that ends as by SIGKILL: at the first `die()`, without cleaning up."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die(*_) -> None:
    signal.raise_signal(signal.SIGKILL)


# --- one file ----------------------------------------------------------------------------------------------------------


def test_a_file_is_new_or_replaced_whole(tmp_path):
    save(tmp_path / "a", b"one", overwrite=False)
    with pytest.raises(FileError, match="a exists"):
        save(tmp_path / "a", b"two", overwrite=False)
    assert (tmp_path / "a").read_bytes() == b"one"
    save(tmp_path / "a", b"two", overwrite=True)
    (tmp_path / "link").symlink_to("a")
    save(tmp_path / "link", b"three", overwrite=True)  # the link goes, what it leads to stays
    assert snapshot(tmp_path) == {"a": b"two", "link": b"three"} and not (tmp_path / "link").is_symlink()
    with pytest.raises(FileError, match="there is no folder"):
        save(tmp_path / "no" / "a", b"", overwrite=False)


@POSIX
def test_modes_are_kept_and_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "a", b"one", overwrite=False)
        assert mode_of(tmp_path / "a") == 0o640
        (tmp_path / "a").chmod(0o604)
        save(tmp_path / "a", b"two", overwrite=True)
        assert mode_of(tmp_path / "a") == 0o604
        with new_folder(tmp_path / "f") as place:
            (place / "x").touch()
        assert mode_of(tmp_path / "f") == 0o750
    finally:
        os.umask(before)


@POSIX
def test_what_comes_of_a_private_model_is_private(path, tmp_path):  # noqa: F811
    for file in path.parent.iterdir():
        file.chmod(0o600)
    stage(*grown(path), tmp_path / "out.onnx").commit()
    assert {mode_of(file) for file in tmp_path.glob("out.onnx*")} == {0o600}
    with new_folder(tmp_path / "f", like=path):
        pass
    assert mode_of(tmp_path / "f") == 0o700


def test_no_room_is_seen_before(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(FileError, match="has 5 bytes free, and 6 are needed"):
        save(tmp_path / "a", b"123456", overwrite=False)
    assert os.listdir(tmp_path) == []


# --- leftovers -----------------------------------------------------------------------------------------------------------


@POSIX
def test_the_next_run_takes_away_what_a_dead_one_left_and_nothing_else(tmp_path):
    kept = [".onnxgrow-mine", ".onnxgrow-abcdefgh", "onnxgrow-abcdefgh"]
    for name in kept[:2]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "diary.txt").touch()  # holds what this program does not put there
    (tmp_path / kept[2]).touch()
    (tmp_path / "elsewhere" / "new").mkdir(parents=True)
    (tmp_path / ".onnxgrow-linklink").symlink_to("elsewhere")
    alive = Staging(tmp_path)
    with_half = lambda staging: (staging.new / "half").write_bytes(b"x") and die()  # noqa: E731
    dies(lambda: with_half(Staging(tmp_path)))
    assert len(os.listdir(tmp_path)) == 7
    recover(tmp_path)
    assert {*os.listdir(tmp_path)} == {*kept, ".onnxgrow-linklink", "elsewhere", alive.root.name} and alive.new.is_dir() and (tmp_path / "elsewhere" / "new").is_dir()
    alive.discard()
    assert not alive.root.exists()


@POSIX
def test_a_process_that_was_forked_off_leaves_it_alone(tmp_path):
    staging = Staging(tmp_path)
    child = os.fork()
    if child == 0:
        staging.discard()
        os._exit(0)
    os.waitpid(child, 0)
    assert staging.new.is_dir()


def test_without_locks_nothing_is_taken_for_a_leftover(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "fcntl", None)
    one = Staging(tmp_path)
    save(tmp_path / "a", b"x", overwrite=False)
    assert one.new.is_dir() and (tmp_path / "a").exists()


@POSIX
@pytest.mark.parametrize("then", ["as it was", "written to"])
def test_data_whose_graph_never_came_goes_again(path, tmp_path, monkeypatch, then):  # noqa: F811
    """Killed between two names. What somebody wrote to meanwhile is theirs."""
    case = grown(path)
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "_put", die)
        dies(lambda: stage(*case, tmp_path / "out.onnx", external=True).commit())
    left = [*tmp_path.glob(".onnxgrow-*")]
    assert (tmp_path / "out.onnx.data").exists() and not (tmp_path / "out.onnx").exists() and len(left) == 1
    if then == "written to":
        with open(tmp_path / "out.onnx.data", "ab") as file:
            file.write(b"more")
        with pytest.raises(FileError, match="out.onnx.data exists"):
            stage(*case, tmp_path / "out.onnx", external=True)
        assert not left[0].exists() and (tmp_path / "out.onnx.data").exists()
        return
    stage(*case, tmp_path / "out.onnx", external=True).commit()
    assert {*os.listdir(tmp_path)} == {"source", "out.onnx", "out.onnx.data"} and np.allclose(run(tmp_path / "out.onnx"), run(path), atol=1e-4)


@POSIX
def test_old_data_goes_when_its_graph_was_replaced(path, tmp_path, monkeypatch):  # noqa: F811
    """Killed right after the graph was replaced: the new model is whole, and the next run in the folder takes the old data away."""
    case = grown(path)
    stage(*case, tmp_path / "out.onnx", external=True).commit()
    with monkeypatch.context() as patch:
        patch.setattr(Staging, "_confirm", die)
        dies(lambda: stage(*case, tmp_path / "out.onnx", external=True, overwrite=True).commit())
    assert {"out.onnx.data", "out.onnx.data.1"} <= {*os.listdir(tmp_path)} and np.allclose(run(tmp_path / "out.onnx"), run(path), atol=1e-4)
    save(tmp_path / "other", b"", overwrite=False)
    assert {*os.listdir(tmp_path)} == {"source", "out.onnx", "out.onnx.data.1", "other"} and np.allclose(run(tmp_path / "out.onnx"), run(path), atol=1e-4)


def test_a_journal_is_not_believed_beyond_its_folder(tmp_path):
    (tmp_path / "mine").write_bytes(b"x")
    folder, root = tmp_path / "folder", tmp_path / "folder" / ".onnxgrow-abcdefgh"
    (root / "new").mkdir(parents=True)
    (root / "new" / "last").touch()
    names = {"../mine": disk.identity(tmp_path / "mine"), str(tmp_path / "mine"): disk.identity(tmp_path / "mine")}
    (root / "journal").write_text(json.dumps({"last": "last", "parts": names, "obsolete": {}, "folders": []}))
    recover(folder)
    assert (tmp_path / "mine").read_bytes() == b"x" and not root.exists()


# --- data beside the graph -----------------------------------------------------------------------------------------------


def test_new_data_never_takes_the_name_of_old_data(path, tmp_path):  # noqa: F811
    case, out = grown(path), tmp_path / "out.onnx"
    found = []
    for k in range(3):
        stage(*case, out, external=True, overwrite=k > 0).commit()
        found.append([file.name for file in sorted(tmp_path.glob("out*"))])
        assert np.allclose(run(out), run(path), atol=1e-4)
    assert found == [["out.onnx", "out.onnx.data"], ["out.onnx", "out.onnx.data.1"], ["out.onnx", "out.onnx.data"]]
    stage(*case, out, external=False, overwrite=True).commit()
    assert [file.name for file in tmp_path.glob("out*")] == ["out.onnx"]


def test_data_that_another_model_reads_stays(path, tmp_path):  # noqa: F811
    case, out = grown(path), tmp_path / "out.onnx"
    stage(*case, out, external=True).commit()
    shutil.copy(out, tmp_path / "backup.onnx")
    stage(*case, out, external=True, overwrite=True).commit()
    assert np.array_equal(run(tmp_path / "backup.onnx"), run(out)) and (tmp_path / "out.onnx.data").exists()


# --- folders ---------------------------------------------------------------------------------------------------------------


def fill(target: Path, word: str, **options) -> None:
    with new_folder(target, **options) as place:
        (place / "a").write_text(word)
        (place / "sub").mkdir()
        (place / "sub" / "b").write_text(word)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(disk, "_renamed", lambda *_: False)
    fill(tmp_path / "f", "old")
    with pytest.raises(FileError, match="f exists"):
        fill(tmp_path / "f", "new")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "f", overwrite=True):
        raise RuntimeError
    assert snapshot(tmp_path) == {"f/a": b"old", "f/sub/b": b"old"}
    fill(tmp_path / "f", "new", overwrite=True)
    assert snapshot(tmp_path) == {"f/a": b"new", "f/sub/b": b"new"} and os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("how", ["fails", pytest.param("dies", marks=POSIX)])
def test_without_an_exchange_the_old_folder_comes_back(tmp_path, monkeypatch, how):
    fill(tmp_path / "f", "old")
    rename, calls = os.rename, []

    def second(old, new):
        calls.append(new)
        if len(calls) == 2:
            raise OSError(5, "Input/output error") if how == "fails" else die()
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "_renamed", lambda *_: False)
        patch.setattr(os, "rename", second)
        if how == "fails":
            with pytest.raises(FileError, match="cannot write .*f: Input/output error"):
                fill(tmp_path / "f", "new", overwrite=True)
        else:
            dies(lambda: fill(tmp_path / "f", "new", overwrite=True))
            assert not (tmp_path / "f").exists()
            recover(tmp_path)
    assert snapshot(tmp_path) == {"f/a": b"old", "f/sub/b": b"old"}


def test_a_folder_with_the_source_in_it_is_not_replaced(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "link").symlink_to("f")
    for target in (tmp_path / "f", tmp_path / "link", tmp_path, tmp_path / "x" / ".." / "f"):
        with pytest.raises(FileError, match="holds the source"):
            check_apart(target, tmp_path / "f" / "model.onnx")
    check_apart(tmp_path / "f2", tmp_path / "f" / "model.onnx")


# --- the source meanwhile ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "how"), [
    ("was changed while it was read", lambda p: os.utime(p, ns=(1, 1))),
    ("was changed while it was read", lambda p: (shutil.copy2(p, p.with_name("x")), os.replace(p.with_name("x"), p))),
    ("went away while it was read|cannot read .*: No such file", lambda p: p.rename(p.with_name("x")))])
@pytest.mark.parametrize("when", ["reading", "validating"])
def test_a_source_that_changes_is_no_source(path, tmp_path, words, how, when):  # noqa: F811
    case = grown(path)
    data = next(iter(case[0].data.values()), path)
    done = []
    with pytest.raises(FileError, match=words):
        with stage(*case, tmp_path / "out.onnx", progress=lambda *_: when == "reading" and (done or done.append(how(data)))) as staged:
            how(data)
            staged.commit()
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux")
def test_a_mapped_file_that_is_cut_is_an_error_and_no_signal(tmp_path):
    (tmp_path / "w").write_bytes(bytes(1 << 20))
    array = np.memmap(tmp_path / "w", np.uint8, "r")
    ready(array), ready(array[5:70_000])
    os.truncate(tmp_path / "w", 4096)
    ready(array[:4096])
    with pytest.raises(FileError, match="cannot read the weights"):
        ready(array)


def test_an_error_that_the_early_sync_meets_is_not_lost(path, tmp_path, monkeypatch):  # noqa: F811
    """The kernel tells it once: the sync at the end finds nothing wrong any more."""
    case, told = grown(path), []

    def sync(_):
        told.append(1)
        if len(told) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(transfer, "FLUSH_SECONDS", 0)
    monkeypatch.setattr(transfer.os, "fdatasync", sync, raising=False)
    jobs = transfer.jobs
    monkeypatch.setattr("onnxgrow.write.jobs", lambda *arguments: [job for job in jobs(*arguments) if told or _wait(told)].__iter__())
    with pytest.raises(FileError, match="Input/output error"):
        stage(*case, tmp_path / "out.onnx")
    assert os.listdir(tmp_path) == ["source"]


def _wait(told: list) -> bool:
    import time

    until = time.monotonic() + 10
    while not told and time.monotonic() < until:
        time.sleep(0.001)
    return True


# --- signals -------------------------------------------------------------------------------------------------------------


@POSIX
def test_sigterm_ends_a_command_like_ctrl_c():
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with stoppable():
        signal.raise_signal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, before)


@POSIX
def test_a_step_that_is_not_cut_in_two():
    seen = []
    with pytest.raises(KeyboardInterrupt), stoppable(), undisturbed():
        signal.raise_signal(signal.SIGTERM)
        seen.append("to the end")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it
    with pytest.raises(KeyboardInterrupt), undisturbed():
        signal.raise_signal(signal.SIGINT)
        seen.append("to the end")
    signal.signal(signal.SIGINT, before)
    assert len(seen) == 2
