"""Layer patterns: a letter for each layer (l local, g global), repeated."""

MAX_LAYERS = 10_000


def repeated(pattern: str, layers: int) -> str:
    """The letters of so many layers, of MAX_LAYERS at most."""
    layers = min(layers, MAX_LAYERS)
    return (pattern * (layers // len(pattern) + 1))[:layers]


def shortest(letters: str) -> str:
    """The shortest pattern that, repeated, begins with these letters."""
    size = len(letters)
    sizes = (n for n in range(1, size) if letters[n:] == letters[: size - n])
    return letters[: next(sizes, size)]


def joined(*parts: tuple[str, int]) -> str:
    """("g", 2), ("l", 3) -> "gglll"; of MAX_LAYERS a part at most."""
    return "".join(letter * min(count, MAX_LAYERS) for letter, count in parts)
