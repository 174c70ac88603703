"""Layer patterns: a letter for each layer (l local, g global), repeated."""

MAX_LAYERS = 10_000


def repeated(pattern: str, layers: int) -> str:
    """The letters of `layers` layers, at most MAX_LAYERS."""
    layers = min(layers, MAX_LAYERS)
    return (pattern * (layers // len(pattern) + 1))[:layers]


def shortest(letters: str) -> str:
    """The shortest pattern whose repetition begins with these letters."""
    size = len(letters)
    sizes = (n for n in range(1, size) if letters[n:] == letters[: size - n])
    return letters[: next(sizes, size)]


def pattern_of(*parts: tuple[str, int]) -> str:
    """("g", 2), ("l", 3) -> "gglll"; at most MAX_LAYERS a part."""
    return "".join(letter * min(count, MAX_LAYERS) for letter, count in parts)
