"""Puts the models of a training run into the package: python scripts/embed_model.py RUN_FOLDER.

`demo` is copied whole; `demo-fast` shares its encoders and VAE and brings its transformer only.
"""

import json
import shutil
import sys
from pathlib import Path

ASSETS = Path(__file__).parents[1] / "skyreels_rt" / "assets"
SHARED = ("vae", "audio_encoder", "text_encoder")
MAX_TOTAL, MAX_FILE = 24_000_000, 8 * 2**20


def main() -> None:
    """Copy, then check the sizes that the package may have."""
    run = Path(sys.argv[1])
    for name in ("demo", "demo-fast"):
        if not (run / name).is_dir():
            print(f"{name}: not in {run}, left as it is")
            continue
        target = ASSETS / name
        card = target / "README.md"
        text = card.read_bytes() if card.exists() else None
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(run / name, target)
        if text is not None:
            card.write_bytes(text)
        if name == "demo-fast":
            for part in SHARED:
                if tree(run / name / part) != tree(run / "demo" / part):
                    raise SystemExit(f"{part} of demo-fast is not demo's")
                shutil.rmtree(target / part)
            index = target / "model_index.json"
            data = json.loads(index.read_text(encoding="utf-8"))
            index.write_text(json.dumps({**data, "_base": "demo"}, indent=2) + "\n", "utf-8")
    sizes = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    print(f"{sum(sizes.values()) / 1e6:.1f} MB, largest file {max(sizes.values()) / 2**20:.2f} MiB")
    if sum(sizes.values()) > MAX_TOTAL or max(sizes.values()) > MAX_FILE:
        raise SystemExit("too large to ship")


def tree(folder: Path) -> dict[str, bytes]:
    """Contents of every file of a folder, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


if __name__ == "__main__":
    main()
