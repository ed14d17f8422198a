"""DocEdit-Chat: a person wants a document written, and knows it when they see it."""

from calibrated_rl.examples.doc_edit.task import DocEdit

__all__ = ["DocEdit"]
