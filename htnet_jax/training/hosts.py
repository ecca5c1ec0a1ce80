"""STUB one process."""

import contextlib


def leads():
    return True


def gather(tree):
    return tree


def texts(t):
    return [t]


def check_devices():
    pass


def connect(config):
    pass


together = contextlib.nullcontext
