"""Test data sets that are read from folders of image files."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from synthetic_cifar import png_with_size

from cifar_jax import data
from cifar_jax.cli import run
from cifar_jax.data import image_folder
from cifar_jax.data.images import read_image
from cifar_jax.errors import UserError


def fill(folder: Path, count: int, seed: int = 0, suffix: str = ".png") -> None:
    """Write `count` noisy images. Their mean color depends on the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, *folder.name.encode()])
    gray = rng.integers(60, 200, 3)
    for i in range(count):
        noise = rng.integers(-40, 40, (40 + i % 3, 50, 3))
        Image.fromarray((gray + noise).astype(np.uint8)).save(folder / f"{i:03d}{suffix}")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Image folder with three classes and no `train` or `test` folder."""
    for name, count in (("dog", 10), ("cat", 20), ("axolotl", 5)):
        fill(tmp_path / "pets" / name, count)
    return tmp_path / "pets"


def load(path: Path) -> data.Dataset:
    return data.load(f"folder:{path}")


def pictures(split: data.Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    path = tmp_path / "pets"
    fill(path / "train" / "dog", 6)
    fill(path / "train" / "cat", 4, suffix=".jpg")
    fill(path / "train" / "cat" / "kittens", 3)
    fill(path / "test" / "cat", 2, seed=1)
    dataset = load(path)
    assert dataset.name == "folder:pets"
    assert dataset.classes == ("cat", "dog")
    assert np.bincount(dataset.train.labels).tolist() == [7, 6]
    assert dataset.test.labels.tolist() == [0, 0]
    assert (dataset.train.images.dtype, dataset.train.images.shape) == (np.uint8, (13, 32, 32, 3))
    assert not dataset.official
    first = read_image(path / "train" / "dog" / "000.png")
    index = [np.array_equal(image, first) for image in dataset.train.images].index(True)
    assert dataset.train.labels[index] == 1


def test_a_fifth_of_each_class_is_held_out(pets: Path) -> None:
    dataset = load(pets)
    assert dataset.classes == ("axolotl", "cat", "dog")
    assert np.bincount(dataset.train.labels).tolist() == [4, 16, 8]
    assert np.bincount(dataset.test.labels).tolist() == [1, 4, 2]
    assert not pictures(dataset.train) & pictures(dataset.test)


def test_split_and_order_depend_on_the_images_only(pets: Path) -> None:
    first = load(pets)
    labels = first.train.labels.tolist()
    assert labels != sorted(labels), "not shuffled"
    for file in list(pets.rglob("*.png")):
        file.rename(file.with_name(f"{999 - int(file.stem)}.png"))
    assert load(pets).fingerprint == first.fingerprint
    pets.rename(pets.with_name("moved"))
    assert load(pets.with_name("moved")).fingerprint == first.fingerprint


def test_copies_of_an_image_are_in_the_same_split(pets: Path) -> None:
    """All copies of a test image are test images, even copies with another label."""
    for file in list((pets / "dog").iterdir()):
        file.unlink()
    fill(pets / "cat", 23)
    for file in list((pets / "cat").iterdir()):
        for copy in range(5):
            (pets / "dog" / f"{copy}-{file.name}").write_bytes(file.read_bytes())
    dataset = load(pets)
    assert not pictures(dataset.train) & pictures(dataset.test)
    assert np.bincount(dataset.test.labels).tolist() == [1, 4, 20]


def test_images_are_cached_until_a_file_changes(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(pets)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "decode", None)
        assert load(pets).fingerprint == first.fingerprint
        monkeypatch.chdir(pets.parent)
        assert data.load("folder:pets").fingerprint == first.fingerprint
        monkeypatch.chdir(pets)
        assert data.load("folder:.").name == "folder:pets"
    fill(pets / "dog", 12)
    assert len(load(pets).train.labels) == len(first.train.labels) + 2
    os.utime(pets / "dog" / "000.png")
    monkeypatch.setattr(image_folder, "decode", None)
    with pytest.raises(TypeError):
        load(pets)


def test_hidden_and_other_files_are_skipped(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(load(pets).train.labels)
    for name in (".DS_Store", ".ipynb_checkpoints/000.png", "dog/.hidden.png", "__MACOSX/a.png"):
        (pets / name).parent.mkdir(exist_ok=True)
        (pets / name).write_text("not an image")
    (pets / "cat" / "notes.txt").write_text("hello")
    (pets / "cat" / "labels.json").write_text("{}")
    fill(pets / "cat" / "@eaDir" / "001.png", 1)
    for name in ("$RECYCLE.BIN", "System Volume Information", "@eaDir", "lost+found"):
        (pets / name).mkdir()
        (pets / name / "desktop.ini").touch()
    capsys.readouterr()
    os.utime(pets / "dog" / "000.png")
    assert len(load(pets).train.labels) == count
    assert "skipped 2 files" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("Training", None, "Testing"),
        ("training_set", None, "test_set"),
        ("seg_train/seg_train", None, "seg_test/seg_test"),
        ("TRAIN", "Val", None),
        ("train_images", "validation", "testset"),
        ("train", "valid", "Test"),
        ("ILSVRC2012_img_train", "ILSVRC2012_img_val", None),
        ("PetsTrain", "PetsVal", "PetsTest"),
        ("train_augmented", None, "holdout"),
        ("train", None, "test_public"),
    ],
)
def test_split_folders_are_recognized(
    train: str, validation: str | None, test: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "pets"
    for split, count in ((train, 10), (validation, 3), (test, 5)):
        for name in ("cat", "dog") if split else ():
            fill(path / str(split) / name, count, seed=count)
    dataset = load(path)
    assert dataset.classes == ("cat", "dog")
    held_out = 6 if validation else 0
    assert dataset.validation_images == (held_out or None)
    assert len(dataset.train.labels) == (20 if test else 16) + held_out
    assert len(dataset.test.labels) == (10 if test else 4)
    if validation:
        expected = {read_image(f).tobytes() for f in (path / validation).rglob("*.png")}
        assert {image.tobytes() for image in dataset.train.images[-6:]} == expected
        assert any(note.startswith(f"validation images: {path}") for note in dataset.notes)


def test_classes_with_the_names_of_splits(tmp_path: Path) -> None:
    for name in ("vehicles/train", "vehicles/bus", "forms/valid", "forms/invalid"):
        fill(tmp_path / name, 5)
    assert load(tmp_path / "vehicles").classes == ("bus", "train")
    assert load(tmp_path / "forms").classes == ("invalid", "valid")


def test_equal_subfolders_and_incomplete_splits_are_reported(tmp_path: Path) -> None:
    for name in ("fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"):
        fill(tmp_path / "folds" / name, 3)
    note = (
        f"check the classes: the folders fold1, fold2 in {tmp_path}/folds all have the subfolders"
    )
    assert f"{note} cat, dog" in load(tmp_path / "folds").notes
    path = tmp_path / "pets"
    for name in ("train/cat", "train/dog", "test/cat"):
        fill(path / name, 3, seed=len(name))
    shutil.copy(path / "train/cat/000.png", path / "test/cat/copy.png")
    for _ in range(2):  # The second load reads the cache.
        assert load(path).notes[-1] == (
            "1 of 4 test images are copies of training or validation images"
        )


def test_links_and_pipes(pets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load(pets)
    os.mkfifo(pets / "dog" / "pipe")
    fill(pets.parent / "more", 3)
    (pets / "dog" / "more").symlink_to(pets.parent / "more")
    dataset = load(pets)
    assert dataset.fingerprint == first.fingerprint
    assert f"not used, because it is a link to a folder: {pets}/dog/more" in dataset.notes
    (pets / "dog" / "lost.png").symlink_to("nowhere")
    with pytest.raises(UserError, match="1 of 36 images"):
        load(pets)
    assert f"{pets}/dog/lost.png cannot be read: No such file" in capsys.readouterr().err
    (pets / "kitty").symlink_to("cat")
    with pytest.raises(UserError, match=r"pets/cat and .*pets/kitty are the same folder"):
        load(pets)
    (pets / "all").symlink_to(".")
    with pytest.raises(UserError, match="pets/all is a link to a folder that contains it"):
        load(pets)


def test_output_of_the_package_is_no_class(pets: Path) -> None:
    first = load(pets)
    run_folder = pets / "runs" / "basic" / "seed0"
    run_folder.mkdir(parents=True)
    (run_folder / "config.json").write_text('{"format": 1, "experiment": "basic", "seed": 0}')
    (pets / "report").mkdir()
    for name in ("report.md", "report.svg"):
        (pets / "report" / name).touch()
    dataset = load(pets)
    assert dataset.fingerprint == first.fingerprint
    assert f"not a class, because it is output of cifar-jax: {pets / 'runs'}" in dataset.notes
    fill(pets / "runs" / "figures", 1)
    with pytest.raises(UserError, match=r"pets/runs has images and the output .*seed0.* move the"):
        load(pets)


def test_names_in_both_unicode_forms_are_the_same_class(tmp_path: Path) -> None:
    for name in ("train/cafe\u0301", "train/tea", "test/caf\xe9"):
        fill(tmp_path / "pets" / name, 3)
    assert load(tmp_path / "pets").classes == ("caf\xe9", "tea")


def test_files_without_a_suffix(pets: Path) -> None:
    first = load(pets)
    for file in list(pets.rglob("*.png")):
        file.rename(file.with_suffix(""))
    (pets / "cat" / "LICENSE").write_text("free")
    assert load(pets).fingerprint == first.fingerprint


def test_16_bit_images_are_scaled_by_the_range_of_the_data_set(tmp_path: Path) -> None:
    def write(folder: str, low: int, high: int) -> None:
        for name in ("dark", "light"):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(6):
                values = np.random.default_rng([i, len(name)]).integers(low, high, (32, 32))
                file = tmp_path / folder / name / f"{i}.png"
                Image.fromarray(values.astype(np.uint16)).save(file)

    write("scan", 0, 3000)
    dataset = load(tmp_path / "scan")
    assert dataset.white == 4095
    assert dataset.train.images.max() == round(2999 * 255 / 4095)
    assert any("16-bit images: 0 to 4095 became 0 to 255" in note for note in dataset.notes)
    write("splits/train", 0, 4000)
    write("splits/test", 0, 65_000)
    evaluated = data.load_labeled(f"folder:{tmp_path}/scan", white=16383)
    assert evaluated.images.max() == round(2999 * 255 / 16383)
    with pytest.raises(UserError, match=r"12 of 12 images .*: repair or remove the files$"):
        data.load_labeled(f"folder:{tmp_path}/scan", white=65535)
    with pytest.raises(UserError, match=r"12 of 12 16-bit images for tr.* white is 65535"):
        load(tmp_path / "splits")
    write("offset", 30_000, 31_000)
    with pytest.raises(UserError, match=r"most are between .* this range is too small"):
        load(tmp_path / "offset")


def test_the_test_images_of_any_layout_are_evaluated(tmp_path: Path) -> None:
    for train, test in (("pets_train", "pets_test"), ("train", "test_public")):
        folder = tmp_path / test
        for name in ("cat", "dog"):
            fill(folder / train / name, 3)
            fill(folder / test / name, 2, seed=1)
        evaluated = data.load_labeled(f"folder:{folder}")
        assert evaluated.classes == ("cat", "dog")
        assert len(evaluated.labels) == 4
        assert evaluated.notes == (f"evaluated images: {folder / test}",)
    fill(tmp_path / "held/val/cat", 2)
    with pytest.raises(UserError, match=r"name the folder .*held/val$"):
        data.load_labeled(f"folder:{tmp_path}/held")


def test_bad_images_are_skipped_on_request(pets: Path) -> None:
    first = load(pets)
    for i in range(12):
        (pets / "cat" / f"broken{i}.png").write_bytes(b"?")
    with pytest.raises(
        UserError, match=r"all are listed in (.*): repair .*skip_bad_images=true"
    ) as e:
        load(pets)
    file = str(e.value).partition("listed in ")[2].partition(")")[0]
    assert len(Path(file).read_text().splitlines()) == 12
    for _ in range(2):  # The second load reads the cache.
        dataset = data.load(f"folder:{pets}", skip_bad_images=True)
        assert (dataset.fingerprint, len(dataset.skipped)) == (first.fingerprint, 12)
        assert "skipped 12 images that cannot be read" in dataset.notes
    with pytest.raises(UserError, match="cannot be read"):
        load(pets)
    (pets / "test" / "cat").mkdir(parents=True)
    (pets / "test" / "cat" / "broken.png").write_bytes(
        b"version https://git-lfs.github.com/spec/v1"
    )
    (pets / "train").mkdir()
    for name in ("cat", "dog", "axolotl"):
        (pets / name).rename(pets / "train" / name)
    with pytest.raises(UserError, match=r"no test image in .* can be read"):
        data.load(f"folder:{pets}", skip_bad_images=True)


def test_unreadable_images_are_named_and_refused(
    pets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pets / "dog" / "bomb.png").write_bytes(png_with_size(20_000, 20_000))
    (pets / "dog" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    (pets / "cat" / "empty.jpg").touch()
    with pytest.raises(UserError, match=r"3 of 38 images in .* cannot be read .*repair"):
        load(pets)
    lines = capsys.readouterr().err.splitlines()
    assert f"{pets}/cat/empty.jpg is empty" in lines
    assert f"{pets}/dog/bomb.png has more than 89 million pixels: make it smaller" in lines
    assert any("phone.heic is a HEIC image" in line for line in lines)
    for i in range(30):
        (pets / "cat" / f"empty{i}.jpg").touch()
    with pytest.raises(UserError, match="33 of 68 images"):
        load(pets)
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (12, "… and 23 more")


@pytest.mark.parametrize(
    ("folders", "match"),
    [
        ([], "pets has 0 class folders, but at least 2 are needed. Arrange .*/train/CLASS/"),
        (["dog"], "pets has 1 class folder,"),
        (["train/dog", "test/dog"], "pets/train has 1 class folder,"),
        (
            ["train/dog", "train/cat", "test/dogs"],
            r"pets/test/dogs is not a class .* did you mean dog\?",
        ),
        (["test/dog", "test/cat"], "has a folder `test` but no folder `train`"),
        (["dog", "cat", "bird?"], r"pets/bird\? has no images"),
        (["train/dog", "train/cat", "test"], "pets/test has no images"),
        (
            ["train/dog", "train/cat", "test/car"],
            r"car is not a class .* images\. Their .* cat, dog",
        ),
        (["Train/dog", "val/dog", "valid/cat"], "two folders of validation images, val and valid"),
        (["dog/train", "dog/test", "cat/train"], "pets/dog has folders for the splits"),
        (
            ["pets/train/dog", "pets/test/dog"],
            r"splits: name that folder, as folder:.*pets/pets",
        ),
        (["train/train/dog", "train/val/dog"], r"pets/train has folders for the splits: name that"),
        (["zoo/dog", "zoo/cat"], "Or name .*pets/zoo, if its subfolders are the classes"),
        (["Dog_train", "test dog", "cat"], "seem to be splits of one class"),
        (["clean_train/dog", "clean_train/cat", "new/dog", "new/cat"], "unclear which are the cl"),
        (["train/dog", "train/cat", "test_a/dog", "test_b/dog"], "two folders of test images"),
        (["bus", "train/steam", "train/diesel"], "If `train` is a class, rename it"),
        (["train/images", "train/masks"], "images and masks, which are not classes"),
    ],
)
def test_other_layouts_are_refused(folders: list[str], match: str, tmp_path: Path) -> None:
    path = tmp_path / "pets"
    path.mkdir()
    for name in folders:
        (path / name).mkdir(parents=True)
        if not name.endswith(("?", "test")):
            fill(path / name, 2)
    with pytest.raises(UserError, match=match) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_image_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="nowhere does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="~no-such-user/pets does not exist"):
        data.load("folder:~no-such-user/pets")
    with pytest.raises(UserError, match="file is a file, not a folder: unpack it"):
        load(tmp_path / "file")
    with pytest.raises(UserError, match=r"did you mean folder:PATH\?"):
        data.load("folder:")
    for name in ("dog", "cat"):
        fill(tmp_path / "pets" / name, 1)
    with pytest.raises(UserError, match="too few different images to hold out some"):
        load(tmp_path / "pets")
    (tmp_path / "pets" / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(UserError, match="cannot be printed: rename it"):
        load(tmp_path / "pets")


def train(folder: str) -> int:
    """Train `basic` for one epoch on a folder of images. Use the default run folder."""
    arguments = ["train", "basic", "--set", f"data.dataset=folder:{folder}"]
    for setting in ("data.validation=0.2", "epochs=1", "batch_size=4", "train.devices=1"):
        arguments += ["--set", setting]
    return run(arguments)


def test_a_run_folder_inside_a_class_is_refused(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pets / "cat")
    assert train("..") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"the run folder {pets}/cat/runs/" in error
    assert f"is inside {pets}/cat, which contains images: choose another --workdir" in error
    assert not (pets / "cat" / "runs").exists()


def test_a_run_finds_its_images_after_they_were_moved(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(pets)
    assert train(".") == 0
    (result_file,) = pets.rglob("result.json")
    folder = result_file.parent
    result = json.loads(result_file.read_text())
    assert result["dataset"] == "folder:pets"
    assert result["data_sha256"] == load(pets).fingerprint
    assert "\nclasses: axolotl, cat, dog\n" in (folder / "log.txt").read_text()
    # Stop the run, move the images, and resume the run.
    moved = pets.parent / "elsewhere" / "pets"
    moved.parent.mkdir()
    shutil.copytree(pets, moved, ignore=shutil.ignore_patterns("runs"))
    assert train("../elsewhere/pets/") == 0
    assert "is finished" in capsys.readouterr().out
    result_file.unlink()
    assert train(f"{moved}/") == 0
    assert len(list(pets.rglob("result.json"))) == 1
    assert json.loads(result_file.read_text())["params_sha256"] == result["params_sha256"]
    assert json.loads((folder / "config.json").read_text())["settings"]["data.dataset"] == (
        f"folder:{moved}"
    )
    moved.rename(moved.with_name("renamed"))
    assert run(["evaluate", str(folder)]) == 2
    renamed = f"data.dataset=folder:{moved.with_name('renamed')}"
    assert run(["evaluate", str(folder), "--set", renamed]) == 0
    fill(moved / "cat", 30)
    fill(moved / "dog", 30)
    capsys.readouterr()
    assert train(str(moved)) == 2
    assert "was started with other images of folder:pets" in capsys.readouterr().err


def test_images_have_the_target_size_and_the_split_is_the_same_for_every_size(
    tmp_path: Path,
) -> None:
    for name in ("cat", "dog"):
        fill(tmp_path / "pets" / name, 10)
    files = sorted((tmp_path / "pets").rglob("*.png"))
    copied = tmp_path / "pets" / "cat" / "copy.png"
    shutil.copy(files[0], copied)

    def fitted(file: Path, size: int, center_crop: bool) -> bytes:
        with Image.open(file) as image:
            bicubic = Image.Resampling.BICUBIC
            whole = image.resize((size, size), bicubic)
            return (ImageOps.fit(image, (size, size), bicubic) if center_crop else whole).tobytes()

    def names(split: data.Split, size: int, center_crop: bool) -> list[str]:
        by_pixels = {fitted(file, size, center_crop): str(file) for file in files}
        return [by_pixels[image.tobytes()] for image in split.images]

    default = load(tmp_path / "pets")
    expected = [names(split, 32, True) for split in (default.train, default.test)]
    # Each size is loaded twice. The second load reads the cache.
    for size, center_crop in [(64, True), (48, False), (32, False), (32, True)] * 2:
        target = data.Target(size, center_crop)
        dataset = data.load(f"folder:{tmp_path / 'pets'}", target=target)
        assert dataset.image_shape == (size, size, 3)
        splits = dataset.train, dataset.test
        assert [names(split, size, center_crop) for split in splits] == expected
        assert dataset.train.labels.tolist() == default.train.labels.tolist()
    assert data.load(f"folder:{tmp_path / 'pets'}").fingerprint == default.fingerprint


def test_a_data_set_of_arrays_refuses_another_size() -> None:
    with pytest.raises(UserError, match="image_size is 64, but digits has images of 32 × 32"):
        data.load("digits", target=data.Target(64))
    with pytest.raises(UserError, match="center_crop has no effect on digits"):
        data.load("digits", target=data.Target(center_crop=False))
