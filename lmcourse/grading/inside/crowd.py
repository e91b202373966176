"""Watch over all processes of a submission together.

The kernel's limits of `jail` hold for one process each; a submission may fork. The warm
parent sees every process in bubblewrap's process namespace, and all but itself and the
first one belong to the running submission. Twice in a blink it adds them up: where
their memory is more than a submission may have, the largest one is killed, as the
kernel does when a machine is full; where there are many, all of them step back behind
the work of others.
"""

import contextlib
import os
import select
import signal

TICK = 0.1  # seconds
MANY = 12  # processes and threads; an honest submission has three
LEAST_PRIORITY = 19
_FIELDS = ("RssAnon:", "RssShmem:", "Threads:")


class Crowd:
    """The processes of the running submission.

    Args:
        max_bytes: of memory, all processes together, beyond what each has from birth
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.birth = self._facts(os.getpid())[0]

    def wait(self, child: int) -> None:
        """Wait for a child to end, and look after its descendants until then."""
        ended = os.pidfd_open(child)
        try:
            while not select.select([ended], [], [], TICK)[0]:
                self.look()
        finally:
            os.close(ended)
        os.waitpid(child, 0)

    def look(self) -> None:
        """Kill the largest process where memory is short; slow a crowd down."""
        facts = {pid: self._facts(pid) for pid in self._pids()}
        sizes = {pid: max(0, size - self.birth) for pid, (size, _) in facts.items()}
        if sum(sizes.values()) > self.max_bytes:
            with contextlib.suppress(OSError):
                os.kill(max(sizes, key=sizes.__getitem__), signal.SIGKILL)
        if sum(threads for _, threads in facts.values()) > MANY:
            for pid in facts:
                self._step_back(pid)

    def _pids(self) -> list[int]:
        ours = (1, os.getpid())
        names = filter(str.isdecimal, os.listdir("/proc"))
        return [pid for pid in map(int, names) if pid not in ours]

    def _facts(self, pid: int) -> tuple[int, int]:
        """Bytes of memory of its own and number of threads; zeros if it has ended."""
        found = dict.fromkeys(_FIELDS, 0)
        try:
            with open(f"/proc/{pid}/status") as file:
                for line in file:
                    name, _, rest = line.partition("\t")
                    if name in found:
                        found[name] = int(rest.split()[0])
        except (OSError, ValueError):
            return 0, 0
        return 1024 * (found["RssAnon:"] + found["RssShmem:"]), found["Threads:"]

    def _step_back(self, pid: int) -> None:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), LEAST_PRIORITY)
