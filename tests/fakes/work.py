"""What worker processes are given to do in tests; they import it from here."""

import os
import time

from htnet_jax.errors import UserError


def early_items_last(item):
    """The square; the smaller the item, the longer it takes."""
    time.sleep(0.2 / (1 + item))
    return item**2


def process(item):
    """The item and the process it was worked on in."""
    time.sleep(0.05)
    return item, os.getpid()


def fail_at_three(item):
    """Fails as a clip with wrong data does."""
    if item == 3:
        raise UserError(f"item {item} is wrong")
    return item


def die_at_three(item):
    """Ends its process as the kernel does when memory is short: no exception, no clean-up."""
    if item == 3:
        os._exit(9)
    return item


def begin_and_sleep(item):
    """Says that it began, and takes far longer than any test waits."""
    folder, number = item
    (folder / str(number)).touch()
    time.sleep(300)
