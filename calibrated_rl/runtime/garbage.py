"""When Python's garbage collector looks at what."""

import gc


def freeze_loaded_objects() -> None:
    """Keep Python's garbage collector from traversing objects that stay until the end anyway.

    While thousands of dialogues run it traverses all live objects again and again, most of them of libraries. Call this
    when all is loaded, and once more if parts are restarted: objects that have died since are collected.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
