# SPDX-License-Identifier: Apache-2.0
"""The parser of each verb, by its name, for the pages of the commands."""

from collections.abc import Callable

from mmrepmlp.cli import Parser, make_parser


def __getattr__(verb: str) -> Callable[[], Parser]:
    """A function that makes the parser of a verb."""
    verbs = make_parser()._subparsers._group_actions[0].choices
    if verb not in verbs:
        raise AttributeError(verb)
    return lambda: verbs[verb]
