"""The error that ends a command with its message and exit code 1."""

from collections.abc import Iterable
from difflib import get_close_matches


class CommandError(Exception):
    """A command cannot go on: the message is for the user, without a traceback."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `\\nDid you mean: …?` with the known names nearest to name, or an empty string.

    A known name is near when its spelling is, or when its last part is (`stats` finds
    `/pi0_fast/stats`: a forgotten namespace is the commonest mistake).
    """
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.7)
    last_parts = {candidate: candidate.rsplit('/', 1)[-1] for candidate in names}
    near_parts = get_close_matches(name.rsplit('/', 1)[-1], set(last_parts.values()), cutoff=0.75)
    near += [candidate for candidate, last in last_parts.items()
             if last in near_parts and candidate not in near]
    return f'\nDid you mean: {", ".join(near[:4])}?' if near else ''
