"""Zips of campus systems, flat folders, and what hides in them."""

import os
import stat
import zipfile
from pathlib import Path

import pytest

from lmcourse import CourseError, paths
from lmcourse.grading import engine, gradebook, handin, intake

UNIT = "07_tiny"


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(place: Path) -> handin.HandedIn:
    """What was handed in, all of it read."""
    with handin.read(UNIT, place) as found:
        found.contents = dict(found.contents)
        found.timestamps = dict(found.timestamps)
    return found


CANVAS = {
    "lovelaceada_101_9001_07_tiny.ipynb": b"first",
    "lovelaceada_101_9007_07_tiny-1.ipynb": b"second",
    "lovelaceada_101_9008_07_tiny-2.ipynb": b"third",
    "babbagecharles_LATE_102_9002_07_tiny.ipynb": b"late",
    "o'brienzoe_103_9003_07_tiny (1).ipynb": b"twice downloaded",
    "müllerjörg_104_9004_06_other.ipynb": b"another homework",
    "lovelaceada_101_9009_notes.pdf": b"no notebook",
}
MOODLE = {
    "Ada Lovelace_201_assignsubmission_file_/07_tiny.ipynb": b"mine",
    "Zoë O'Brien_202_assignsubmission_file_/my homework.ipynb": b"renamed",
    "Jörg Müller_203_assignsubmission_file/07_tiny.ipynb": b"older Moodle",
    "Jörg Müller_203_assignsubmission_file/a_copy.ipynb": b"not this one",
    "Ada Lovelace_201_assignsubmission_onlinetext_/onlinetext.html": b"<p>hi</p>",
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "folder"])
def test_canvas(tmp_path, zipped):
    make = make_zip if zipped else make_folder
    found = read(make(tmp_path / "class", CANVAS))
    assert found.contents == {
        "lovelaceada-101": b"third",
        "babbagecharles-102": b"late",
        "o-brienzoe-103": b"twice downloaded",
    }
    late = found.people["babbagecharles-102"]
    assert late == handin.Person("canvas", "102", "babbagecharles", late=True)
    assert any("06_other" in note for note in found.notes)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "folder"])
def test_moodle(tmp_path, zipped):
    make = make_zip if zipped else make_folder
    found = read(make(tmp_path / "class", MOODLE))
    assert found.contents == {
        "Ada-Lovelace-201": b"mine",
        "Zoë-O-Brien-202": b"renamed",
        "Jörg-Müller-203": b"older Moodle",
    }
    assert found.people["Zoë-O-Brien-202"].name == "Zoë O'Brien"


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "folder"])
def test_a_flat_folder(tmp_path, zipped):
    files = {"ada.ipynb": b"a", "bob_07_tiny.ipynb": b"b", "readme.txt": b"x"}
    make = make_zip if zipped else make_folder
    found = read(make(tmp_path / "class", files))
    assert found.contents == {"ada": b"a", "bob": b"b"}


def test_nbgrader_s_layout_in_a_zip(tmp_path):
    files = {
        "submitted/ada/07_tiny/07_tiny.ipynb": b"a",
        "submitted/ada/07_tiny/timestamp.txt": b"2027-01-05 10:00 UTC",
        "submitted/ada/06_other/06_other.ipynb": b"b",
    }
    found = read(make_zip(tmp_path / "class.zip", files))
    assert found.contents == {"ada": b"a"}
    assert found.timestamps == {"ada": b"2027-01-05 10:00 UTC"}
    assert found.notes == []


