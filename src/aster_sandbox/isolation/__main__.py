"""The probe's own process: see ``probe``."""

import dataclasses
import json

from aster_sandbox.isolation.machine import try_everything

if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(try_everything())))
