"""`python -m examples.differential_ml`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="3 minutes", short="1 minute", seeds=(10, 3, 1))
