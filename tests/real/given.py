"""Which real servers there are: variables of the environment, set by ``make real``.

=========================== =====================================================
``SLUICE_REAL_BASE_URL``    of a vLLM that runs and that nobody else uses, with
                            ``/v1``: tests in ``running``
``SLUICE_REAL_VLLM``        a command that starts one at ``{port}``, to which flags
                            can be appended: tests in ``started``
``SLUICE_REAL_TRANSFORMERS`` the same of ``transformers serve``
``SLUICE_REAL_MODEL``       its model, which only that server does not list
=========================== =====================================================

A test whose variable is not set fails.
"""

import os

import pytest


def given(variable: str) -> str:
    """The value of a variable."""
    value = os.environ.get(variable, "")  # noqa: TID251 - a switch of tests
    if not value:
        pytest.fail(f"{variable} is not set: see `real` in the Makefile", pytrace=False)
    return value
