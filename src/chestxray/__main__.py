"""The command line as ``python -m chestxray``."""

from chestxray.cli import main

if __name__ == "__main__":
    main()
