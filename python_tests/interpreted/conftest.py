"""Triton's interpreter, faster; and each n-th test alone."""

from sobolev_kernels.testing import interpreter  # noqa: F401


def pytest_addoption(parser):
    parser.addoption("--part", default="0/1", help="K/N: each N-th test, from number K on")


def pytest_collection_modifyitems(config, items):
    first, _, step = config.getoption("--part").partition("/")
    items[:] = items[int(first) :: int(step)]
