"""The data directory on disk: who owns it, its state file, its run directory.  Runs in the supervisor.

Guarantees
- One owner: the kernel's lock on `lock` is held from `open` to `close`, and goes with the process; no
  stale lock needs cleaning up.
- `write_state` returns when the new state is on disk, the directory entry included; a crash at any
  instant leaves the old state or the new one, whole.
- The run directory, which holds the sockets, is a real directory of ours that no other user can enter,
  with a path short enough for every socket (a Unix socket's path has at most 107 bytes).

    <data>/lock                    flock; pid and command of the holder
    <data>/state.json              see `state`
    <data>/shard-0000/             store of worker 0
    <data>/shard-0000.provisioned  marker: the store was made, so a missing one was lost
    <data>/reshard.json            journal of a change of the number of workers; there only meanwhile
    <data>/run/                    sockets: router, control, w<index>.e<epoch>
    <data>/endpoint                URL of the router, for clients; there while `perdure run` runs
    <data>/http                    URL of the gateway, likewise, if there is one
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from perdure.locate import ENDPOINT_FILE
from perdure_cli.errors import AlreadyRunning, CannotRun, StateDamaged, UnsafeDirectory
from perdure_cli.state import ClusterState, from_text, to_text

__all__ = ["DataDirectory", "SOCKET_PATH_BYTES_MAX"]

SOCKET_PATH_BYTES_MAX = 100
"""Longest path of a socket; the kernel's own limit is 107 (RELIABILITY §2.1)."""
_LONGEST_SOCKET_NAME = "w1023.e" + "9" * 12
_SHARED_FILE_SYSTEMS = frozenset(
    {"afs", "ceph", "cifs", "fuse.sshfs", "ncpfs", "nfs", "nfs4", "smb3", "smbfs"}
)
"""Their locks do not exclude other machines, and a store on them is not safe (RELIABILITY §1.6)."""


