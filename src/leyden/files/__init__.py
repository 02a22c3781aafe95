"""Files on disk: atomic writes, locks, the numbers of their formats, and folders that are whole."""

from leyden.files.atomic import sync_folder, unused_path, write_atomically
from leyden.files.locks import file_lock, is_locked

__all__ = ["file_lock", "is_locked", "sync_folder", "unused_path", "write_atomically"]
