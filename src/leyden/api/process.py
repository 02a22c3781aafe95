"""Context managers that leave the caller's process, such as a notebook's kernel, as it was."""

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

    The original exception is its cause. With LEYDEN_DEBUG=1 the original exception is raised. Within the block,
    LEYDEN_DATA and LEYDEN_RUNS have the values that a command would give them.
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
def restore_garbage_collection() -> Iterator[None]:
    """Undo `gc.freeze` at the end of the block, since a run in this process hides earlier objects from the collector.

    Otherwise the interpreter would not close, when it exits, the files that such objects keep open.
    """
    is_frozen = gc.get_freeze_count() > 0
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()


@contextmanager
def restore_settings() -> Iterator[None]:
    """Restore, at the end of the block, torch's settings, random generators, environment variables and `sys.path`."""
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
