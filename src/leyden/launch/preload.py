"""What the fork server imports before it forks ranks and jobs: torch and Lightning, without imports that can wait."""

from leyden.launch import deferred_imports

deferred_imports.install()

from leyden.training import fit  # noqa: E402, F401
