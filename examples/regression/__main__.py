"""`python -m examples.regression`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="15 minutes", short="3 minutes")
