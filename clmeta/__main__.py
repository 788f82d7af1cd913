"""``python -m clmeta`` is the command ``clmeta``."""

from clmeta.cli.app import main

if __name__ == "__main__":
    main()
