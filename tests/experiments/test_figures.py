"""The figures, read back with Pillow."""

import io
import math
import re

import numpy as np
import pytest
from PIL import Image

from experiments.reporting import canvas, charts
from experiments.reporting.charts import (
    save_kl_per_layer,
    save_learning_curves,
)
from experiments.reporting.charts_of_runs import save_learning_curves_of_runs
from experiments.reporting.sheets import save_build_up, save_comparison, save_image_grid

GAP = np.array([203, 210, 217])
MARGIN, GAP_WIDTH = 12, 2


def read_pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def block(pixels, top, left, height, width):
    return pixels[top : top + height, left : left + width]


def distance_to(pixels, color):
    return np.abs(pixels - np.array(color)).max(axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_every_pixel_of_every_image_at_its_place(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, channels), dtype=np.uint8)
    path = save_image_grid(images, tmp_path / "grid.png", num_columns=2, upscale=7)
    pixels = read_pixels(path)

    height, width = 3 * 7, 4 * 7
    assert pixels.shape == (
        2 * MARGIN + 3 * height + 2 * GAP_WIDTH,
        2 * MARGIN + 2 * width + GAP_WIDTH,
        3,
    )
    for index, image in enumerate(images):
        top = MARGIN + index // 2 * (height + GAP_WIDTH)
        left = MARGIN + index % 2 * (width + GAP_WIDTH)
        enlarged = Image.fromarray(image.squeeze()).convert("RGB")
        enlarged = enlarged.resize((width, height), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(block(pixels, top, left, height, width), np.asarray(enlarged))
    unused_cell = block(pixels, MARGIN + 2 * (height + GAP_WIDTH), MARGIN + width, height, width)
    assert np.all(unused_cell == GAP)
    assert np.all(pixels[:MARGIN] == 255) and np.all(pixels[:, -MARGIN:] == 255)


def test_floats_are_scaled_clipped_and_nan_is_black(tmp_path):
    values = np.array([0.0, 0.5, 1.0, -3.0, 2.0, np.nan, np.inf, -np.inf])
    path = save_image_grid(values.reshape(1, 1, 8, 1), tmp_path / "grid.png", upscale=4)
    row = read_pixels(path)[MARGIN + 2, MARGIN + 2 : -MARGIN : 4, 0]
    assert row.tolist() == [0, 128, 255, 0, 255, 0, 255, 0]


def test_floats_of_another_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"one is 204; sere_jax\.to_pixels"):
        save_image_grid(np.full((1, 2, 2, 1), 204.0), tmp_path / "grid.png")


@pytest.mark.parametrize(("num", "side"), [(64, 8), (100, 28), (1, 28)])
def test_sheet_is_about_800_pixels_wide(tmp_path, num, side):
    path = save_image_grid(np.zeros((num, side, side, 1)), tmp_path / "grid.png")
    height, width, _ = read_pixels(path).shape
    assert 600 <= width <= 1000
    assert height == width


