"""SIGTERM and Ctrl-C in a training: the processes stop together, after the current dispatch."""

import signal
import threading
from types import FrameType

from experiments.distributed.devices import num_processes
from experiments.distributed.processes import any_signal


class Interruption:
    """Turns SIGTERM and Ctrl-C into a request to stop, while its block lasts."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._ignores_signals = False

    def __enter__(self) -> "Interruption":
        in_main_thread = threading.current_thread() is threading.main_thread()
        self._previous = {
            number: signal.signal(number, self._request)
            for number in ((signal.SIGTERM, signal.SIGINT) if in_main_thread else ())
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # Python drops its own handlers early on its way out; what is ignored stays ignored.
            signal.signal(number, signal.SIG_IGN if self._ignores_signals else handler)

    def requested(self) -> signal.Signals | None:
        """The signal that one of the processes has received so far; all of them call this.

        With several processes, later signals are ignored from then on, until the process has
        ended: they may be signalled one after the other, and one that is through with the others
        must not die of its own signal while the first of them still saves.
        """
        number = any_signal(self._number)
        if number is None:
            return None
        self._ignores_signals = num_processes() > 1
        return signal.Signals(number)

    def _request(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = number
