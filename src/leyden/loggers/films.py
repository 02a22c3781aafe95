"""Films: what a picture was at every step, as `samples/<name>/step-<step>.png`, and the GIF `samples/<name>.gif`.

The frames on disk are all there is: a resumed run's film has those from before it, too.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leyden.figures.image_files import open_image

FRAMES = "step-" + "[0-9]" * 9 + ".png"
LONGEST = 100  # frames of a GIF; more are thinned out evenly
SECONDS = 6.0  # that it takes, if no frame stays shorter than 1/20 s or longer than 1/2 s
LAST = 2.0  # seconds that the last frame stays


def gif(run_dir: Path, name: str) -> Path:
    """Where the film `name` is."""
    return run_dir / "samples" / f"{name}.gif"


def write_png(path: Path, pixels: np.ndarray, description: str) -> None:
    """Write uint8 pixels (H, W) or (H, W, 3), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    info = PngInfo()
    info.add_itxt("Description", description)
    Image.fromarray(pixels).save(partial, format="png", pnginfo=info)
    partial.replace(path)


def add_frame(run_dir: Path, name: str, pixels: np.ndarray, step: int) -> None:
    """Add a frame, and renew the GIF: always while it is short, then each time that it has grown by a tenth."""
    path = gif(run_dir, name)
    write_png(path.with_suffix("") / f"step-{step:09d}.png", pixels, f"{name} at step {step}")
    count = len(_frames(path))
    if count % max(1, count // 10) == 0:  # 100 frames take a second
        render(path)


def truncate(run_dir: Path, step: int) -> None:
    """Drop the frames of steps after `step`."""
    late = [path for path in (run_dir / "samples").rglob(FRAMES) if int(path.stem.removeprefix("step-")) > step]
    for path in late:
        path.unlink()
    for folder in {path.parent for path in late}:
        render(folder.with_name(folder.name + ".gif"))


def render(path: Path) -> None:
    """Make the GIF at `path` anew from its frames; without any, remove it."""
    frames = _frames(path)
    if not frames:
        path.unlink(missing_ok=True)
        return
    kept = np.linspace(0, len(frames) - 1, min(len(frames), LONGEST)).round().astype(int)
    first, *others = (_of_256_colours(frames[k]) for k in kept)
    milliseconds = [int(1000 * min(0.5, max(0.05, SECONDS / len(kept))))] * len(others) + [int(1000 * LAST)]
    partial = path.with_name(path.name + ".tmp")
    first.save(partial, format="gif", save_all=True, append_images=others, duration=milliseconds, loop=0)
    partial.replace(path)


def _frames(path: Path) -> list[Path]:
    return sorted(path.with_suffix("").glob(FRAMES))


def _of_256_colours(path: Path) -> Image.Image:
    with open_image(path) as frame:
        if frame.mode == "L":
            return frame.copy()
        return frame.quantize(method=Image.Quantize.FASTOCTREE)  # a tenth of the default's time