class DataDirectory:
    """A locked data directory; `with DataDirectory.open(path, command) as directory`."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self._lock = lock
        self._elsewhere: Path | None = None

    @classmethod
    def open(cls, path: Path, command: str) -> DataDirectory:
        """Makes the directory when it is missing, and locks it; `command` is what others are told.

        Raises `AlreadyRunning`, `UnsafeDirectory`, or `CannotRun` when it cannot be made or opened.
        """
        try:
            path = path.resolve()
            if not _is_utf8(path):
                raise CannotRun(
                    f"the path of the data directory is not UTF-8: {os.fsencode(path)!r}; choose another "
                    "with --data (sockets and configurations name it)"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
                _sync_directory(path.parent)
            _check_data_directory(path)
            lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise CannotRun(f"the data directory {path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 4_096, 0).decode(errors="replace").partition("\n")
            os.close(lock)
            pid = int(holder[0]) if holder[0].isdecimal() else None
            raise AlreadyRunning(path, pid, holder[2].strip()) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n{command}\n".encode(errors="backslashreplace"), 0)
        return cls(path, lock)

    def close(self) -> None:
        """Removes what clients follow, then lets go of the lock."""
        with contextlib.suppress(OSError):
            self.endpoint_file.unlink(missing_ok=True)
            self.http_file.unlink(missing_ok=True)
        if self._elsewhere is not None:
            with contextlib.suppress(OSError):
                _empty(self._elsewhere)
                self._elsewhere.rmdir()
        # The file stays: removing it could take it away from a successor that has just opened it.
        os.ftruncate(self._lock, 0)
        os.close(self._lock)

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- state

    @property
    def state_file(self) -> Path:
        """Where the state stands."""
        return self.path / "state.json"

    def read_state(self) -> ClusterState | None:
        """The state, None in a new directory.  Raises `StateDamaged` or `StateTooNew`."""
        try:
            return from_text(self.state_file.read_text("utf-8"))
        except FileNotFoundError:
            # A fresh state beside old shards would give out their epochs and slots anew.
            if shards := sorted(path.name for path in self.path.glob("shard-*")):
                raise StateDamaged(
                    f"{self.state_file} is missing but there are shards ({', '.join(shards[:4])}): "
                    "restore it with them from one and the same backup"
                ) from None
            return None
        except UnicodeDecodeError:
            raise StateDamaged(f"{self.state_file} is not text; restore it from a backup") from None

    def write_state(self, state: ClusterState) -> None:
        """Replaces the state durably; raises OSError when it may not be on disk."""
        self._replace(self.state_file, to_text(state))

    # --- shards

    def shard_path(self, index: int) -> Path:
        """Directory of worker `index`'s store."""
        return self.path / f"shard-{index:04d}"

    @property
    def reshard_journal(self) -> Path:
        """File that is there exactly while a change of the number of workers is unfinished."""
        return self.path / "reshard.json"

    # --- run directory and endpoint

    def make_run_directory(self) -> Path:
        """The sockets' directory, empty: `<data>/run`, or a private one elsewhere when that is too long.

        Raises `UnsafeDirectory` when `<data>/run` is not what it has to be.
        """
        run = self.path / "run"
        if not _fits(run):
            run = self._elsewhere = self._make_directory_elsewhere()
        else:
            with contextlib.suppress(FileExistsError):
                run.mkdir(mode=0o700)
            _check_private(run)
        _empty(run)
        return run

    def _make_directory_elsewhere(self) -> Path:
        # The same name each time, so that clients which outlive a restart find the router again. A name
        # that somebody else has taken is not used.
        digest = hashlib.blake2b(os.fsencode(self.path), digest_size=8).hexdigest()
        # The session's own directory before those that are cleaned up by age.
        folders = (*_session_directory(), Path(tempfile.gettempdir()), Path("/tmp"))  # noqa: S108 - see below
        for folder in folders:
            run = folder / f"perdure-{os.geteuid()}-{digest}"
            if not _fits(run):
                continue
            try:  # what others could enter or have made is not used
                with contextlib.suppress(FileExistsError):
                    run.mkdir(mode=0o700)
                _check_private(run)
            except (OSError, UnsafeDirectory):
                run = Path(tempfile.mkdtemp(prefix="perdure-", dir=folder))
            if _fits(run):
                return run
        raise CannotRun(
            f"the paths of {self.path} and of the temporary directory are too long for sockets: choose a "
            "shorter --data"
        )

    @property
    def endpoint_file(self) -> Path:
        """Where clients on this machine read the router's URL."""
        return self.path / ENDPOINT_FILE

    def write_endpoint(self, url: str) -> None:
        """Tells clients where the router is; raises OSError."""
        self._replace(self.endpoint_file, url + "\n")

    @property
    def http_file(self) -> Path:
        """Where others on this machine read the gateway's URL."""
        return self.path / "http"

    def write_http(self, url: str) -> None:
        """Tells where the gateway is, or with "" that there is none; raises OSError."""
        if url:
            self._replace(self.http_file, url + "\n")
        else:
            self.http_file.unlink(missing_ok=True)

    def _replace(self, path: Path, text: str) -> None:
        # The file is synced before it takes the name, the name before anybody relies on it.
        temporary = path.with_name(path.name + ".tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_directory(self.path)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_utf8(path: Path) -> bool:
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return False
    return True


def _session_directory() -> list[Path]:
    """XDG_RUNTIME_DIR where there is one that is ours alone; it goes at the user's logout."""
    folder = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    try:
        _check_private(folder)
    except (OSError, UnsafeDirectory):
        return []
    return [folder] if folder.is_absolute() else []


def _fits(run: Path) -> bool:
    return _is_utf8(run) and len(os.fsencode(run / _LONGEST_SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX


def _empty(run: Path) -> None:
    # Sockets of processes that are gone: the lock is ours, and no child of ours runs yet or any more.
    for entry in run.iterdir():
        if not entry.is_dir():
            entry.unlink(missing_ok=True)


def _check_data_directory(path: Path) -> None:
    if not path.is_dir():
        raise UnsafeDirectory(path, "is not a directory; choose another with --data")
    if path.stat().st_mode & stat.S_IWOTH:
        raise UnsafeDirectory(path, "can be written by every user; take that away: chmod o-w")
    if (kind := _file_system(path)) in _SHARED_FILE_SYSTEMS:
        raise UnsafeDirectory(path, f"is on a network file system ({kind}); choose a local disk with --data")


def _check_private(path: Path) -> None:
    facts = path.lstat()
    if not stat.S_ISDIR(facts.st_mode):
        raise UnsafeDirectory(path, "is a symbolic link or no directory; remove it")
    if facts.st_uid != os.geteuid():
        raise UnsafeDirectory(path, f"belongs to user {facts.st_uid}; it must belong to who runs Perdure")
    if facts.st_mode & 0o077:
        raise UnsafeDirectory(path, "can be entered by other users; take that away: chmod 700")


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`, "" where the kernel does not tell."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = -1, ""
    for line in lines:
        # 36 35 98:0 /root /mount/point options ... - type source options (proc(5)); later ones lie on top
        left, _, right = line.partition(" - ")
        mount = Path(left.split(" ")[4].replace("\\040", " "))
        if path.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), right.split(" ")[0]
    return kind
