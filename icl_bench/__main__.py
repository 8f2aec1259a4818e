"""The entry of the program, also as `python -m icl_bench`: a SIGINT while it loads ends it without a word."""

import sys


def launch() -> None:
    """Load and run the command line; it imports nothing before a SIGINT can end it in silence."""
    try:
        import os
        import signal

        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        from icl_bench.cli import main
    except KeyboardInterrupt:
        sys.exit(130)
    main()


if __name__ == "__main__":
    launch()
