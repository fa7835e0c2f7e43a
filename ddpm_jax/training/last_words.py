"""What a process says when another one of its run is gone: one line, in place of JAX's own report.

JAX's runtime ends a process whose peers are lost from a thread of its own, in C++, with a page on stderr; no Python
code is asked. So stderr, as C++ sees it, is a pipe to this file run as a program. Everything is passed on but that
report. It imports nothing but the standard library, so as to start at once.
"""

import os
import re
import signal
import sys
from collections.abc import Callable

FATAL = "JAX distributed service detected fatal errors"
ENOUGH = re.compile(r"RegisterTask|The tasks have crashed|leader task|\*\*\* Check failure")
LOGGED = re.compile(r"[IWEF]\d{4} \d\d:\d\d:")
# What the runtime logs on its way to the fatal report: held back, and shown only if that never comes.
ASIDE = re.compile(r"[WE]\d{4} .* (coordination_service|coordination_service_agent|preemption_sync_manager)\.cc:")


def sentence(what: str, *, program: str, saves: str) -> str:
    """The line: what has happened, up to where the run is saved in the folder `saves` ("" for none), and what to do.

    Orbax gives a checkpoint its name, a number, when it is whole.
    """
    again = "start all processes again with the same command"
    if not saves:
        return f"{program}: {what}; {again}"
    steps = [int(name) for name in os.listdir(saves) if name.isdigit()] if os.path.isdir(saves) else []
    kept = f"the run is saved up to step {max(steps)}" if steps else "nothing is saved yet"
    if "://" in saves:  # a bucket: not for the standard library
        kept = "the run is saved up to its newest checkpoint"
    return f"{program}: {what}; {kept}: {again} to go on"


def reason(report: str, *, count: str, timeout: str) -> str:
    """JAX's report in a few words. `count` is how many processes there are, "" if that isn't known."""
    of = f" of {count}" if count else ""
    if "RegisterTask" in report:
        return f"not all{of} processes came within {3 * int(timeout)} s"
    if found := re.search(r"stopped sending heartbeats\):\n(.*?)\nThe tasks have crashed", report, re.DOTALL):
        gone = [line.rsplit(":", 1)[-1] for line in found[1].splitlines()]
        who, is_dead = ("process", "is") if len(gone) == 1 else ("processes", "are")
        return f"{who} {', '.join(gone)}{of} stopped answering within {timeout} s and {is_dead} taken to be dead"
    if "leader task" in report:
        return f"process 0{of}, through which the processes meet, is gone"
    said = report.partition("absl::Status: ")[2].splitlines() or ["no reason given"]
    return f"the processes have lost each other ({said[0][:200]})"


def listen(read: Callable[[], bytes], write: Callable[[str], None], *, last: Callable[[str], str]) -> None:
    """Pass on what is read, line by line, till it ends; of JAX's fatal report and what follows, `last` makes a line."""
    held, rest, aside = "", "", False
    while chunk := read():
        *lines, rest = (rest + chunk.decode(errors="replace")).split("\n")
        shown = ""
        for i, line in enumerate(lines):
            if FATAL in line:
                write(shown)
                report = held + "\n".join([*lines[i:], rest])
                # As a rule it comes in one piece. There is no time to lose: of a container, its first process is dying.
                while not ENOUGH.search(report) and (chunk := read()):
                    report += chunk.decode(errors="replace")
                write(last(report))
                while read():
                    pass
                return
            if LOGGED.match(line):
                aside = bool(ASIDE.match(line))
            if aside:
                held += line + "\n"
            else:
                shown, held = shown + held + line + "\n", ""
        write(shown)
    write(held + rest)


def main(program: str, saves: str, count: str, timeout: str) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # those are the run's; this ends after it

    def last(report: str) -> str:
        return "\n" + sentence(reason(report, count=count, timeout=timeout), program=program, saves=saves) + "\n"

    def write(text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    listen(lambda: os.read(0, 2**16), write, last=last)


if __name__ == "__main__":
    main(*sys.argv[1:])
