"""Draw the example pages of examples/: an A4 page at 150 dpi and a narrow receipt. Run from the root."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TEXT = (
    "A layer is a short list of equations over named axes. Everything else follows from them: the work, "
    "the traffic, the parameters, the KV cache, the peak of activations, and the formula that a person reads."
)


def draw(width: int, height: int, margin: int, size: int, path: Path) -> None:
    """A page of running text in the built-in font, grey on white."""
    page = Image.new("L", (width, height), 255)
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size)
    words = TEXT.split()
    x, y, index = margin, margin, 0
    while y < height - margin - size:
        word = words[index % len(words)] + " "
        length = int(pen.textlength(word, font=font))
        if x + length > width - margin:
            x, y = margin, y + size * 3 // 2
            continue
        pen.text((x, y), word, fill=30, font=font)
        x, index = x + length, index + 1
    page.quantize(8).save(path, optimize=True)


if __name__ == "__main__":
    draw(1240, 1754, 110, 26, Path("examples/page.png"))
    draw(420, 1180, 30, 20, Path("examples/receipt.png"))
