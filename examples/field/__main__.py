"""`python -m examples.field`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="4 minutes", short="1 minute", seeds=(10, 2, 1))
