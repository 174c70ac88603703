"""Layer patterns: a letter for each layer (l local, g global), repeated."""

MOST_LAYERS = 10_000


def repeated(pattern: str, layers: int) -> str:
    """The letters of so many layers, of MOST_LAYERS at most."""
    layers = min(layers, MOST_LAYERS)
    return (pattern * (layers // len(pattern) + 1))[:layers]


def shortest(letters: str) -> str:
    """The shortest pattern that, repeated, begins with these letters."""
    size = len(letters)
    sizes = (n for n in range(1, size) if letters[n:] == letters[: size - n])
    return letters[: next(sizes, size)]


def joined(*parts: tuple[str, int]) -> str:
    """("g", 2), ("l", 3) -> "gglll"; of MOST_LAYERS a part at most."""
    return "".join(letter * min(count, MOST_LAYERS) for letter, count in parts)
