# SPDX-License-Identifier: Apache-2.0
import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmrepmlp.verbs.infer.images import ImageError, find_images, image_loader, read_image, to_rgb


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.randint(0, 256, (40, 60, 3), np.uint8)


def test_folders_are_searched_in_any_depth_and_links_do_not_lead_astray(tmp_path, picture):
    names = ["a.png", "b/a.png", "b/c d/ü [x].JPG", "b/e.webp"]
    for name in [*names, ".hidden/a.png", "b/.a.png", "written/a.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "b/c d")
    root, images = find_images(tmp_path, (tmp_path / "written",))
    assert root == tmp_path
    found = {image.relative_to(tmp_path).as_posix() for image in images}
    assert found - {"linked/ü [x].JPG"} | {"b/c d/ü [x].JPG"} == set(names)
    assert find_images(tmp_path / "b/notes.txt") == (tmp_path / "b", [tmp_path / "b/notes.txt"])  # read it and see


def test_what_holds_no_image_is_named(tmp_path, picture):
    with pytest.raises(FileNotFoundError, match="There is no image or folder at .*none"):
        find_images(tmp_path / "none")
    with pytest.raises(ValueError, match="has no images .* expected files that end in .bmp"):
        find_images(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    with pytest.raises(ValueError, match="has no images besides those written here"):
        find_images(tmp_path / "a.png", (tmp_path,))


def save_kinds(folder, picture) -> dict:
    """Images of one content in several modes, with what OpenCV reads from them as color."""
    image = Image.fromarray(picture)
    for mode in ("RGB", "L", "RGBA", "P", "1"):
        image.convert(mode).save(folder / f"{mode}.png")
    cv2.imwrite(str(folder / "16bit.png"), picture.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "16bit.tif"), picture.astype(np.uint16) * 257)
    image.convert("CMYK").save(folder / "CMYK.jpg")
    image.resize((1, 1)).save(folder / "one pixel.png")
    return {path: cv2.imread(str(path), cv2.IMREAD_COLOR) for path in folder.iterdir()}


def test_images_of_any_mode_are_read_as_the_framework_reads_them(tmp_path, picture):
    for path, expected in save_kinds(tmp_path, picture).items():
        assert (read_image(path, LoadImageFromFile()) == expected).all(), path.name
        assert to_rgb(expected).shape == expected.shape and (to_rgb(expected)[..., ::-1] == expected).all()


@pytest.mark.parametrize(
    "suffix, kept, reason",
    [
        (".jpg", 0, "the file is empty"),
        (".jpg", 0.7, "(?i)truncated"),
        (".png", 0.7, "(?i)truncated"),
        (".jpg", 0.001, "not an image that the config can load"),
    ],
)
def test_a_part_of_an_image_is_not_read(tmp_path, picture, suffix, kept, reason):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ImageError, match=reason):
        read_image(path, LoadImageFromFile())


def test_what_is_no_file_is_not_read(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("hello")
    for name, reason in {"folder.png": "directory", "link.png": "No such file", "text.png": "not an image"}.items():
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name, LoadImageFromFile())


def test_the_loader_is_that_of_the_pipeline_but_reads_this_disk():
    pipeline = [
        dict(type="LoadImageFromFile", color_type="grayscale", backend_args=dict(backend="petrel")),
        dict(type="Resize", scale=64),
    ]
    built = image_loader(pipeline, lambda step: LoadImageFromFile(**{k: step[k] for k in step if k != "type"}))
    assert built.color_type == "grayscale" and built.backend_args is None
    assert image_loader([dict(type="Resize", scale=64)], None).color_type == "color"


def test_images_of_more_bits_or_one_channel_can_be_drawn_on():
    deep = np.array([[0, 2**16 - 1]], np.uint16)
    assert to_rgb(deep).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert to_rgb(np.float32([[[1, 2, 300]]])).tolist() == [[[255, 1, 0]]]
    assert to_rgb(np.zeros((2, 3, 5), np.uint8)).shape == (2, 3, 3)