def test_the_versions_of_an_image_stand_below_each_other(tmp_path):
    num, side = 10, 4
    originals = np.linspace(0.0, 0.4, num)[:, None, None, None] * np.ones((1, side, side, 1))
    versions = {"original": originals, "brighter": originals + 0.5}
    path = save_comparison(versions, tmp_path / "pairs.png")
    pixels = read_pixels(path)

    num_columns, upscale = 5, 800 // (5 * side)
    cell = side * upscale + GAP_WIDTH
    right_edge = pixels.shape[1] - MARGIN
    left = right_edge - num_columns * cell + GAP_WIDTH
    pair_tops = [MARGIN, len(pixels) - MARGIN - 2 * cell + GAP_WIDTH]
    for index in range(num):
        x = left + index % num_columns * cell + cell // 2
        y = pair_tops[index // num_columns] + cell // 2
        expected = 255 * originals[index, 0, 0, 0]
        assert abs(pixels[y, x, 0] - expected) <= 0.5
        assert abs(pixels[y + cell, x, 0] - (expected + 127.5)) <= 0.5
    labels = pixels[:, :left]
    for top in pair_tops:
        assert np.any(labels[top : top + cell] < 150), "first label"
        assert np.any(labels[top + cell : top + 2 * cell] < 150), "second label"
    assert np.all(pixels[pair_tops[0] + 2 * cell : pair_tops[1]] == 255)


@pytest.mark.parametrize(("num_layers", "shown"), [(4, [0, 1, 2, 3]), (64, range(0, 64, 4))])
def test_a_build_up_shows_the_pixels_of_the_layers_so_far(tmp_path, num_layers, shown):
    side = math.isqrt(num_layers)
    layer_of_pixel = np.arange(num_layers).reshape(side, side)
    images = np.stack([np.zeros((side, side, 1)), np.ones((side, side, 1))])

    pixels = read_pixels(save_build_up(images, layer_of_pixel, tmp_path / "build_up.png"))

    shown = np.round(np.linspace(0, num_layers - 1, len(shown))).astype(int)
    upscale = round(800 / (len(shown) * side))
    cell = side * upscale + GAP_WIDTH
    assert pixels.shape[1] == 2 * MARGIN + len(shown) * cell - GAP_WIDTH
    top = len(pixels) - MARGIN - 2 * cell + GAP_WIDTH
    assert np.any(pixels[:top] < 200), "numbers of the layers"
    for row, value in enumerate((0, 255)):
        for column, last in enumerate(shown):
            cut = pixels[top + row * cell :, MARGIN + column * cell :, 0]
            image = cut[upscale // 2 :: upscale, upscale // 2 :: upscale][:side, :side]
            np.testing.assert_array_equal(image == value, layer_of_pixel <= last)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 8, 8)), r"\(4, 8, 8\)"),
        (np.zeros((4, 8, 8, 2)), r"\(4, 8, 8, 2\)"),
        (np.zeros((0, 8, 8, 1)), r"\(0, 8, 8, 1\)"),
        (np.zeros((4, 8, 8, 1), np.int32), "int32"),
    ],
)
def test_wrong_images_are_refused(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        save_image_grid(images, tmp_path / "grid.png")
    with pytest.raises(ValueError, match=message):
        save_comparison({"one": images, "other": images}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match=message):
        save_build_up(images, np.zeros((8, 8), int), tmp_path / "grid.png")
    assert list(tmp_path.iterdir()) == []


def test_wrong_sizes_are_refused(tmp_path):
    images = np.zeros((4, 8, 8, 1))
    with pytest.raises(ValueError, match="num_columns must be positive, not 0"):
        save_image_grid(images, tmp_path / "grid.png", num_columns=0)
    with pytest.raises(ValueError, match="upscale must be positive, not -1"):
        save_image_grid(images, tmp_path / "grid.png", upscale=-1)
    with pytest.raises(ValueError, match=r"one \(4, 8, 8, 1\), other \(3, 8, 8, 1\)"):
        save_comparison({"one": images, "other": images[:3]}, tmp_path / "grid.png")
    with pytest.raises(ValueError, match=r"layer_of_pixel must be \(8, 8\), not \(4, 8\)"):
        save_build_up(images, np.zeros((4, 8), int), tmp_path / "grid.png")


def training_records(num_epochs, **metrics):
    record = {"split": "train", "elbo": -90.0} | metrics
    epochs = range(1, num_epochs + 1)
    return [{"step": 100 * epoch, "epoch": float(epoch)} | record for epoch in epochs]


def test_learning_curves_show_training_and_validation_in_their_colours(tmp_path):
    train = training_records(20)
    validation = [record | {"split": "validation", "elbo": -95.0} for record in train]
    pixels = read_pixels(save_learning_curves(train + validation, tmp_path / "curves.png"))

    def longest_row(color):
        return np.sum(distance_to(pixels, color) < 40, axis=1)

    train_row = longest_row((0x7A, 0xA6, 0xD8)).argmax()
    validation_row = longest_row((0xC2, 0x41, 0x0C)).argmax()
    for color in ((0x7A, 0xA6, 0xD8), (0xC2, 0x41, 0x0C)):
        assert longest_row(color).max() > 0.7 * pixels.shape[1]
    assert train_row < validation_row, "the higher ELBO is drawn higher"


def test_curves_of_runs_lie_as_their_values_and_the_start_does_not_squash_them(tmp_path):
    def run(elbo):
        values = [-500.0, *[elbo] * 19]
        return [{"split": "validation", "epoch": i, "elbo": v} for i, v in enumerate(values)]

    runs = {"worse": run(-95.0), "better": run(-85.0)}
    pixels = read_pixels(save_learning_curves_of_runs({"all": runs}, tmp_path / "curves.png"))

    # The longest lines in the first and the last colour, the better run first.
    rows = [
        np.sum(distance_to(pixels, color) < 20, axis=1).argmax()
        for color in ((0x44, 0x01, 0x54), (0x5E, 0xC9, 0x62))
    ]
    assert rows[1] - rows[0] > 0.5 * pixels.shape[0]


def test_blow_up_at_the_start_does_not_squash_the_rest():
    values = -90.0 + np.random.default_rng(0).normal(size=1000)
    blown_up = values.copy()
    blown_up[:20] = -np.geomspace(1e8, 1e3, 20)
    lower, upper = charts._limits_of_the_bulk(blown_up)
    assert values.min() - 2.0 < lower < values.min() + 2.0
    assert upper >= values.max()


@pytest.mark.parametrize("num", [1, 2, 3, 50])
def test_all_values_are_shown_where_none_is_far_off(num):
    values = np.linspace(-100.0, -80.0, num)
    lower, upper = charts._limits_of_the_bulk(values)
    assert lower <= values.min() and values.max() <= upper


def test_the_figure_says_that_values_are_cut_off(tmp_path):
    records = training_records(50)
    plain = read_pixels(save_learning_curves(records, tmp_path / "plain.png"))
    records[0]["elbo"] = -1e9
    cut = read_pixels(save_learning_curves(records, tmp_path / "cut.png"))
    top_right = (slice(0, 45), slice(plain.shape[1] // 2, None))
    assert plain[top_right].min() > 200
    assert cut[top_right].min() < 180


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{}, {"step": 1, "epoch": 1.0, "split": "train"}],
        [{"step": 1, "epoch": None, "split": "train", "elbo": -90.0}],
        [{"step": 1, "epoch": 1.0, "split": "train", "elbo": None, "gradient_norm": None}],
        [{"step": 0, "epoch": 0.0, "split": "validation", "elbo": 0.0, "kl_per_layer": [1.0]}],
        training_records(1),
        training_records(3, elbo=-1e30),
        training_records(3, gradient_norm=0.0, learning_rate=0.0, kl_weight=0.0),
        training_records(2, gradient_norm=1.0) + training_records(1, gradient_norm=0.0),
        training_records(3, gradient_norm=float("inf"), elbo=None),
    ],
)
def test_learning_curves_of_incomplete_records(tmp_path, records):
    pixels = read_pixels(save_learning_curves(records, tmp_path / "curves.png"))
    assert pixels.shape[1] == 1200


