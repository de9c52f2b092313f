"""`python -m examples.forces`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="8 minutes", short="40 s")
