"""The page: what is on it, what is not, and that it asks nobody for anything."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from helpers.made_up import RADII, N, bare, evaluation, full_run, row, run, sanity_of

from fastprompt.data import ImageTensors
from fastprompt.evaluation import Evaluation, evaluate
from fastprompt.report import write_report

SECTIONS = {
    *("accuracy", "eps", "steps", "tuning", "classes", "images", "routing", "refiners", "sanity"),
    "settings",
}
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects ids, tags with their attributes, and the text of each section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.ids, self.sections = [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "section" and "id" in found:
            self.sections[found["id"]] = ""
        if tag not in VOID:
            self.open.append((tag, found.get("id")))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"a stray </{tag}>"

    def handle_data(self, data):
        if any(tag == "style" for tag, _ in self.open):
            return
        self.words.append(data)
        inside = [name for tag, name in self.open if tag == "section" and name]
        if inside:
            self.sections[inside[-1]] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def page_of(*runs, out=None):
    text = write_report(list(runs), out).read_text("utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of a run folder that has everything."""
    return page_of(full_run(tmp_path_factory.mktemp("whole") / "nap-run"))


def test_every_section_is_there_and_well_formed(whole):
    _, page = whole
    assert set(page.sections) == SECTIONS
    assert not page.open, "a tag is left open"
    assert len(set(page.ids)) == len(page.ids)
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in str(page.all("meta"))


def test_no_other_host_is_named_and_no_script_runs(whole):
    text, page = whole
    assert "http:" not in text
    assert "https:" not in text
    assert "//" not in re.sub(r"(base64,|'sha256-)[\w+/=]+", "", text)
    assert "@import" not in text
    assert not page.all("script")
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:"))
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.strip("\"'").startswith(("#", "data:"))


def test_its_policy_allows_its_own_style_and_inline_images_only(whole):
    text, page = whole
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    style = text.split("<style>")[1].split("</style>")[0]
    own = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        *("default-src 'none'", f"style-src 'sha256-{own}'", "img-src data:"),
        *("base-uri 'none'", "form-action 'none'"),
    ]
    assert len(page.all("style")) == 1
    # what the policy would block
    assert not [attrs for _, attrs in page.tags if "style" in attrs]
    assert text.index("Content-Security-Policy") < text.index("<style>")


def test_what_is_referred_to_exists(tmp_path):
    runs = [full_run(tmp_path / "a"), full_run(tmp_path / "b", "ampt", 5, sound=False)]
    text, page = page_of(*runs, out=tmp_path / "both.html")
    links = [a["href"][1:] for a in page.all("a")] + re.findall(r"url\(#([^)]*)\)", text)
    links += [u["href"][1:] for u in page.all("use")]
    assert len(links) > 20
    assert set(links) <= set(page.ids)


def test_it_says_what_a_bundled_model_has_seen(tmp_path):
    run = full_run(tmp_path / "run")
    for model, data, said in (
        ("tiny-photos", "photos", "tiny-photos has seen these classes, but not these images"),
        ("tiny-photos", "shapes", None),
        ("ViT-B-32", "photos", None),
    ):
        for file, change in (
            ("config.json", {"clip": {"name": model}}),
            ("result.json", {"data": {"name": data, "n": N}}),
        ):
            found = json.loads((run / file).read_text())
            found |= {key: {**found.get(key, {}), **value} for key, value in change.items()}
            (run / file).write_text(json.dumps(found))
        text, _ = page_of(run)
        if said is None:
            assert "has seen" not in text
        else:
            assert said in text


def test_class_names_are_escaped(whole):
    text, page = whole
    assert "<b>bold</b>" not in text
    assert "&lt;b&gt;bold&lt;/b&gt; cat" in text
    assert "<b>bold</b> cat" in page.sections["classes"]
    assert "R&D 100 %" in page.sections["classes"]


HOSTILE = "</style></title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7*7 }}"


