"""Group commit: the only writer of a worker's store. The state is the loop thread's, the disk is a thread's.

Guarantees:

- What is put becomes durable in the order of its groups; a group is on disk whole or not at all, and none
  without all earlier ones.
- `on_durable(group)` runs once per group, in order, in the loop thread, after its writes would survive a
  loss of power. An output that waits for it can never be un-happened.
- A failed write ends the process at once (`fail_stop`). Nothing is acknowledged after it, because nobody
  knows what is on disk, and LevelDB goes on with a broken log (RELIABILITY §0 rules 1 and 2).

While the thread syncs one group, the loop fills the next: the slower the disk, the larger the groups. The
loop thread builds the batch and hands it over whole, so that the thread needs the interpreter lock only
to fetch it and to tell that it is written.

`GroupCommit` is the pure part: which writes are in which group, and which group is where. `Committer` adds
the thread; `InlineCommitter` does without one.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, NoReturn

from perdure.errors import StorageError
from perdure_storage.endings import exit_of_write
from perdure_storage.engine import Batch, Engine
from perdure_storage.keys import SEQUENCE_KEY
from perdure_storage.records import seal_number, unseal_number

__all__ = [
    "Committer",
    "GroupCommit",
    "InlineCommitter",
    "SealedGroup",
    "fail_stop",
    "read_sequence",
]

_STDERR: Final = 2
_ATOMIC_BYTES: Final = 4096
"""A pipe that poll() calls writable takes this much without blocking (PIPE_BUF)."""


def fail_stop(error: BaseException) -> NoReturn:
    """Ends the process now: no exit handlers, no closing of the store, nothing sent (RELIABILITY §3b G3)."""
    line = f"perdure: commit failed, the process ends: {type(error).__name__}: {error}\n".encode()
    try:
        # Whoever reads our stderr may hang; a dying process must not wait for it.
        poll = select.poll()
        poll.register(_STDERR, select.POLLOUT)
        if poll.poll(0):
            os.write(_STDERR, line[: _ATOMIC_BYTES - 1].rstrip(b"\n") + b"\n")
    finally:
        os._exit(exit_of_write(error))


def read_sequence(engine: Engine) -> int:
    """Number of groups that were ever committed to this store: its durable commit sequence."""
    return unseal_number(SEQUENCE_KEY, engine.get(SEQUENCE_KEY)) or 0


class SealedGroup(NamedTuple):
    """A group that takes no more writes: its number, its batch, and its size in bytes of keys and values."""

    group: int
    batch: Batch
    size: int


class GroupCommit:
    """The pure part: groups pass open -> sealed -> in flight -> durable, one by one, in order.

    One group is open, any number are sealed, at most one is in flight. Each group also carries the store's
    commit sequence, which grows by one with each group over all incarnations.
    """

    __slots__ = (
        "_batch",
        "_batch_delete",
        "_closed_bytes",
        "_group_bytes_max",
        "_new_batch",
        "_sealed",
        "_sequence_before",
        "batch_put",
        "durable",
        "group",
        "in_flight",
        "on_seal",
        "open_bytes",
    )

    def __init__(self, new_batch: Callable[[], Batch], *, sequence: int, group_bytes_max: int) -> None:
        self.group = 1
        self.durable = 0
        self.in_flight: SealedGroup | None = None
        self.on_seal: Callable[[], None] | None = None
        """Runs before the open group is closed, and may still put into it what it has gathered."""
        self._sealed: deque[SealedGroup] = deque()
        self._closed_bytes = 0  # of the sealed groups and the one in flight
        self._sequence_before = sequence
        self._group_bytes_max = group_bytes_max
        self._new_batch = new_batch
        # Bound once per group: `put` runs for every row of every turn.  Who does without its frame (0.06 µs)
        # calls `batch_put` and adds the sizes of key and value to `open_bytes`.
        self.batch_put: Callable[[bytes, bytes], None]
        self._batch_delete: Callable[[bytes], None]
        self._open_batch()

    @property
    def sequence(self) -> int:
        """The durable commit sequence."""
        return self._sequence_before + self.durable

    @property
    def dirty(self) -> bool:
        """Whether the open group holds something."""
        return self.open_bytes > 0

    @property
    def uncommitted_bytes(self) -> int:
        """Keys and values that are not durable yet."""
        return self._closed_bytes + self.open_bytes

    def put(self, key: bytes, value: bytes) -> None:
        """Adds a write to the open group."""
        self.batch_put(key, value)
        self.open_bytes += len(key) + len(value)

    def delete(self, key: bytes) -> None:
        """Adds a removal to the open group."""
        self._batch_delete(key)
        self.open_bytes += len(key)

    def flush(self) -> SealedGroup | None:
        """End of a tick: seals the open group if it can be written now or is large enough.

        Returns the group to write now, if none is in flight.
        """
        if self.open_bytes and (self.in_flight is None or self.open_bytes >= self._group_bytes_max):
            self._seal()
        return self._take()

    def written(self, group: int, *, keep_open: bool = False) -> SealedGroup | None:
        """The group in flight is durable. Returns the group to write next, if anything waits.

        When nothing was sealed meanwhile, that is the open group: no tick may come soon to flush it.
        With `keep_open` somebody else sees to that.
        """
        done = self.in_flight
        if done is None or done.group != group:
            raise RuntimeError(f"group {group} is not in flight")
        self.in_flight = None
        self.durable = group
        self._closed_bytes -= done.size
        if self.open_bytes and not self._sealed and not keep_open:
            self._seal()
        return self._take()

    def close(self) -> None:
        """Writes from now on are an error instead of being lost."""
        self.batch_put = self._batch_delete = _refuse_write

    def validate(self) -> None:
        """Raises AssertionError when the groups are not numbered without gaps, or the bytes do not add up."""
        closed = [*([self.in_flight] if self.in_flight else []), *self._sealed]
        assert [group.group for group in closed] == list(range(self.durable + 1, self.group))
        assert self._closed_bytes == sum(group.size for group in closed)
        assert all(group.size > 0 for group in closed)
        assert not self._sealed or self.in_flight is not None

    def _seal(self) -> None:
        if self.on_seal is not None:
            self.on_seal()
        self.batch_put(SEQUENCE_KEY, seal_number(SEQUENCE_KEY, self._sequence_before + self.group))
        self._sealed.append(SealedGroup(self.group, self._batch, self.open_bytes))
        self._closed_bytes += self.open_bytes
        self.group += 1
        self._open_batch()

    def _take(self) -> SealedGroup | None:
        if self.in_flight is not None or not self._sealed:
            return None
        self.in_flight = self._sealed.popleft()
        return self.in_flight

    def _open_batch(self) -> None:
        self._batch = self._new_batch()
        self.batch_put = self._batch.put
        self._batch_delete = self._batch.delete
        self.open_bytes = 0


def _refuse_write(*_: bytes) -> NoReturn:
    raise StorageError("the store is closed; this write came after the last commit")


class Committer:
    """Group commit of one worker. Every method belongs to the loop thread.

    `notify` is ``loop.call_soon_threadsafe``. `on_failure` runs in the thread whose write failed and should
    not return; if it does, as in tests, nothing is written or told any more. `submit`, when given, takes
    the place of the thread: it is called with a job (a function without arguments) that writes one group
    and notifies, to be run when the test or simulation says so.

    What was put while a group was written, if it is less than `gather_bytes`, waits for up to `gather_s`
    (seconds) until `gathered`: the answers of that group bring the next calls, and fewer, larger groups
    take less of the processor (docs/decisions/0016).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        notify: Callable[[Callable[[int], None], int], object],
        on_durable: Callable[[int], None],
        group_bytes_max: int,
        on_failure: Callable[[BaseException], None] = fail_stop,
        submit: Callable[[Callable[[], object]], object] | None = None,
        gather_s: float = 0.0,
        gather_bytes: int = 0,
    ) -> None:
        self._engine = engine
        self._notify = notify
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._failed = False
        self._closed = False
        self._gather_s = gather_s if submit is None else 0.0  # it is the thread that ends the wait
        self._gather_bytes = gather_bytes
        self._gathering_since = 0
        """The group after which the open one waits for more; 0 while it does not."""
        self.groups = GroupCommit(
            engine.new_batch, sequence=read_sequence(engine), group_bytes_max=group_bytes_max
        )
        """The pure part; the hot path of turns reads its plain attributes instead of our properties."""
        self.put = self.groups.put
        """Adds a write of ``key`` to the open group (`group`)."""
        self.delete = self.groups.delete
        """Adds the removal of ``key`` to the open group (`group`)."""
        self._jobs: SimpleQueue[Callable[[], int] | None] = SimpleQueue()
        self._submit = submit or self._jobs.put
        self._thread: threading.Thread | None = None
        if submit is None:
            # A daemon, so that a process which dies of an error elsewhere does not wait for its own disk.
            self._thread = threading.Thread(target=self._run, name="perdure-commit", daemon=True)
            self._thread.start()

    @property
    def group(self) -> int:
        """Number of the group that `put` fills now; starts at 1."""
        return self.groups.group

    @property
    def durable(self) -> int:
        """Highest group known to be on disk; starts at 0."""
        return self.groups.durable

    @property
    def sequence(self) -> int:
        """The store's durable commit sequence: groups committed by all incarnations so far."""
        return self.groups.sequence

    @property
    def uncommitted_bytes(self) -> int:
        """Keys and values put and not yet durable."""
        return self.groups.uncommitted_bytes

    @property
    def dirty(self) -> bool:
        """Whether the open group holds something."""
        return self.groups.dirty

    def flush(self) -> None:
        """End of a tick of the loop: hands the open group to the thread if that is idle.

        A group over `group_bytes_max` is sealed and queued even when the thread is busy. What is left open
        goes to the thread when it has finished, without another flush.
        """
        if self._gathering_since and self.groups.open_bytes < self._gather_bytes:
            return
        group = self.groups.flush()
        if group is not None:
            self._hand_over(group)

    def gathered(self) -> None:
        """More has come: the next `flush` hands over what waits."""
        self._gathering_since = 0

    def close(self) -> None:
        """Makes everything put so far durable (with `on_durable` for each group), then closes the engine.

        Blocks for the time of the writes. Writes after it raise `StorageError`. Call it while the event loop
        is still open: a thread that cannot notify takes that for a failure.
        """
        if self._closed:
            return
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
        elif self.groups.in_flight is not None and not self._failed:
            raise RuntimeError("a submitted group is not written yet: run its job before closing")
        self._closed = True
        self._drain()
        self.groups.close()
        self._engine.close()

    def _drain(self) -> None:
        # The thread is gone and has written the group in flight; only its notice may be on the way still.
        done = self.groups.in_flight
        while not self._failed:
            following = self.groups.written(done.group) if done else self.groups.flush()
            if done:
                self._on_durable(done.group)
            elif not following:
                return
            if following:
                self._write(following)
            done = following

    def _hand_over(self, group: SealedGroup) -> None:
        self._gathering_since = 0
        self._submit(partial(self._commit, group))

    def _written(self, group: int) -> None:
        if group <= self.groups.durable:
            return  # `close` has already told of it
        following = self.groups.written(group)
        if following is not None:
            # Before the outputs of the finished group leave: the disk works while the loop sends them.
            self._hand_over(following)
        self._on_durable(group)

    def _written_and_gather(self, group: int) -> None:
        if group <= self.groups.durable:
            return
        following = self.groups.written(group, keep_open=True)
        if following is not None:
            self._hand_over(following)
        else:
            self._gathering_since = group
        self._on_durable(group)

    def _stop_gathering(self, group: int) -> None:
        if self._gathering_since == group:
            self._gathering_since = 0
            self.flush()

    def _run(self) -> None:
        get = self._jobs.get
        job = get()
        while job is not None:
            gathering_since = job()
            if gathering_since:
                try:
                    job = get(timeout=self._gather_s)  # the loop's own timers know milliseconds only
                    continue
                except Empty:
                    self._notify(self._stop_gathering, gathering_since)
            job = get()

    def _commit(self, group: SealedGroup) -> int:
        """Returns the group if what is open now is to wait for more after it, else 0."""
        try:
            self._engine.write(group.batch)
            if self._gather_s and 0 < self.groups.open_bytes < self._gather_bytes:
                self._notify(self._written_and_gather, group.group)
                return group.group
            self._notify(self._written, group.group)
        except BaseException as error:
            self._fail(error)
        return 0

    def _write(self, group: SealedGroup) -> None:
        try:
            self._engine.write(group.batch)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._on_failure(error)


class InlineCommitter(Committer):
    """A committer without a thread: `flush` returns when the group is durable and told of.

    For tests, simulation and offline commands. An error of the write comes out of `flush`, unless
    `on_failure` is given; the committer takes no further group after it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_durable: Callable[[int], None],
        group_bytes_max: int,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        super().__init__(
            engine,
            notify=_call,
            on_durable=on_durable,
            group_bytes_max=group_bytes_max,
            on_failure=on_failure or _raise,
            submit=_run_job,
        )


def _call(callback: Callable[[int], None], group: int) -> None:
    callback(group)


def _run_job(job: Callable[[], object]) -> None:
    job()


def _raise(error: BaseException) -> NoReturn:
    raise error
