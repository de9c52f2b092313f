"""`python -m examples.pde`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="45 minutes", short="4 minutes", seeds=(5, 1, 1))
