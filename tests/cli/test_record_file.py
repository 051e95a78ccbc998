"""The file of `sseqbridge record`: nothing that was recorded is lost, and nothing that was there before."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from functools import partial
from pathlib import Path

import pytest

from sseqbridge import UsageError
from sseqbridge._cli.main import main
from sseqbridge._cli.recording_file import NewFile
from sseqbridge.testing import SSEServer, hold, respond, send, silence
from tests.support import in_thread, until

from .support import Capture, command

pytestmark = pytest.mark.slow

FULL = OSError(28, "No space left on device")


def events_in(file: Path) -> list[str]:
    """Return the data of the recorded events. Raises ValueError if a line is torn."""
    return [line["data"] for line in map(json.loads, file.read_text("utf-8").splitlines()) if "data" in line]


def recorded_so_far(folder: Path) -> str:
    return "".join(part.read_text("utf-8") for part in folder.glob(".*.part"))


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda value: value
)
def test_signal_keeps_the_recording(tmp_path: Path, number: signal.Signals, status: int) -> None:
    file = tmp_path / "stream.jsonl"
    with SSEServer([send("a"), send("b"), silence()]) as server, command("record", server.url, str(file)) as process:
        until(lambda: recorded_so_far(tmp_path).count("\n") == 2, 60)
        process.send_signal(number)
        assert process.communicate(timeout=60) == ("", f"sseqbridge: 2 events in {file}\n")
        assert process.returncode == status
        server.requests[0].wait_aborted(60)
    assert events_in(file) == ["a", "b"]
    assert os.listdir(tmp_path) == ["stream.jsonl"]


def test_signal_before_the_first_event_leaves_no_file(tmp_path: Path) -> None:
    with SSEServer([silence()]) as server, command("record", server.url, str(tmp_path / "file")) as process:
        server.wait_for_request(timeout=60)
        process.terminate()
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 143
    assert os.listdir(tmp_path) == []


def test_stream_without_an_event_is_recorded(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "file"
    with SSEServer([respond(204, content_type=None)]) as server:
        assert main(["record", server.url, str(file)]) == 0
    assert capsys.readouterr().err == f"sseqbridge: 0 events in {file}\n"
    assert events_in(file) == []


@pytest.mark.parametrize("exists", [True, False])
def test_full_disk_keeps_the_old_file_and_whole_lines(tmp_path: Path, exists: bool) -> None:
    """A limit on the size of files stands for the disk."""
    file = tmp_path / "stream.jsonl"
    if exists:
        file.write_text("precious")
    # In blocks of 512 bytes.
    limited = 'ulimit -f 40; exec "$@"'
    # The limit would also cut off the file of coverage, and compiled modules, which all later processes would load.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (
        SSEServer([send(f"{n:0500}") for n in range(100)]) as server,
        command("record", server.url, str(file), "--overwrite", shell=limited, env=environment) as process,
    ):
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(60) == 1
    assert "File too large" in err
    kept = tmp_path / "stream-2.jsonl" if exists else file
    assert f"the events that could be written are in {kept}" in err
    assert ("is unchanged" in err) == exists
    written = events_in(kept)
    assert 20 < len(written) < 40
    assert written == [f"{n:0500}" for n in range(len(written))]
    assert not exists or file.read_text() == "precious"
    assert len(os.listdir(tmp_path)) == 1 + exists


@pytest.mark.parametrize("overwrites", [False, True])
def test_two_recordings_into_one_file_share_nothing(tmp_path: Path, capsys: Capture, overwrites: bool) -> None:
    file = tmp_path / "stream.jsonl"
    options = ["--overwrite"] if overwrites else []
    first, second = threading.Event(), threading.Event()
    with (
        SSEServer([send("a"), hold(first), send("b")]) as one,
        SSEServer([send("c"), hold(second), send("d")]) as other,
    ):
        commands = [["record", server.url, str(file), *options] for server in (one, other)]
        running = [in_thread(partial(main, each)) for each in commands]
        until(lambda: recorded_so_far(tmp_path).count("\n") == 2, 60)
        first.set()
        assert running[0].result(30) == 0
        assert events_in(file) == ["a", "b"]
        assert capsys.readouterr().err == f"sseqbridge: 2 events in {file}\n"
        second.set()
        assert running[1].result(30) == (0 if overwrites else 1)
    if overwrites:
        assert events_in(file) == ["c", "d"]
        assert os.listdir(tmp_path) == ["stream.jsonl"]
        return
    assert events_in(file) == ["a", "b"]
    assert events_in(tmp_path / "stream-2.jsonl") == ["c", "d"]
    assert capsys.readouterr().err == (
        f"sseqbridge: {file} is unchanged; 2 events in {tmp_path / 'stream-2.jsonl'}\n"
        f"sseqbridge: another process created {file} in the meantime\n"
    )


def test_symbolic_links_to_files_are_not_followed(tmp_path: Path, capsys: Capture) -> None:
    victim = tmp_path / "victim"
    victim.write_text("victim")
    file, dangling = tmp_path / "link", tmp_path / "dangling"
    file.symlink_to(victim)
    dangling.symlink_to(tmp_path / "nowhere")
    with SSEServer([send("a")]) as server:
        for link in (file, dangling):
            assert main(["record", server.url, str(link)]) == 2
            assert "--overwrite" in capsys.readouterr().err
            assert main(["record", server.url, str(link), "--overwrite"]) == 0
            assert not link.is_symlink()
            assert events_in(link) == ["a"]
    assert victim.read_text() == "victim"
    assert not (tmp_path / "nowhere").exists()


def test_link_in_place_of_the_temporary_file_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".file.{'0' * 8}.part").symlink_to(victim)
    assert main(["record", "http://localhost", str(tmp_path / "file")]) == 2
    assert not victim.exists()


def test_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(0o600)
    umask = os.umask(0o022)
    try:
        for name, mode in (("file", 0o600), ("new", 0o644)):
            new = NewFile(tmp_path / name, overwrite=True)
            new.write("{}\n")
            assert new.finish() == tmp_path / name
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    finally:
        os.umask(umask)


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127, "a.b.c", ".hidden"])
def test_any_file_name_can_be_recorded_to(tmp_path: Path, name: str) -> None:
    with SSEServer([send("a")]) as server:
        assert main(["record", server.url, str(tmp_path / name)]) == 0
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_directory_is_refused(tmp_path: Path, capsys: Capture, options: list[str]) -> None:
    assert main(["record", "http://localhost", str(tmp_path), *options]) == 2
    assert "must be a file, got the directory" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a" * 256, "file/file"])
@pytest.mark.parametrize("options", [[], ["--overwrite"]])
def test_impossible_name_is_refused_before_the_request(
    tmp_path: Path, capsys: Capture, name: str, options: list[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["record", "http://localhost", str(tmp_path / name), *options]) == 2
    assert "cannot be created: " in capsys.readouterr().err


@pytest.mark.parametrize("shell", ['"$@" | cat', '"$@" > /dev/null | cat', 'exec 3>&1; "$@" /dev/fd/3 | cat'])
def test_open_files_are_written_directly(tmp_path: Path, shell: str) -> None:
    """/dev/stdout and the like are links to open files, and no names that could be replaced."""
    names = [] if "/dev/fd/3" in shell else ["/dev/stdout"]
    with SSEServer([send("a")]) as server, command("record", server.url, "--overwrite", *names, shell=shell) as process:
        out, err = process.communicate(timeout=60)
    assert '"data": "a"' in out or "/dev/null" in shell
    assert "1 events in /dev/" in err
    assert os.path.islink("/dev/stdout")


def test_full_device_is_no_recorded_event(capsys: Capture) -> None:
    with SSEServer([send("a")]) as server:
        assert main(["record", server.url, "/dev/full", "--overwrite"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "sseqbridge: the events that could be written are in /dev/full",
        "sseqbridge: [Errno 28] No space left on device",
    ]


def test_missing_special_file_is_refused(capsys: Capture) -> None:
    assert main(["record", "http://localhost", "/dev/fd/987", "--overwrite"]) == 2
    assert "/dev/fd/987 cannot be opened" in capsys.readouterr().err


# The file alone.


def test_failed_write_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    new = NewFile(file, overwrite=True)
    new.write("1\n")
    write = os.write

    def short(fd: int, data: bytes) -> int:
        if len(data) < 5:
            raise FULL
        return write(fd, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        with pytest.raises(OSError, match="No space"):
            new.write("22\n3333\n")
    new.write("4\n")
    assert new.error is FULL
    assert new.finish() == tmp_path / "file-2"
    assert (tmp_path / "file-2").read_text() == "1\n22\n4\n"
    assert file.read_text() == "old"


def test_interrupted_write_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = NewFile(tmp_path / "file", overwrite=False)
    write = os.write

    def interrupted(fd: int, data: bytes) -> int:
        write(fd, data[:3])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            new.write("1\n2222\n")
    assert new.error is None
    assert new.finish() == tmp_path / "file"
    assert (tmp_path / "file").read_text() == "1\n"


def test_full_disk_at_the_end_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = tmp_path / "file"
    file.write_text("old")

    def fail(fd: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", fail)
    with SSEServer([send("a")]) as server:
        assert main(["record", server.url, str(file), "--overwrite"]) == 1
    assert "No space left" in capsys.readouterr().err
    assert file.read_text() == "old"
    assert events_in(tmp_path / "file-2") == ["a"]


@pytest.mark.parametrize("overwrite", [True, False])
def test_file_that_cannot_be_renamed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool) -> None:
    new = NewFile(tmp_path / "file", overwrite=overwrite)
    new.write("1\n")

    def fail(*paths: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match=r"No space left.*the recording is in .*\.part"):
            new.finish()
    [part] = tmp_path.iterdir()
    assert part.read_text() == "1\n"


def test_existing_file_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="--overwrite"):
        NewFile(tmp_path / "file", overwrite=False)
