"""Files that are only appended to and never stop a run: what the disk does not take waits in memory
until it does. Rows of metrics, and events of TensorBoard.
"""

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

LIMIT = 64 << 20  # bytes that wait; what comes then is lost


class Appended:
    """A file that `write` appends whole records to, in order.

    waiting: bytes that are not on disk yet. lost: records that had no room in memory either.
    error: why the last attempt failed, "" where it did not.
    """

    def __init__(self, path: Path):
        self.path, self.file = path, -1
        self.waiting, self.lost, self.error = bytearray(), 0, ""

    def write(self, record: bytes) -> None:
        """Appends a record, after those that wait; sets `error`."""
        if len(self.waiting) + len(record) > LIMIT:
            self.lost += 1
        else:
            self.waiting += record
        self.flush()

    def flush(self) -> None:
        """Writes what waits, as far as the disk takes it. A record may be cut for that time."""
        try:
            if self.file < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            while self.waiting:
                del self.waiting[: os.write(self.file, self.waiting)]
            self.error = ""
        except OSError as error:
            self.error = error.strerror or str(error)

    def close(self) -> None:
        """Writes what waits, and closes."""
        self.flush()
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class Events(Appended):
    """An event file of TensorBoard in `folder`; of steps from `purge_step` on, earlier ones go.

    (SummaryWriter of tensorboardX writes in a thread, which a full disk ends; the next call then
    waits for ever.)
    """

    def __init__(self, folder: Path, purge_step: int):
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{os.getpid()}"
        super().__init__(folder / name)
        self.add(file_version="brain.Event:2")
        self.add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve."""
        self.add(step=step, summary=summary.scalar(name, value))

    def text(self, name: str, value: str, step: int) -> None:
        """A text."""
        self.add(step=step, summary=summary.text(name, value))

    def add(self, **fields: Any) -> None:
        """An event, as a TFRecord: length, its checksum, data, their checksum."""
        data = Event(wall_time=time.time(), **fields).SerializeToString()
        size = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (size, data))
        self.write(size + next(sums) + data + next(sums))
