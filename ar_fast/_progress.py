"""tqdm's progress bars, shown only where somebody can see them."""

import sys
import warnings

import tqdm.std

with warnings.catch_warnings():
    warnings.simplefilter("ignore", tqdm.std.TqdmExperimentalWarning)
    from tqdm.autonotebook import tqdm as _tqdm

_IN_NOTEBOOK = _tqdm is not tqdm.std.tqdm


def progress_bar(*arguments, show: bool = True, **options) -> tqdm.std.tqdm:
    """tqdm(*arguments, **options) on a terminal or in a notebook; quiet if standard error is a file or a pipe."""
    watched = _IN_NOTEBOOK or sys.stderr.isatty()
    return _tqdm(*arguments, disable=not (show and watched), **options)
