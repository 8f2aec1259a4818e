"""The entry of the program, also as `python -m icl_bench`: a SIGINT while it loads ends it without a word."""

import sys


def launch() -> None:
    """Load and run the command line; it imports nothing before a SIGINT can end it in silence."""
    try:
        import atexit
        import os
        import signal

        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        statuses: list[int] = []
        atexit.register(leave, statuses)  # before all others, so that it is called after them
        from icl_bench.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        main()
    except SystemExit as request:
        statuses.append(int(request.code or 0))
        raise


def leave(statuses: list[int]) -> None:
    """End the process with this status, if it has one, and take nothing apart.

    That would take a second or two with the modules of torch; without the collections in it .3 s, and Triton would tell
    of what it then leaks.
    """
    if not statuses:
        return
    import os

    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads them, or they are closed
        pass
    os._exit(statuses[0])


if __name__ == "__main__":
    launch()
