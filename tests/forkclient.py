"""A command for shells: `python -I -S tests/forkclient.py SOCKET WORDS` is what `python WORDS` would be.

Where WORDS begin with `-c`, the process comes from the fork server that listens on SOCKET (an abstract name). It has
the streams, folder, environment and ignored signals of this one, which passes on the signals that it gets, ends with
the same code, and when it is killed takes the process with it. It imports next to nothing: that is what it is for.
"""

import json
import os
import signal
import socket
import sys

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def main(name: str, *words: str) -> int:
    """Returns the exit code."""
    if words[:1] != ("-c",):
        os.execv(sys.executable, [sys.executable, *words])  # noqa: S606 - that is what was asked for
    ignored = [number for number in _PASSED_ON if signal.getsignal(number) is signal.SIG_IGN]
    asked = {
        "code": words[1],
        "words": words[2:],
        "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes longer to import than all of this
        "environment": dict(os.environ),
        "ignored": ignored,
        "person": None,
    }
    early: list[int] = []
    passing = set(_PASSED_ON) - set(ignored)
    for number in passing:
        signal.signal(number, lambda got, _: early.append(got))
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(f"\0{name}")
        socket.send_fds(line, [json.dumps(asked).encode() + b"\n"], [0, 1, 2])
        with line.makefile() as answers:
            process = int(answers.readline())
            for number in passing:
                signal.signal(number, lambda got, _: os.kill(process, got))
            for got in early:
                os.kill(process, got)
            ended = int(answers.readline())
    if ended < 0:
        if -ended != signal.SIGKILL:
            signal.signal(-ended, signal.SIG_DFL)
        os.kill(os.getpid(), -ended)
    return ended


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
