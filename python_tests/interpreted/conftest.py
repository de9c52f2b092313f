"""Triton's interpreter, as it is but for what it does again; and each n-th test alone."""

from triton.runtime import interpreter


def patch_once(function, patch=interpreter._patch_lang, patched=set()):  # noqa: B006
    """Triton puts its interpreter into triton.language at each launch and at each call of a function in a kernel, which
    takes a third of these tests. In this process nothing needs the other language: it is done once for each module."""
    if id(function.__globals__) not in patched:
        patched.add(id(function.__globals__))
        patch(function)
    return interpreter._LangPatchScope()


interpreter._patch_lang = patch_once


def pytest_addoption(parser):
    parser.addoption("--part", default="0/1", help="K/N: each N-th test, from number K on")


def pytest_collection_modifyitems(config, items):
    first, _, step = config.getoption("--part").partition("/")
    items[:] = items[int(first) :: int(step)]
