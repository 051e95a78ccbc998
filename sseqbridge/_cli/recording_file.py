"""The file that `sseqbridge record` writes. Runs on the main thread.

Invariants: FILE is never seen half-written, and an existing FILE is replaced only by a recording without a write
error. No symbolic link to a file is followed. Recorded lines are removed by nothing here: if they cannot take the name
FILE, they take another one, which `finish` returns.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
from pathlib import Path

from sseqbridge._exceptions import UsageError

__all__ = ["NewFile", "OpenFile", "is_replaceable"]

# Windows has O_BINARY and no O_NOFOLLOW.
_FLAGS = os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_CREATE = _FLAGS | os.O_CREAT | os.O_EXCL
# The part of FILE's name in that of the temporary file: a name has 255 bytes at most, a character 4.
_NAME_CHARACTERS = 40


def is_replaceable(file: Path) -> bool:
    """Whether `file` is not the name of a pipe or device, which is written directly.

    /dev and /proc have names of open files, such as /dev/stdout and the /dev/fd/63 of a shell's `>(command)`.
    """
    path = os.path.abspath(file)
    if path.startswith(("/dev/", "/proc/")) and not path.startswith("/dev/shm/"):
        return False
    try:
        mode = file.stat().st_mode
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    except OSError:
        # There is no such file yet; or a link without a target, which is replaced.
        return True


class OpenFile:
    """A pipe or device that is written directly."""

    def __init__(self, file: Path) -> None:
        """Open it; this waits for the reader of a named pipe. Raises UsageError if it cannot be opened."""
        self._file = file
        # The first write error.
        self.error: OSError | None = None
        try:
            self._fd = os.open(file, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0))
        except OSError as exc:
            raise UsageError(f"{file} cannot be opened: {exc.strerror}") from exc

    def write(self, lines: str) -> None:
        """Write lines. Raises OSError."""
        data = lines.encode()
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as exc:
            self.error = self.error or exc
            raise

    def finish(self) -> Path | None:
        """Close it, and return its name."""
        os.close(self._fd)
        return self._file


class NewFile:
    """A new file with a temporary name beside FILE, which takes the name FILE when it is finished."""

    def __init__(self, file: Path, *, overwrite: bool) -> None:
        """Create it. Raises UsageError if it cannot be created, or FILE exists and must not be replaced."""
        self._file = file
        self._overwrite = overwrite
        # The first write error.
        self.error: OSError | None = None
        # The number of bytes in whole lines.
        self._size = 0
        exists = _exists(file)
        if exists and file.is_dir():
            raise UsageError(f"FILE must be a file, got the directory {file}")
        if exists and not overwrite:
            raise UsageError(f"{file} must not exist yet. Pass --overwrite to replace it.")
        self._part = file.with_name(f".{file.name[:_NAME_CHARACTERS]}.{secrets.token_hex(4)}.part")
        try:
            # O_APPEND: lines that are written after a write error follow the whole lines.
            self._fd = os.open(self._part, _CREATE | os.O_APPEND, 0o666)
        except OSError as exc:
            raise UsageError(f"{file} cannot be created: {exc.strerror}") from exc
        _copy_mode(file, self._part)

    def write(self, lines: str) -> None:
        """Append lines. If that raises (OSError, an interrupt), the file ends with the last line that was written."""
        data = lines.encode()
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except BaseException as exc:
            # The size of the file, since an interrupt can come before `done` is assigned.
            written = os.fstat(self._fd).st_size - self._size
            self._size += data.rfind(b"\n", 0, written) + 1
            os.ftruncate(self._fd, self._size)
            if isinstance(exc, OSError):
                self.error = self.error or exc
            raise
        self._size += len(data)

    def finish(self) -> Path | None:
        """Close the file and give it its name; return that, or None if nothing was recorded.

        The name is another one than FILE if FILE exists and must not be replaced: after a write error, or if another
        process has created FILE. Raises OSError if the file keeps its temporary name, which is in the message.
        """
        try:
            # Some file systems report only now that the disk is full.
            os.fsync(self._fd)
        except OSError as exc:
            self.error = self.error or exc
        finally:
            os.close(self._fd)
        if not self._size:
            self._part.unlink()
            return None
        try:
            return self._give_name()
        except OSError as exc:
            raise OSError(f"{exc}; the recording is in {self._part}") from exc

    def _give_name(self) -> Path:
        if self._overwrite and self.error is None:
            self._part.replace(self._file)
            return self._file
        name = _created_name(self._file)
        try:
            self._part.replace(name)
        except BaseException:
            name.unlink()
            raise
        return name


def _exists(file: Path) -> bool:
    """Whether a file, directory or link has this name. Raises UsageError if no file can have it."""
    try:
        file.lstat()
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise UsageError(f"{file} cannot be created: {exc.strerror}") from exc
    return True


def _copy_mode(file: Path, part: Path) -> None:
    """Give a new file the permissions of the file that it replaces, if there is one."""
    with contextlib.suppress(OSError):
        mode = file.lstat().st_mode
        if stat.S_ISREG(mode):
            part.chmod(stat.S_IMODE(mode))


def _created_name(file: Path) -> Path:
    """Create an empty file named FILE, or FILE with the first free number before its suffix; return its name."""
    name, numbers = file, itertools.count(2)
    while True:
        try:
            os.close(os.open(name, _CREATE, 0o600))
            return name
        except FileExistsError:
            name = file.with_name(f"{file.stem}-{next(numbers)}{file.suffix}")