def test_panels_appear_for_what_was_logged(tmp_path):
    logged = {"gradient_norm": 2.0, "learning_rate": 1e-3, "kl_weight": 1.0}
    heights = [
        len(read_pixels(save_learning_curves(training_records(3, **metrics), tmp_path / "c.png")))
        for metrics in ({}, {"gradient_norm": 2.0}, logged)
    ]
    assert heights[0] < heights[1] < heights[2]


def bar_heights(pixels, color):
    """Height in pixels of each bar, from left to right."""
    filled = distance_to(pixels, color) < 12
    heights = filled.sum(axis=0)
    is_bar = heights > 5
    starts = np.flatnonzero(np.diff(is_bar.astype(int)) == 1) + 3
    return heights[starts]


@pytest.mark.parametrize("num_layers", [1, 10, 100])
def test_height_of_each_bar_is_proportional_to_its_kl(tmp_path, num_layers):
    kl = 1.0 + 9.0 * np.random.default_rng(1).random(num_layers)
    pixels = read_pixels(save_kl_per_layer(kl, tmp_path / "kl.png"))
    heights = bar_heights(pixels, (0x48, 0x65, 0x81))
    assert len(heights) == num_layers
    np.testing.assert_allclose(heights / heights.max(), kl / kl.max(), atol=0.01)


