"""``python -m aster_sandbox``."""

from aster_sandbox.commands import main

if __name__ == "__main__":
    main(prog_name="python -m aster_sandbox")
