"""A process from the fork server is what Python would start: its surroundings, its end, and what becomes of it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Running, run, server

SURROUNDINGS = (
    "import json, os, sys, time\n"
    "print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), time.tzname[0], sys.stdin.read(),"
    " sorted(os.listdir('/proc/self/fd'))[:-1], __name__]))\n"
    "print('to stderr', file=sys.stderr)"
)
OBEDIENT = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
    "print('up', flush=True)\n"
    "time.sleep(60)"
)
PATIENCE_S = 30


def test_it_has_the_surroundings_that_it_was_given(tmp_path: Path) -> None:
    given = {"LANG": "C.UTF-8", "TZ": "Asia/Tokyo"}
    done = run("a b", "é", code=SURROUNDINGS, cwd=tmp_path, env=given, input="héllo", timeout=PATIENCE_S)
    words = [["-c", "a b", "é"], str(tmp_path), given, "JST", "héllo", ["0", "1", "2"], "__main__"]
    assert (json.loads(done.stdout), done.stderr, done.returncode) == (words, "to stderr\n", 0)


@pytest.mark.parametrize(
    "code",
    [
        "pass",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('a sentence')",
        "import os; os._exit(8)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "raise KeyboardInterrupt",
        "import atexit; atexit.register(print, 'last'); print('first')",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
        "open('unclosed', 'w').write('flushed')",
        "print('x' * 300_000)",
    ],
)
def test_it_ends_as_python_ends(code: str, tmp_path: Path) -> None:
    real = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    left = [path.read_text("utf-8") for path in tmp_path.iterdir()]
    done = run(code=code, cwd=tmp_path, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (real.returncode, real.stdout)
    assert done.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]
    assert [path.read_text("utf-8") for path in tmp_path.iterdir()] == left


def test_it_gets_signals_and_waiting_for_it_has_an_end() -> None:
    with Running(code=OBEDIENT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        process.terminate()
        assert process.wait(PATIENCE_S) == 5
        process.kill()  # nobody is there any more
        assert process.poll() == 5


def test_a_program_for_shells_passes_signals_on_and_takes_its_process_with_it(tmp_path: Path) -> None:
    program = server().program(tmp_path / "obedient", "-c", OBEDIENT)
    for number, code in ((signal.SIGTERM, 5), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen([program], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            process.send_signal(number)
            assert process.stdout.read() == ""  # the process has closed it as well
            assert process.wait(PATIENCE_S) == code
