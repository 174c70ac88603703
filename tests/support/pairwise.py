"""Pairwise samples: few combinations of options in which every pair of values occurs.

Greedy, as AETG (Cohen et al. 1997): each row starts from a pair that is still missing, and every
other option takes the value that adds most missing pairs.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Row = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]  # ((option, value), (option, value)), sorted
TRIES, REPAIRS = 3, 20  # rows tried for a pair, and changes of a row until it is accepted


def pairs_of(row: Mapping[str, str]) -> list[Pair]:
    """All pairs of values in a row."""
    return list(itertools.combinations(sorted(row.items()), 2))


def sample(
    options: Mapping[str, Sequence[str]], blamed: Callable[[Row], set[str]], seed: int
) -> tuple[list[Row], list[Pair]]:
    """(rows, pairs for which no row was found): every other pair of values is in a row.

    blamed: the options for which a row is refused; none where it is accepted.
    """
    draw = random.Random(seed)
    every = [
        tuple(sorted([(a, x), (b, y)]))
        for a, b in itertools.combinations(sorted(options), 2)
        for x, y in itertools.product(options[a], options[b])
    ]
    missing, rows = set(every), []
    for pair in draw.sample(every, len(every)):
        if pair not in missing:
            continue
        tries = (completed(pair, options, blamed, missing, draw) for _ in range(TRIES))
        row = next(filter(None, tries), None)
        if row is None:
            missing.discard(pair)  # rows of other pairs do not try it, either
        else:
            missing.difference_update(pairs_of(row))
            rows.append(row)
    covered = {pair for row in rows for pair in pairs_of(row)}
    return rows, [pair for pair in every if pair not in covered]


def completed(
    pair: Pair,
    options: Mapping[str, Sequence[str]],
    blamed: Callable[[Row], set[str]],
    missing: set[Pair],
    draw: random.Random,
) -> Row | None:
    """An accepted row with this pair and many missing ones; None where none was found."""
    row = dict(pair)
    for name in draw.sample(sorted(set(options) - set(row)), len(options) - 2):
        # Values at first in random order: of those that add equally much, any.
        values = draw.sample(list(options[name]), len(options[name]))
        row[name] = max(values, key=lambda value: gain(row, name, value, missing))
    for _ in range(REPAIRS):
        wrong = blamed(row)
        if not wrong:
            return row
        free = sorted(wrong - {name for name, _ in pair})
        if not free:
            return None
        name = draw.choice(free)
        row[name] = draw.choice([value for value in options[name] if value != row[name]])
    return None


def gain(row: Row, name: str, value: str, missing: set[Pair]) -> int:
    """How many missing pairs the value makes with those of the row."""
    new = (name, value)
    pairs = (((new, old) if new < old else (old, new)) for old in row.items() if old[0] != name)
    return sum(pair in missing for pair in pairs)
