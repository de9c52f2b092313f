"""`python -m examples.pde`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="20 minutes", short="1 minute", seeds=(5, 1, 1))
