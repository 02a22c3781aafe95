"""What keeps the caller's process, such as a notebook's kernel, as it was: errors of one line, settings put back."""

import gc
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from leyden.config.defaults import set_folders
from leyden.config.locations import FOLDERS, make_folders_absolute
from leyden.config.user_code import describe
from leyden.console import debug
from leyden.errors import RunError, UserError


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Raise any error of the block as a UserError or a RunError of one line, which names the line of the user's code.

    The original exception is its cause. With LEYDEN_DEBUG=1 it is raised as it is. The folders that the user's own
    defaults name hold within the block, as they do for a command.
    """
    folders = {name: os.environ.get(name) for name in FOLDERS}
    try:
        set_folders()
        make_folders_absolute()
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        if debug():
            raise
        raise RunError(f"{describe(error)} (LEYDEN_DEBUG=1 shows the traceback)") from error
    finally:
        for name, value in folders.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def garbage_collected() -> Iterator[None]:
    """Let the collector see all objects again after a run in this process, which hides what there was before it.

    Otherwise the interpreter would not close, at its end, a file that such an object keeps open.
    """
    is_frozen = gc.get_freeze_count() > 0
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()


@contextmanager
def settings_put_back() -> Iterator[None]:
    """Put back what the block sets for the whole process: torch's settings, random generators, environment, path."""
    import numpy as np
    import torch

    cudnn = torch.backends.cudnn
    environ, search_path = dict(os.environ), list(sys.path)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    debug_mode = torch.get_deterministic_debug_mode()
    flags, precision = (cudnn.benchmark, cudnn.deterministic), torch.get_float32_matmul_precision()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_float32_matmul_precision(precision)
        cudnn.benchmark, cudnn.deterministic = flags
        if torch.get_deterministic_debug_mode() != debug_mode:  # setting it takes seconds
            torch.set_deterministic_debug_mode(debug_mode)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        for name in os.environ.keys() - environ.keys():
            del os.environ[name]
        os.environ.update(environ)
        sys.path[:] = search_path
