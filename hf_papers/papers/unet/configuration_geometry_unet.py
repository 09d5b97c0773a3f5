"""Sizes in U-Net: what goes in, what comes out, what one output pixel sees, and how a large image is cut into tiles.

Height and width follow the same rules, so everything here is about one side of an image.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """The sizes of a network that halves its image `depth` times.

    `valid`: convolutions without padding, as in the paper: each takes one pixel from each end, and the output is smaller
    than the input. Otherwise every convolution pads, and the output is as large as the input.
    """

    depth: int
    valid: bool

    @property
    def multiple(self) -> int:
        """Pixels of the image that one pixel at the bottom of the U stands for."""
        return 2**self.depth

    @property
    def border(self) -> int:
        """Pixels of the input at each end that the output lacks: (572 - 388) / 2 = 92 in figure 1.

        Two convolutions take 4 pixels of each stage's own size, on the way down (0 .. depth) and on the way up
        (depth - 1 .. 0), and a pixel of stage s counts 2^s: 4 (2^(depth+1) - 1) + 4 (2^depth - 1) from both ends together.
        """
        return 6 * self.multiple - 4 if self.valid else 0

    def fits(self, size: int) -> bool:
        """Whether an input of this size is even wherever it is halved, and something comes out."""
        if not self.valid:
            return size >= self.multiple and size % self.multiple == 0
        # Before each halving two convolutions have taken 4 pixels: 4 (1 + 2 + .. + 2^(depth-1)) of the input in all.
        return size > 2 * self.border and (size - 4 * (self.multiple - 1)) % self.multiple == 0

    def output_size(self, size: int) -> int:
        """Of an input that fits."""
        return size - 2 * self.border

    def input_covering(self, size: int) -> int:
        """The smallest input whose output has at least `size` pixels."""
        found = max(size, 1) + 2 * self.border
        while not self.fits(found):
            found += 1
        return found

    def nearest(self, size: int) -> tuple[int | None, int]:
        """The largest input that fits and is not larger than `size` (None when there is none), and the smallest that is not
        smaller."""
        below = size
        while below > 2 * self.border and not self.fits(below):
            below -= 1
        above = self.input_covering(size - 2 * self.border)
        return (below if self.fits(below) else None), above

    @property
    def reach(self) -> int:
        """How far an output pixel sees, to the worse side, in pixels of the image.

        An interval of pixels is followed back through the network: two convolutions add 2 pixels at each end, one pixel of
        a deeper stage stands for two.
        """
        farthest = 0
        for pixel in range(self.multiple):  # where it lies on the grid of the halvings matters
            low = high = pixel
            for _ in range(self.depth):  # the way up, backwards
                low, high = (low - 2) // 2, (high + 2) // 2
            low, high = low - 2, high + 2  # the bottom
            for _ in range(self.depth):  # the way down, backwards
                low, high = 2 * low - 2, 2 * high + 1 + 2
            farthest = max(farthest, pixel - low, high - pixel)
        return farthest

    @property
    def margin(self) -> int:
        """`reach` as whole pixels of the bottom: what a tile of a padding network must overlap with the next."""
        return -(-self.reach // self.multiple) * self.multiple

    @property
    def smallest_tile(self) -> int:
        """The smallest tile that gets on: some of its output must be its own."""
        return self.input_covering(self.multiple) if self.valid else 2 * self.margin + self.multiple


@dataclass(frozen=True)
class Tile:
    """One side of a tile: the network reads `read_start` .. `read_stop` of the image (which may lie outside: mirrored),
    and of its output the pixels from `keep` on are those at `write_start` .. `write_stop` of the result."""

    read_start: int
    read_stop: int
    keep: int
    write_start: int
    write_stop: int


def tiles(size: int, tile_size: int, geometry: Geometry) -> list[Tile]:
    """Tiles of at most `tile_size` input pixels that together answer for `size` pixels, each for its own.

    All begin on the grid of the halvings, so that every output pixel is computed as in one pass over the whole image. The
    last tile is pushed back to end where that pass would, instead of reading farther outside.
    """
    whole = geometry.input_covering(size)  # what one pass would read: -border .. whole - border
    if whole <= tile_size:
        return [Tile(-geometry.border, whole - geometry.border, 0, 0, size)]
    if geometry.valid:
        step = geometry.output_size(tile_size) // geometry.multiple * geometry.multiple
        last = geometry.output_size(whole) - geometry.output_size(tile_size)
        cut = 0
    else:
        step = tile_size - 2 * geometry.margin
        last = whole - tile_size
        cut = geometry.margin  # near a cut the padding is seen, which one pass has at the image's own edges only
    found, written = [], 0
    for start in [*range(0, last, step), last]:
        stop = start + geometry.output_size(tile_size) - (0 if start == last else cut)
        read = start - geometry.border
        found.append(Tile(read, read + tile_size, written - start, written, min(stop, size)))
        written = stop
    return found


def mirrored(start: int, stop: int, size: int) -> list[int]:
    """Positions `start` .. `stop` on a line of `size` pixels that is mirrored at both ends, as often as it takes.

    The outermost pixel is not doubled: -1 is pixel 1, as in figure 2 of the paper.
    """
    period = max(1, 2 * (size - 1))
    return [min(position % period, period - position % period) if size > 1 else 0 for position in range(start, stop)]


__all__ = ["Geometry", "Tile", "mirrored", "tiles"]