@pytest.mark.parametrize(("num_layers", "num_epochs"), [(1, 1), (2, 12), (100, 12)])
def test_history_adds_a_panel_with_a_line_for_each_layer(tmp_path, num_layers, num_epochs):
    kl = np.linspace(5.0, 1.0, num_layers)
    history = [(float(epoch), list(kl)) for epoch in range(num_epochs)]
    bars = read_pixels(save_kl_per_layer(kl, tmp_path / "bars.png"))
    both = read_pixels(save_kl_per_layer(kl, tmp_path / "both.png", history))
    assert len(both) > 1.5 * len(bars)
    first_layer = distance_to(both[len(both) // 2 :], (0x44, 0x01, 0x54)) < 60
    assert first_layer.any(), "colour of the first layer's bar"
    if num_epochs > 1:
        assert first_layer.sum(axis=1).max() > 0.7 * both.shape[1]


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("num_layers", [1, 2, 12])
def test_bars_of_an_svg_have_their_heights_and_their_values(num_layers):
    kl = 1.0 + 9.0 * np.random.default_rng(1).random(num_layers)
    svg = canvas.as_svg(charts.draw_kl_per_layer(kl, width=4.8))
    bars = [
        np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2)
        for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
        if style.startswith("fill: var(--blue)")
    ]
    assert len(bars) == num_layers
    heights = np.array([np.ptp(bar[:, 1]) for bar in bars])
    np.testing.assert_allclose(heights / heights.max(), kl / kl.max(), atol=2e-3)
    assert [text for text in texts(svg) if re.fullmatch(r"\d+\.\d\d", text)] == [
        f"{value:.2f}" for value in kl
    ]


def test_colours_of_an_svg_are_those_of_the_page_and_lines_have_names():
    records = training_records(3, kl_weight=0.5)
    records = [r | {"learning_rate": 1e-3 * r["epoch"]} for r in records]
    records += [r | {"split": "validation", "elbo": -95.0} for r in records]
    svg = canvas.as_svg(charts.draw_learning_curves(records, 4.8))
    assert {"training", "validation", "learning rate", "epochs"} <= set(texts(svg))
    assert "0.002" in texts(svg), "digits of ticks are all there"
    assert "var(--light-blue)" in svg and "var(--orange)" in svg
    history = [(0.0, [3.0, 2.0]), (1.0, [4.0, 1.0])]
    bars = canvas.as_svg(charts.draw_kl_per_layer([4.0, 1.0], history, 4.8))
    assert {"layer 1", "layer 2"} <= set(texts(bars))
    for drawn in (svg, bars):
        assert set(re.findall(r"(.{20})#[0-9a-f]{6}", drawn)) <= {": color-mix(in oklab, "[-20:]}
        assert re.match(r'<svg viewBox="[\d. ]+">', drawn)
        named = set(re.findall(r' id="([^"]*)"', drawn))
        assert named == set(re.findall(r'(?:url\(#|href="#)([^)"]*)', drawn))


def test_names_at_the_ends_of_lines_are_apart_and_as_near_as_they_can_be():
    assert charts.spread(np.array([0.1, 0.5, 0.9]), 0.1).tolist() == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(charts.spread(np.array([0.2, 0.2, 0.9]), 0.1), [0.2, 0.3, 0.9])
    np.testing.assert_allclose(charts.spread(np.array([0.2, 0.98, 1.0]), 0.1), [0.2, 0.9, 1.0])
    crowded = charts.spread(np.full(5, 1.0), 0.1)
    np.testing.assert_allclose(crowded, [0.6, 0.7, 0.8, 0.9, 1.0])
    assert charts.spread(np.array([]), 0.1).size == 0


def test_kl_with_gaps_and_negative_estimates(tmp_path):
    def drawn(*history):
        return read_pixels(save_kl_per_layer([np.nan, -0.1], tmp_path / "kl.png", history))

    with_gaps = drawn((1.0, [None, -0.2]), (0.0, [0.5, float("nan")]))
    np.testing.assert_array_equal(with_gaps, drawn((0.0, [0.5, None]), (1.0, [np.nan, -0.2])))
    assert (with_gaps != drawn((0.0, [0.5, -0.2]), (1.0, [0.5, -0.2]))).any()
    assert (with_gaps != drawn((0.0, [0.5, None]), (1.0, [np.nan, -0.4]))).any()


def test_wrong_kl_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        save_kl_per_layer(np.zeros((2, 2)), tmp_path / "kl.png")
    with pytest.raises(ValueError, match=r"\(0,\)"):
        save_kl_per_layer([], tmp_path / "kl.png")
    with pytest.raises(ValueError, match="3 layers at epoch 2"):
        save_kl_per_layer([1.0, 2.0], tmp_path / "kl.png", [(2, [1.0, 2.0, 3.0])])


def test_failed_drawing_leaves_the_old_figure(tmp_path, monkeypatch):
    path = save_kl_per_layer([1.0], tmp_path / "kl.png")
    before = path.read_bytes()

    def fail(canvas, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        save_kl_per_layer([2.0], path)
    assert path.read_bytes() == before
    Image.open(io.BytesIO(before)).verify()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("heights", [[0.5] * 4, [0.0, 0.01, 0.99, 1.0], [0.1, 0.2, 0.9, 0.9]])
def test_labels_keep_their_order_and_a_distance(heights):
    places = charts.spread(np.array(heights), 0.1)
    assert np.all((places >= 0) & (places <= 1))
    assert np.all(np.diff(places) >= 0.1 - 1e-9)
