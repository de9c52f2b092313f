"""A fuzzer: random calls beside an oracle that is written with torch.func alone. `python -m python_tests.fuzz`."""
