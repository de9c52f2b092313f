"""`python -m examples.synthetic_gradients`: see `experiment.py`."""

from examples.lab import run_command

from .experiment import main

if __name__ == "__main__":
    run_command(main, full="15 minutes", short="90 s")
