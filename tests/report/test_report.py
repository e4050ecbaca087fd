import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesion_table import tabulate, write_lesion_table
from pwmlunet.evaluation.masks import LESION
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.report.figures import Curve
from pwmlunet.report.report import write_report

GRID = Geometry((5, 60, 70), (3.0, 0.7, 0.5), (4.0, 5.0, 6.0))
PLACES = {
    # lesions begin at (z, y, x): those of the reference, those of the prediction
    "perfect": ([(1, 10, 10), (3, 40, 50)], [(1, 10, 10), (3, 40, 50)]),
    "sub-1_late": ([(1, 10, 10), (4, 40, 60)], [(1, 10, 10)]),
    "clean": ([], []),
    "sub-1_early": ([(2, 30, 30)], [(2, 5, 5), (0, 50, 60)]),
}


def lesions(places: list[tuple[int, int, int]]) -> NDArray[np.uint8]:
    mask = np.zeros(GRID.shape_zyx, np.uint8)
    for z, y, x in places:
        mask[z, y : y + 2, x : x + 3] = 1
    return mask


def write_cases(home: Path) -> dict[str, Path]:
    """Folders of four cases; images are noise."""
    rng = np.random.default_rng(0)
    for name, (reference, prediction) in PLACES.items():
        image = rng.normal(100, 10, GRID.shape_zyx).astype(np.float32)
        write_image(home / "imagesTr" / f"{name}_0000.nii.gz", image, GRID)
        write_image(home / "labelsTr" / f"{name}.nii.gz", lesions(reference), GRID)
        write_image(home / "predicted" / f"{name}.nii.gz", lesions(prediction), GRID)
    return {"reference": home / "labelsTr", "prediction": home / "predicted", "images": home / "imagesTr"}


def write_probabilities(folder: Path) -> None:
    for name, (_, places) in PLACES.items():
        write_probability(folder / f"{name}.npz", 0.8 * lesions(places)[None].astype(np.float32) + 0.01)


