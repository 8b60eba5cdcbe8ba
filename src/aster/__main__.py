"""``python -m aster``."""

from aster.cli import main

if __name__ == "__main__":
    main()
