"""The command line as ``python -m chestxray``, and as the installed command: Ctrl-C is quiet from the beginning."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C ends it without a traceback, also while its modules are being imported."""
    try:
        from chestxray.cli import main as run

        run()
    except (KeyboardInterrupt, ImportError) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__cause__, KeyboardInterrupt):
            raise
        sys.stderr.write("\nInterrupted.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
