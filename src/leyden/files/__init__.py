"""Files on disk: atomic writes, locks, the numbers of their formats, and folders that are whole."""

from leyden.files.atomic import free_path, sync_folder, write_atomically
from leyden.files.locks import file_lock, is_locked

__all__ = ["file_lock", "free_path", "is_locked", "sync_folder", "write_atomically"]
