"""Write a small folder of drawn images in six classes, as an example for fine-tuning.

python docs/examples/draw_shapes.py shapes
"""

import math
import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

CLASSES = ("circle", "cross", "ring", "square", "star", "triangle")
IMAGES = {"train": 50, "test": 100}
"""Number of images of each class, by split."""
SIZE = 64


def draw(name: str, rng: random.Random) -> Image.Image:
    """Return an image of a shape with random colors, position, size and angle."""
    image = Image.new("RGB", (SIZE, SIZE), color(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(8):  # Random lines in the background.
        x, y = rng.uniform(0, SIZE), rng.uniform(0, SIZE)
        pen.line((x, y, x + rng.gauss(0, 20), y + rng.gauss(0, 20)), color(rng), 2)
    radius, angle = rng.uniform(12, 24), rng.uniform(0, 2 * math.pi)
    x, y = (rng.uniform(radius, SIZE - radius) for _ in range(2))
    fill, box = color(rng), (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        pen.ellipse(box, fill)
    elif name == "ring":
        pen.ellipse(box, outline=fill, width=5)
    elif name == "cross":
        for turn in (0, math.pi / 2):
            dx, dy = radius * math.cos(angle + turn), radius * math.sin(angle + turn)
            pen.line((x - dx, y - dy, x + dx, y + dy), fill, 7)
    else:
        corners = {"square": 4, "star": 10, "triangle": 3}[name]
        points = []
        for corner in range(corners):
            turn = angle + 2 * math.pi * corner / corners
            length = radius / 2.4 if name == "star" and corner % 2 else radius
            points.append((x + length * math.cos(turn), y + length * math.sin(turn)))
        pen.polygon(points, fill)
    return image


def color(rng: random.Random) -> tuple[int, int, int]:
    """Return a random color."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def main() -> None:
    """Write all images to the folder in the first command-line argument."""
    folder, rng = Path(sys.argv[1]), random.Random(0)
    for split, count in IMAGES.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw(name, rng).save(folder / split / name / f"{number:03}.png")


if __name__ == "__main__":
    main()
