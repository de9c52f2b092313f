"""`python -m examples.distillation`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="8 minutes", short="1 minute", seeds=(3, 1, 1))
