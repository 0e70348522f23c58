"""Tells what JAX's client wrote last, where it ended its process before that could be told.

Run as a program beside the process that is watched, by the interpreter alone, without imports from
this package: it has to be there at once, and to outlive the other.

    python -I -S last_words.py PIPE SENTENCE

PIPE is the number of the pipe's end from which the process reads its own standard error; SENTENCE
is what to say, with WHY where the cause stands. The process is gone when standard input ends.
"""

import os
import sys

FATAL = b"JAX distributed service detected fatal errors"
WHY = "WHY"


def fatal_cause(line: bytes) -> str | None:
    """Why the client ends its process, if `line` says that it does."""
    if FATAL not in line:
        return None
    return shortened(line.decode(errors="replace").partition("absl::Status: ")[2])


def shortened(why: str) -> str:
    """The first sentence of an error, in one line of at most 200 characters."""
    return " ".join(why.split()).partition(". ")[0].rstrip(":")[:200]


def main() -> None:
    """Wait for the end of the process, and say what it could not."""
    pipe, sentence = int(sys.argv[1]), sys.argv[2]
    sys.stdin.buffer.read()
    os.set_blocking(pipe, False)
    try:
        left = os.read(pipe, 1 << 20)
    except BlockingIOError:  # another process holds the other end, and has written nothing
        return
    for line in left.splitlines():
        if (why := fatal_cause(line)) is not None:
            os.write(2, f"{sentence.replace(WHY, why)}\n".encode())
            return


if __name__ == "__main__":
    main()