HOSTILE = {
    "../evil_105_9_07_tiny.ipynb": "it leads elsewhere",
    "/etc/evil_105_9_07_tiny.ipynb": "it leads elsewhere",
    "..\\..\\evil_105_9_07_tiny.ipynb": "it leads elsewhere",
    "C:\\evil_105_9_07_tiny.ipynb": "it leads elsewhere",
    "a/../../evil_105_9_07_tiny.ipynb": "it leads elsewhere",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_paths_that_lead_elsewhere_are_left_out(tmp_path, name):
    files = {name: b"evil", "ada_101_9_07_tiny.ipynb": b"good"}
    found = read(make_zip(tmp_path / "class.zip", files))
    assert found.contents == {"ada-101": b"good"}
    assert HOSTILE[name] in found.notes[0]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_in_a_zip_are_left_out(tmp_path, kind):
    path = tmp_path / "class.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = zipfile.ZipInfo("bob_102_9_07_tiny.ipynb")
        entry.external_attr = (kind | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
        archive.writestr("ada_101_9_07_tiny.ipynb", "good")
    found = read(path)
    assert found.contents == {"ada-101": b"good"}
    assert "no plain file" in found.notes[0]


def test_a_bomb_is_refused_without_being_unpacked(tmp_path):
    zeros = bytes(intake.MAX_BYTES + 10_000_000)
    files = {"bob_1_9_07_tiny.ipynb": zeros, "ada_2_9_07_tiny.ipynb": b"good"}
    path = make_zip(tmp_path / "class.zip", files)
    assert path.stat().st_size < 100_000
    found = read(path)
    assert found.contents["bob-1"].kind == "too large"
    assert found.contents["ada-2"] == b"good"


def test_a_damaged_entry_costs_that_student_only(tmp_path):
    files = {f"s{i}_{i}_9_07_tiny.ipynb": os.urandom(500) for i in range(3)}
    path = make_zip(tmp_path / "class.zip", files)
    content = bytearray(path.read_bytes())
    content[content.index(files["s1_1_9_07_tiny.ipynb"][:20]) + 5] ^= 0xFF
    path.write_bytes(content)
    found = read(path)
    assert found.contents["s1-1"].kind == "no file"
    assert found.contents["s2-2"] == files["s2_2_9_07_tiny.ipynb"]


def test_links_pipes_and_hidden_files_in_a_folder(tmp_path):
    folder = make_folder(tmp_path / "class", {"ada.ipynb": b"good", ".x.ipynb": b"x"})
    (folder / "bob.ipynb").symlink_to("/etc/passwd")
    (folder / "away").symlink_to("/etc")
    os.mkfifo(folder / "chen.ipynb")
    found = read(folder)
    assert found.contents["ada"] == b"good"
    assert found.contents["bob"].kind == found.contents["chen"].kind == "no file"
    assert set(found.contents) == {"ada", "bob", "chen"}


def test_bad_use_is_told(tmp_path):
    with pytest.raises(CourseError, match=r"there is no .*nowhere"):
        read(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match=f"no submissions of {UNIT}"):
        read(tmp_path / "empty")
    (tmp_path / "class.zip").write_bytes(b"PK but no zip")
    with pytest.raises(CourseError, match="no zip that can be read"):
        read(tmp_path / "class.zip")


def test_from_a_canvas_zip_to_grades(sandboxed, hand_in, handed_in, tmp_path):
    """The whole way in; what the zip held lies in nbgrader's layout, and only there."""
    files = {
        "lovelaceada_101_9001_07_tiny.ipynb": handed_in(average="x = 1"),
        "lovelaceada_101_9005_07_tiny-1.ipynb": handed_in(),
        "../../escape_102_9_07_tiny.ipynb": handed_in(),
    }
    path = make_zip(tmp_path / "class.zip", files)
    summary = engine.grade_folder(UNIT, path)
    assert (summary.submissions, summary.refused) == (1, 0)
    assert "escape" in str(summary)
    student = "lovelaceada-101"
    assert paths.submitted(UNIT, student).is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["class.zip"]
    with gradebook.open_gradebook() as book:
        assert book.find_submission(UNIT, student).score == 7
    people = handin.load_people(handin.people_path())
    assert people[student].user == "101"
    assert (paths.course() / "submitted" / student / UNIT).is_dir()
