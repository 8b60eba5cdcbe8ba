"""Run the probe in this process and print its report as JSON. ``machine.probe`` starts it."""

import dataclasses
import json

from aster_sandbox.isolation.machine import try_everything

if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(try_everything())))