class Page(HTMLParser):
    """What a test wants to know of a page: strips by case, what is told of them, addresses, and all text."""

    def __init__(self, path_or_text: Path | str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.strips: list[tuple[str, str]] = []
        self.shown: list[tuple[str, str]] = []
        self.pictures: list[str | None] = []
        self.text = ""
        self._case, self._is_hidden = "", False
        self.source = path_or_text if isinstance(path_or_text, str) else path_or_text.read_text("utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids += [value for key, value in attributes if key == "id" and value]
        self.links += [value for key, value in attributes if key in ("href", "src") and value]
        if "data-case" in values:
            self._case, self._is_hidden = values["data-case"] or "", "hidden" in values
        if "data-kinds" in values:
            self.strips.append((self._case, values["data-kinds"] or ""))
            if not self._is_hidden and "hidden" not in values:
                self.shown.append(self.strips[-1])
        if tag in ("img", "svg") and "aria-hidden" not in values:
            self.pictures.append(values.get("alt") or values.get("aria-label"))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def cases(self) -> list[str]:
        return [name.removeprefix("case-") for name in self.ids if name.startswith("case-")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four cases and the report of their scores; not to be changed."""
    home = tmp_path_factory.mktemp("report")
    folders = write_cases(home)
    write_probabilities(home / "predicted")
    curve = Curve("fold_0", (1, 2), (0.5, 0.25), (None, 0.5), (None, 0.4))
    assert write_report(home / "report.html", **folders, curves=[curve]) == 4
    return home


@pytest.fixture(scope="module")
def page(home: Path) -> Page:
    return Page(home / "report.html")


def test_the_worst_cases_come_first(page: Page) -> None:
    assert page.cases == ["sub-1_early", "sub-1_late", "perfect", "clean"]


def test_each_place_says_what_is_found_missed_and_false(page: Page) -> None:
    assert page.strips == [
        ("sub-1_early", "missed"),
        ("sub-1_early", "false"),
        ("sub-1_early", "false"),
        ("sub-1_late", "missed"),
        ("sub-1_late", "found"),
        ("perfect", "found"),
        ("perfect", "found"),
        ("clean", "none"),
    ]


def test_results_stand_with_their_n_and_interval(page: Page) -> None:
    assert "4 cases of 3 subjects" in page.text
    assert "probability above 10 %, cut at half of the highest" in page.text
    row = re.search(r"Lesions found \(recall\)\s*(\d+ %)\s*(\d+ % to \d+ %)\s*(.*?lesions)", page.text)
    assert row
    assert row.group(1, 3) == ("60 %", "3 of 5 reference lesions")
    assert "False lesions per subject without lesions0.00–1 subject, 0 of them with false lesions" in re.sub(r"\s*\n\s*", "", page.text)  # fmt: skip


def test_sections_are_there_with_charts_that_have_a_text(page: Page) -> None:
    assert {"results", "sizes", "froc", "reliability", "training", "cases"} <= set(page.ids)
    assert len(page.pictures) == 4 + 33 + 1  # charts, strips, and the slice of the clean case
    assert all(page.pictures)
    assert "axial 2, enlarged, outlined: reference" in page.pictures


def test_the_page_holds_all_it_needs(page: Page) -> None:
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "://" not in re.sub(r"data:image/[^\"]*", "", page.source)


def test_nothing_undefined_is_shown(page: Page) -> None:
    assert not re.search(r"\b(nan|None|inf)\b", page.text)
    assert "–" in page.text  # the distance of the case that is clean


def alone(home: Path, path: Path, **options: Path) -> Page:
    write_report(path, prediction=home / "predicted", **options)
    return Page(path)


def test_predictions_alone_are_listed_without_scores(home: Path, tmp_path: Path) -> None:
    page = alone(home, tmp_path / "a.html", images=home / "imagesTr")
    assert "predictions without a reference" in page.text
    assert "without probabilities" in page.text
    assert "5 lesions in 4 cases" in page.text
    assert {kinds for _, kinds in page.strips} == {"predicted", "none"}
    assert not {"results", "sizes", "froc"} & set(page.ids)
    assert {"lesion-perfect-1", "lesion-perfect-2"} <= set(page.ids)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "missed yellow" not in page.text


def test_lesions_of_which_the_network_is_least_sure_come_first(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_cases(home)
    for name, sure in {"perfect": (0.9, 0.6), "sub-1_late": (0.7,), "sub-1_early": (0.8, 0.85), "clean": ()}.items():  # fmt: skip
        mask = lesions(PLACES[name][1])
        probability = np.zeros(GRID.shape_zyx)
        for value, (z, y, x) in zip(sure, PLACES[name][1], strict=True):
            probability[z, y : y + 2, x : x + 3] = value
        write_lesion_table(home / "predicted", tabulate(name, mask, GRID, LESION, probability=probability[None]))  # fmt: skip
    page = alone(home, tmp_path / "a.html", images=home / "imagesTr")
    assert page.cases == ["perfect", "sub-1_late", "sub-1_early", "clean"]
    order = re.findall(r'<a href="#lesion-([^"]*)">', page.source)
    assert order == ["perfect-1", "sub-1_late-1", "sub-1_early-1", "sub-1_early-2", "perfect-2"]
    told = re.findall(r"probability (\d+) % on average", page.text)
    assert told == ["60", "90", "70", "80", "85"]
    titles = re.findall(r"<figcaption>(axial \d), no outlines", page.source)
    assert titles == ["axial 3", "axial 1", "axial 1", "axial 2", "axial 0"]


def test_sides_are_told_only_where_the_midline_is_known(tmp_path: Path) -> None:
    folder = write_cases(tmp_path)["prediction"]
    found = lesions(PLACES["perfect"][1])
    probability = 0.8 * found[None].astype(np.float32)
    table = tabulate(
        "perfect", found, GRID, LESION, probability=probability, head_centre_zyx=(20.0, 20.0, 20.0)
    )
    write_lesion_table(folder, table)
    write_report(tmp_path / "a.html", prediction=folder)
    rows = re.findall(r'href="#case-([^"]*)">.*<td>([^<]*)</td></tr>', Page(tmp_path / "a.html").source)
    assert sorted(rows) == [
        ("perfect", "left"),
        ("perfect", "right"),
        ("sub-1_early", "–"),
        ("sub-1_early", "–"),
        ("sub-1_late", "–"),
    ]
    (folder / "perfect_lesions.json").unlink()
    write_report(tmp_path / "b.html", prediction=folder)
    assert "Side" not in Page(tmp_path / "b.html").text


def test_lesions_of_a_picture_have_no_place_in_the_patient(tmp_path: Path) -> None:
    picture = Geometry((1, 60, 70), (1.0, 1.0, 1.0), is_2d=True)
    mask = lesions([(1, 10, 10)])[1:2]
    write_image(tmp_path / "predicted" / "a.png", mask, picture)
    write_lesion_table(tmp_path / "predicted", tabulate("a", mask, picture, LESION))
    write_report(tmp_path / "a.html", prediction=tmp_path / "predicted")
    page = Page(tmp_path / "a.html")
    assert page.source.count('<td class="n">–</td></tr>') == 1
    assert "Side" not in page.text


def test_a_lesion_that_is_not_shown_has_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwmlunet.report.report._MOST_BYTES", 0)
    write_report(tmp_path / "a.html", prediction=write_cases(tmp_path)["prediction"])
    page = Page(tmp_path / "a.html")
    assert page.strips == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert "2 places are not shown" in page.text


def test_the_edges_of_sizes_can_be_given(home: Path, tmp_path: Path) -> None:
    folders = {"prediction": home / "predicted", "reference": home / "labelsTr"}
    write_report(tmp_path / "a.html", **folders, size_edges_mm3=[6.0, 7.5])
    sizes = re.findall(r'<th scope="row">((?:below |from )?\d[^<]*)</th>', Page(tmp_path / "a.html").source)
    assert sizes == ["below 6", "6 to 7.5", "from 7.5"]


def test_a_table_of_another_mask_is_refused(tmp_path: Path) -> None:
    folder = write_cases(tmp_path)["prediction"]
    write_lesion_table(folder, tabulate("perfect", lesions(PLACES["sub-1_late"][1]), GRID, LESION))
    with pytest.raises(PwmlError, match="other lesions than its table perfect_lesions"):
        write_report(tmp_path / "a.html", prediction=folder)


def test_without_images_outlines_are_shown_on_black(home: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "a.html", prediction=home / "predicted", reference=home / "labelsTr")
    page = Page(tmp_path / "a.html")
    assert "No images were given" in page.text
    assert len(page.strips) == 8
    assert "<image" not in page.source


def test_targets_are_told_apart(tmp_path: Path) -> None:
    labels = Labels((Target("new", (1,), 1), Target("old", (2,), 2)), ignore=None)
    mask = lesions([(1, 10, 10)]) + 2 * lesions([(3, 40, 50)])
    write_image(tmp_path / "labelsTr" / "a.nii.gz", mask, GRID)
    write_image(tmp_path / "predicted" / "a.nii.gz", lesions([(1, 10, 10), (3, 40, 50)]), GRID)
    write_report(tmp_path / "a.html", prediction=tmp_path / "predicted", reference=tmp_path / "labelsTr", labels=labels)  # fmt: skip
    page = Page(tmp_path / "a.html")
    assert page.strips == [("a", "false"), ("a", "missed"), ("a", "found")]
    told = re.findall(r"(?:found|missed|false)</span>(\w+): ", page.source)
    assert told == ["new", "old", "new"]
    alone = write_report(tmp_path / "b.html", prediction=tmp_path / "predicted", labels=labels)
    assert alone == 1


def test_regions_that_coincide_have_a_row_each(tmp_path: Path) -> None:
    regions = Labels((Target("whole", (1, 2), 1), Target("core", (2,), 2)), ignore=None, are_regions=True)
    write_image(tmp_path / "predicted" / "a.nii.gz", 2 * lesions([(1, 10, 10)]), GRID)
    write_report(tmp_path / "a.html", prediction=tmp_path / "predicted", labels=regions)
    assert {"lesion-a-1", "lesion-a-2"} <= set(Page(tmp_path / "a.html").ids)


def test_a_case_without_labels_is_named_and_not_scored(tmp_path: Path) -> None:
    folders = write_cases(tmp_path)
    labels = Labels(LESION.targets, ignore=2)
    write_image(tmp_path / "labelsTr" / "clean.nii.gz", np.full(GRID.shape_zyx, 2, np.uint8), GRID)
    write_report(tmp_path / "a.html", **folders, labels=labels)
    page = Page(tmp_path / "a.html")
    assert "3 cases of 2 subjects" in page.text
    assert "this case is not scored" in page.text
    assert not any(case == "clean" for case, _ in page.strips)


def test_empty_masks_everywhere_are_fine(tmp_path: Path) -> None:
    for folder in ("labelsTr", "predicted"):
        write_image(tmp_path / folder / "a.nii.gz", lesions([]), GRID)
    write_probability(tmp_path / "predicted" / "a.npz", np.zeros((1, *GRID.shape_zyx), np.float32))
    write_report(tmp_path / "a.html", prediction=tmp_path / "predicted", reference=tmp_path / "labelsTr")
    page = Page(tmp_path / "a.html")
    assert "No lesion in the reference, and none predicted" in page.text
    assert not re.search(r"\b(nan|None)\b", page.text)
    write_report(tmp_path / "b.html", prediction=tmp_path / "predicted")
    assert "0 lesions in 1 case." in Page(tmp_path / "b.html").text


def test_all_images_that_are_missing_or_elsewhere_are_listed(tmp_path: Path) -> None:
    folders = write_cases(tmp_path)
    (tmp_path / "imagesTr" / "clean_0000.nii.gz").unlink()
    write_image(tmp_path / "imagesTr" / "perfect_0000.nii.gz", lesions([]), Geometry(GRID.shape_zyx, (3.0, 0.7, 0.5)))  # fmt: skip
    with pytest.raises(PwmlError) as error:
        write_report(tmp_path / "a.html", **folders)
    assert "no image of case clean" in str(error.value)
    assert "perfect_0000.nii.gz is not on the grid of its mask: origin" in str(error.value)
    assert not (tmp_path / "a.html").exists()


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(PwmlError, match="holds no masks"):
        write_report(tmp_path / "a.html", prediction=tmp_path)


def test_cases_with_many_lesions_share_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwmlunet.report.report._MOST_STRIPS", 6)
    write_report(tmp_path / "a.html", **write_cases(tmp_path))
    page = Page(tmp_path / "a.html")
    assert [case for case, _ in page.strips].count("sub-1_early") == 2
    assert page.text.count("1 more place is not shown") == 1


def test_targets_share_the_room_of_their_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pwmlunet.report.report._MOST_STRIPS", 4)
    labels = Labels((Target("new", (1,), 1), Target("old", (2,), 2)), ignore=None)
    mask = lesions([(z, 5, 5) for z in range(0, 5, 2)]) + 2 * lesions([(z, 50, 60) for z in range(0, 5, 2)])
    write_image(tmp_path / "labelsTr" / "a.nii.gz", mask, GRID)
    write_image(tmp_path / "predicted" / "a.nii.gz", 0 * mask, GRID)
    write_report(tmp_path / "a.html", prediction=tmp_path / "predicted", reference=tmp_path / "labelsTr", labels=labels)  # fmt: skip
    page = Page(tmp_path / "a.html")
    assert re.findall(r"missed</span>(\w+): ", page.source) == ["new", "old", "new", "old"]
    assert "2 more places are not shown" in page.text


def test_pages_keep_within_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Geometry((40, 60, 50), (1.0, 0.9, 1.1), (4.0, 5.0, 6.0))  # to be seen in three planes
    mask = np.zeros(grid.shape_zyx, np.uint8)
    mask[::8, ::16, ::16] = 1
    image = np.random.default_rng(0).normal(300, 60, mask.shape).astype(np.int16)
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}_0000.nii.gz", image, grid)
        write_image(tmp_path / "reference" / f"{name}.nii.gz", mask, grid)
        write_image(tmp_path / "predicted" / f"{name}.nii.gz", mask * (image > 300), grid)
    folders = {side: tmp_path / side for side in ("images", "reference")}
    sizes, n_shown = [], []
    for most in (0, 50_000, 400_000):
        monkeypatch.setattr("pwmlunet.report.report._MOST_BYTES", most)
        write_report(tmp_path / "a.html", prediction=tmp_path / "predicted", **folders)
        page = Page(tmp_path / "a.html")
        sizes.append((tmp_path / "a.html").stat().st_size)
        n_shown.append([[case for case, _ in page.strips].count(name) for name in ("a", "b")])
        n_told = sum(map(int, re.findall(r"(\d+) (?:more )?places are not shown", page.text)))
        assert n_told + len(page.strips) == 2 * 20
    assert sizes[1] - sizes[0] <= 50_000
    assert 250_000 < sizes[2] - sizes[0] <= 400_000
    assert n_shown[0] == [0, 0]
    assert n_shown[2][0] == pytest.approx(n_shown[2][1], abs=1)


def test_fifty_cases_stay_under_twenty_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    grid = Geometry((24, 256, 256), (3.0, 0.7, 0.7), (1.0, 2.0, 3.0))
    mask = np.zeros(grid.shape_zyx, np.uint8)
    for n in range(5):
        mask[4 * n + 2, 100 + 20 * n : 103 + 20 * n, 80 + 15 * n : 84 + 15 * n] = 1
    write_image(tmp_path / "images" / "a_0000.nii.gz", rng.normal(300, 60, mask.shape).astype(np.int16), grid)
    for folder in ("reference", "predicted"):
        write_image(tmp_path / folder / "a.nii.gz", mask, grid)
    write_report(tmp_path / "a.html", prediction=tmp_path / "predicted", reference=tmp_path / "reference", images=tmp_path / "images")  # fmt: skip
    assert len(Page(tmp_path / "a.html").strips) == 5
    assert (tmp_path / "a.html").stat().st_size * 50 < 20e6  # noise, which is as large as pictures get


def browse(path: Path, *, fragment: str = "", script: str = "") -> Page:
    """The page as Chromium leaves it, after a script of the test."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for name in names if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: the page was not opened in a browser")
    if script:
        text = path.read_text("utf-8").replace("</body>", f"<script>{script}</script></body>")
        path = path.with_name("scripted.html")
        path.write_text(text, "utf-8")
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", f"{path.as_uri()}{fragment}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Page(done.stdout)


@pytest.fixture
def report(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(home / "report.html", tmp_path / "report.html"))


def test_a_browser_shows_everything_and_asks_for_nothing(report: Path) -> None:
    asked = "performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:'))"
    page = browse(report, script=f"onload = () => {{ document.title = 'asked for: ' + {asked}; }}")
    assert page.shown == page.strips
    assert "8 of 8 places shown" in page.text
    assert "<title>asked for: </title>" in page.source


def test_the_address_says_what_is_shown(report: Path) -> None:
    missed = browse(report, fragment="#kind=missed")
    assert missed.shown == [("sub-1_early", "missed"), ("sub-1_late", "missed")]
    assert "2 of 8 places shown" in missed.text
    both = browse(report, fragment="#kind=missed,found&case=sub-1_late")
    assert both.shown == [("sub-1_late", "missed"), ("sub-1_late", "found")]


def test_the_boxes_filter_and_are_kept_in_the_address(report: Path) -> None:
    script = 'document.querySelector("[value=found]").click(); document.title = location.hash;'
    page = browse(report, script=script)
    assert ("perfect", "found") not in page.shown
    assert ("clean", "none") not in page.shown
    assert len(page.shown) == 4
    assert "#kind=missed,false</title>" in page.source


def test_a_link_to_a_hidden_case_shows_it(report: Path) -> None:
    page = browse(report, fragment="#kind=missed", script='location.hash = "#case-perfect";')
    assert page.shown == page.strips
