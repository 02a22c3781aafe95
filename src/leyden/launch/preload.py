"""The imports of the fork server before it forks ranks and jobs: torch and Lightning, without deferred imports."""

from leyden.launch import deferred_imports

deferred_imports.install()

from leyden.training import fit  # noqa: E402, F401