def planted(value):
    """``value`` with hostile text behind every string, and in front of every key of a mapping."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [planted(item) for item in value]
    if isinstance(value, dict):
        return {HOSTILE + key: planted(item) for key, item in value.items()}
    return value


def test_no_html_of_a_stranger_gets_through(tmp_path):
    folders = [tmp_path / name / f"<img src=x onerror={name}>" for name in "ab"]
    for seed, folder in enumerate(folders):
        full_run(folder, seed=seed, sound=False, recorded=True)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["method"] = planted(config["method"])
        config["config"] |= planted({"other": {"inner": "text"}})
        config["clip"] = {"name": HOSTILE}
        path.write_text(json.dumps(config))
        found = Evaluation.load(folder / "result.json")
        for one in found.rows:
            one["attack"] = one["attack"] if one["attack"] == "clean" else planted(one["attack"])
            one["model"], one["reasons"] = planted(one["model"]), planted(one["reasons"])
            one["settings"] = planted({"steps": "text"})
            one["path"] = one["path"].replace("transfer:", f"transfer:{HOSTILE}")
        for one in found.sanity:
            one |= {"model": planted(one["model"]), "check": planted(one["check"])}
            one |= {"reason": planted(one["reason"])}
        found.data["name"], found.data["classnames"] = HOSTILE, planted(found.data["classnames"])
        for part in (found.models, found.how, found.versions):
            part |= planted(part)
        found.diagnostics[planted("tuned")] = found.diagnostics["tuned"]
        found.save(folder / "result.json")
    text, page = page_of(*folders, out=tmp_path / "out.html")
    assert text.count("&lt;script&gt;") > 100
    assert "<script" not in text
    assert "{{ 7*7 }}" in text
    assert len(page.all("title")) == len(page.all("style")) == 1
    for tag, attrs in page.tags:
        assert tag != "img" or attrs["src"].startswith("data:image/png;base64,")
        assert not [name for name in attrs if name.startswith("on") or name == "style"]


def test_accuracies_intervals_and_paths_are_in_the_headline_table(bare):
    _, page = page_of(bare)
    words = page.sections["accuracy"]
    assert "75.0" in words
    assert "[30.1, 95.4]" in words
    assert "50.0" in words
    assert "ε = 4/255" in words
    assert "adaptive" in words
    _, page = page_of(full_run(bare.parent / "other"))
    assert "transfer: frozen" in page.sections["accuracy"]


def test_many_models_under_few_attacks_go_down_the_page(tmp_path):
    tmp_path.joinpath("r").mkdir()
    rows = [row(f"m{i}", "pgd-5", "adaptive", 1 / 255, "10" * 60) for i in range(5)]
    rows += [row(f"m{i}", "clean", "none", 0.0, "1" * N) for i in range(5)]
    evaluation(rows).save(tmp_path / "r" / "result.json")
    _, page = page_of(tmp_path / "r")
    heads = re.sub(r"\s+", "", page.sections["accuracy"])
    assert "Modelε=1/255cleanpgd-5adaptivem0" in heads
    assert heads.count("100.0") >= 5


def test_sections_without_data_are_left_out(bare):
    text, page = page_of(bare)
    assert set(page.sections) == {"accuracy", "settings"}
    assert "Not checked." in text
    assert "Every check passed" not in text


def test_what_is_not_trusted_is_marked_with_its_reason(tmp_path, run):
    text, page = page_of(full_run(tmp_path / "bad", sound=False))
    words = "".join(page.words)
    assert "Not to be trusted." in words
    assert "nap, gradient health: 9 % of the entries of the gradient are zero" in words
    assert "nap, pgd-20@frozen at 4/255: no usable gradient for 7 images" in words
    assert text.count('class="doubted"') == 1
    assert {"note-1", "note-2"} <= set(page.ids)
    assert "✗ failed" in page.sections["sanity"]
    text, page = page_of(run)
    assert "Every check passed." in text
    assert "doubted" not in text.split("</style>")[1]
    assert "✗ failed" not in page.sections["sanity"]


def test_several_runs_stand_side_by_side_and_an_equal_model_once(tmp_path):
    runs = [full_run(tmp_path / "a"), full_run(tmp_path / "b", "ampt", 5)]
    _, page = page_of(*runs, out=tmp_path / "both.html")
    heads = page.sections["accuracy"]
    assert heads.count("zero-shot") == 1
    assert heads.count("nap") == heads.count("ampt") == 1
    assert "tuned" not in heads
    assert "nap, robust" in page.sections["tuning"]


def test_other_evaluations_of_a_run_join_its_table_or_stand_beside_it(run):
    rows = [row("tuned", "square", "black-box", RADII[0], "10" * 60)]
    more = run / "evaluations" / "square"
    more.mkdir(parents=True)
    evaluation(rows).save(more / "result.json")
    _, page = page_of(run)
    heads = page.sections["accuracy"]
    assert "square" in heads
    assert heads.count("nap") == 1
    # the same attack with another outcome is not mixed in, nor lost
    rows = [row("tuned", "pgd-20", "adaptive", RADII[0], "1000" * 30)]
    again = run / "evaluations" / "again"
    again.mkdir()
    evaluation(rows, sanity_of("tuned")).save(again / "result.json")
    _, page = page_of(run)
    heads = page.sections["accuracy"]
    assert "nap (own result)" in heads
    assert "nap (evaluation again)" in heads
    assert "25.0" in heads


def test_a_check_that_fails_in_a_second_look_at_the_same_rows_is_told(run):
    again = run / "evaluations" / "again"
    again.mkdir(parents=True)
    found = Evaluation.load(run / "result.json")
    found.sanity[:] = sanity_of("tuned", planted="of 16 planted examples 3 were found")
    found.save(again / "result.json")
    _, page = page_of(run)
    assert "nap, planted: of 16 planted examples 3 were found" in "".join(page.words)
    assert page.sections["accuracy"].count("nap") == 1


def attacked_at(folder, *radii, attack="pgd-20", **more):
    """A folder with one model, clean and under an attack at some radii."""
    folder.mkdir()
    rows = [row("m", "clean", "none", 0.0, "1111" * 30)]
    rows += [row("m", attack, "adaptive", eps, "1100" * 30) for eps in radii]
    evaluation(rows, sanity_of("m"), models={}, **more).save(folder / "result.json")
    return folder


def test_cards_stand_at_a_radius_that_all_have(tmp_path):
    a, b = (tmp_path / name for name in "ab")
    runs = [attacked_at(a, *RADII), attacked_at(b, *RADII[1:])]
    text, page = page_of(*runs, out=tmp_path / "both.html")
    assert text.count("robust at <b>ε = 2/255</b>") == 2
    assert "Not to be compared" not in text
    assert "pgd-20 at 2/255" in page.sections["classes"]


def test_cards_without_a_common_radius_say_so(tmp_path):
    a, b = (tmp_path / name for name in "ab")
    runs = [attacked_at(a, RADII[0]), attacked_at(b, RADII[1])]
    text, _ = page_of(*runs, out=tmp_path / "both.html")
    for radius in ("1/255", "2/255"):
        assert text.count(f"robust at <b>ε = {radius}</b>") == 1
    assert text.count("no radius is common to all models") == 2
    assert "No radius is common to all models" in text


def test_cards_under_other_attacks_or_on_other_images_say_so(tmp_path):
    a, b = (tmp_path / name for name in "ab")
    data = {"name": "other", "fingerprint": "b00", "n": N}
    runs = [attacked_at(a, RADII[0]), attacked_at(b, RADII[0], attack="square", data=data)]
    text, _ = page_of(*runs, out=tmp_path / "both.html")
    assert "At ε = 1/255 the models were evaluated under different attacks." in text
    assert "The models were evaluated on different images." in text


def test_classes_are_ranked_only_where_they_differ_by_more_than_chance(whole):
    _, page = whole
    words = page.sections["classes"]
    assert "permutation test" in words
    zero_shot, nap = words.split("zero-shot under")[1].split("nap under")
    assert "Left out: at 5 images per class" in zero_shot
    assert "Worst" not in zero_shot
    assert "Left out" not in nap
    assert "Worst" in nap


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [full_run(tmp_path / name / "run", seed=i) for i, name in enumerate("xy")]
    _, page = page_of(*runs, out=tmp_path / "both.html")
    assert "nap (x/run)" in page.sections["accuracy"]
    assert "nap (y/run)" in page.sections["accuracy"]


def test_plots_take_their_colors_from_the_page_and_have_words(whole):
    text, page = whole
    drawings = [a for a in page.all("svg") if a.get("role") == "img"]
    # three attacks by radius, PGD by steps at each, loss and scores, refiners
    assert len(drawings) == 3 + 3 + 2 + 1
    assert all(len(a["aria-label"]) > 20 for a in drawings)
    svg = re.findall(r'<svg [^>]*role="img".*?</svg>', text, flags=re.S)
    assert all("currentColor" in s and "var(--series-2)" in s for s in svg if "tuned" in s)
    assert not [s for s in svg if re.search(r"#(?!000000|ffffff)[0-9a-f]{6}\b", s)]


def test_ten_runs_have_ten_lines(tmp_path):
    runs = [full_run(tmp_path / f"run-{i}", seed=i) for i in range(10)]
    text = write_report(runs, tmp_path / "ten.html").read_text("utf-8")
    # six colors, and stand-ins of none of them left
    assert {f"var(--series-{i})" for i in range(1, 7)} <= set(
        re.findall(r"var\(--series-\d\)", text)
    )
    assert not re.search("#0102[0-9a-f]{2}", text)


def test_steps_start_at_clean_and_end_at_the_row(tmp_path):
    tmp_path.joinpath("r").mkdir()
    rows = [
        row("m", "clean", "none", 0.0, "1" * 90 + "0" * 30),
        row(
            *("m", "pgd-20", "adaptive", 1 / 255, "1" * 30 + "0" * 90),
            fell_at={"0": 20, "3": 40},
            settings={"steps": 20},
        ),
    ]
    evaluation(rows).save(tmp_path / "r" / "result.json")
    text, _ = page_of(tmp_path / "r")
    assert "m: 75 at 0, 58.3 at 0, 25 at 3, 25 at 20" in text


def test_images_are_inline_with_their_predictions(whole):
    _, page = whole
    images = page.all("img")
    assert len(images) == 3 * 6
    assert all(i["src"].startswith("data:image/png;base64,") and i["alt"] for i in images)
    words = page.sections["images"]
    assert "nap under autoattack at 2/255" in words
    assert "times 63.8" in words
    assert "NaN" in words
    assert words.count("fooled") + words.count("misclassified before") >= 2


def test_of_images_that_were_wrong_clean_two_are_shown_and_last(tmp_path):
    folder = full_run(tmp_path / "run")
    found = Evaluation.load(folder / "result.json")
    for clean in (r for r in found.rows if r["attack"] == "clean"):
        clean["predictions"][:3] = [9, 9, 9]
    found.save(folder / "result.json")
    _, page = page_of(folder)
    words = page.sections["images"]
    assert words.count("misclassified before") == 2 + 1  # and what is said of the third
    assert "1 more of the kept images were misclassified" in words
    assert max(words.rfind("still correct"), words.rfind("fooled")) < words.find("clean taken for")


def test_a_check_that_could_not_be_made_is_not_called_passed(run):
    found = Evaluation.load(run / "result.json")
    found.sanity[0] |= {"verdict": "skipped", "reason": "no image is classified rightly"}
    found.save(run / "result.json")
    text, page = page_of(run)
    assert "No check failed." in text
    assert "1 could not be made" in text
    assert "no image is classified rightly" in page.sections["sanity"]


def test_what_evaluate_writes_is_shown(tmp_path):
    levels = torch.tensor([100, 122, 126, 129, 133, 160], dtype=torch.uint8)
    data = ImageTensors(levels[:, None, None, None].expand(-1, 3, 8, 8), torch.arange(6) // 3)

    def brightness(images):
        margin = 50 * (images.mean(dim=(1, 2, 3)) - 0.5)
        return torch.stack([-margin, margin], dim=1)

    attacks = ["clean", "pgd-5", "apgd-t-3"]
    evaluate(brightness, data, attacks, ["2/255", "4/255"], out=tmp_path / "e", progress=False)
    _, page = page_of(tmp_path / "e")
    assert {"accuracy", "eps", "steps", "classes", "sanity", "settings"} <= set(page.sections)
    assert "66.7" in page.sections["accuracy"]
    assert "cross-entropy" in page.sections["settings"]


def test_router_refiners_and_settings_are_shown(whole):
    text, page = whole
    assert "under pgd-20 at 4/255" in page.sections["routing"]
    assert len(re.findall(r'<td class="w\d+">', text)) == 24 * 8
    assert "relative size" in page.sections["refiners"]
    words = page.sections["settings"]
    for part in (
        "nap",
        "120 of 1,000",
        "2.12.0",
        "steps 20",
        "apgd-t: steps 100",
        "JPEG(75)",
        "L-inf",
    ):
        assert part in words
    assert "behind JPEG(75)" in page.sections["accuracy"]


def test_of_many_classes_with_a_router_those_that_change_most_are_shown(run):
    found = Evaluation.load(run / "result.json")
    names = [f"kind {i}" for i in range(40)]
    still, moved = [0.5, 0.5], [0.9, 0.1]
    routing = {
        "classes": names,
        "clean": [None, *([still] * 39)],
        "adversarial": [None, *([moved] * 10), *([still] * 29)],
    }
    about = {"attack": "pgd-10", "eps": 1 / 255}
    found.diagnostics["tuned"] = {**about, "routing": routing, "refiners": {"layers": []}}
    found.save(run / "result.json")
    _, page = page_of(run)
    words = page.sections["routing"]
    assert "The 24 of 39 classes" in words
    assert "kind 10" in words
    assert "kind 0" not in words
    assert "under pgd-10 at 1/255" in words
    assert "refiners" not in page.sections


def test_the_same_runs_make_the_same_page(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


@pytest.mark.parametrize("key", ["classnames", "indices", "labels"])
def test_data_that_is_not_known_is_left_out(run, key):
    found = Evaluation.load(run / "result.json")
    found.data[key] = None
    found.save(run / "result.json")
    _, page = page_of(run)
    assert ("classes" in page.sections) == (key != "labels")
    if key == "classnames":
        assert "class 7" in page.sections["images"]
