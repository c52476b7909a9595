"""setuptools' build backend; what has to be installed for a build depends on whether anything is compiled."""

import os

from setuptools.build_meta import *  # noqa: F403


def get_requires_for_build_wheel(config_settings=None):
    if os.environ.get("AR_FAST_PURE") == "1":
        return []
    return ["torch>=2.11", "pybind11>=2.13", "cmake>=3.24", "ninja"]


get_requires_for_build_editable = get_requires_for_build_wheel
