"""Triton implementations: ``<op>.py`` holds the kernel of an operator and its launcher.

Imported only when an operator runs with ``Impl.TRITON``; nothing here is imported by the package.
"""
