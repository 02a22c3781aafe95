"""Files on disk: atomic writes, locks, format numbers, and verified folders."""

from leyden.files.atomic import sync_folder, unused_path, write_atomically
from leyden.files.locks import file_lock, is_locked

__all__ = ["file_lock", "is_locked", "sync_folder", "unused_path", "write_atomically"]
