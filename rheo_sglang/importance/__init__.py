"""Importance: the interface that everybody reads it through, its file, and readers in other caches.

The package itself imports nothing, so that a reader in another process needs numpy alone.
"""
