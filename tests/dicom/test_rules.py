"""Settings and rules: what is refused, with which nearest key, and why a film is answered or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chestxray.dicom.rules import FilmFacts, Rule, decide, facts_of, read_header
from chestxray.dicom.settings import NodeSettings
from chestxray.errors import SettingsInvalid, UnreadableFilm
from hospital import EXPLICIT, modality_film, settings, settings_text, with_raw_elements

CHEST = FilmFacts("1", "1.1", "1.2", "1.3", "DX", "CHEST", "AP", 3.0, "CR_ROOM1")
BLACK = np.zeros((8, 8), np.uint8)


@pytest.mark.parametrize(
    ("rule", "answered"),
    [
        (Rule("a", send_to=("p",)), True),
        (Rule("a", modality=("cr", "dx"), send_to=("p",)), True),
        (Rule("a", modality=("MG",), send_to=("p",)), False),
        (Rule("a", body_part=("CHEST",), view=("PA", "AP"), send_to=("p",)), True),
        (Rule("a", view=("LL",), send_to=("p",)), False),
        (Rule("a", age=(0.0, 3.0), send_to=("p",)), False),
        (Rule("a", age=(3.0, 18.0), send_to=("p",)), True),
        (Rule("a", ae_title=("CR_*",), send_to=("p",)), True),
        (Rule("a", ae_title=("cr_*",), send_to=("p",)), False),
        (Rule("a", answer=False), False),
    ],
)
def test_a_film_is_answered_where_it_meets_every_condition_of_a_rule(rule: Rule, answered: bool) -> None:
    assert decide(CHEST, [rule]).answered is answered


def test_the_first_rule_that_is_met_decides_and_the_reasons_name_each_that_was_asked() -> None:
    rules = [Rule("adults", age=(18.0, 120.0), send_to=("p",)), Rule("no", answer=False), Rule("all", send_to=("p",))]
    decision = decide(CHEST, rules)
    assert decision.rule == rules[1]
    assert decision.reasons == (
        "rule adults: not met: age is 3.0 years; the rule wants 18 to below 120",
        "rule no: met: not answered, as the rule says",
    )


def test_a_film_that_does_not_tell_its_age_meets_no_rule_about_ages() -> None:
    film = FilmFacts("1", "1.1", "1.2", "1.3", "DX")
    assert decide(film, [Rule("a", age=(0.0, 150.0), send_to=("p",))]).reasons[0].endswith("wants 0 to below 150")
    assert "age is not stated" in decide(film, [Rule("a", age=(0.0, 150.0), send_to=("p",))]).reasons[0]


def test_results_of_our_own_are_never_answered() -> None:
    facts = facts_of(modality_film(BLACK, Manufacturer="chestxray"))
    assert not decide(facts, [Rule("all", send_to=("p",))]).answered


def test_the_header_gives_what_the_rules_ask_for() -> None:
    facts = facts_of(modality_film(BLACK, 7, PatientAge="018M", ViewPosition="PA"), "ROOM1")
    assert (facts.study, facts.modality, facts.body_part, facts.view) == ("1.2.826.1.7", "DX", "CHEST", "PA")
    assert (facts.age, facts.ae_title) == (1.5, "ROOM1")


@pytest.mark.parametrize("name", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_film_without_a_place_for_results_is_refused(name: str) -> None:
    with pytest.raises(UnreadableFilm, match=f"the DICOM header has no {name}"):
        facts_of(modality_film(BLACK, **{name: ""}))


@pytest.mark.parametrize(
    "uid",
    [b"../../etc/passwd", b"1.2\n3.4", b"1.2.3\\1.2.4\0", b"1.2.\xff\xfe", b"1.2\0.4\0", b"1." * 33, b"1.2.abc\0"],
)
@pytest.mark.parametrize(("tag", "name"), [(0x00080018, "SOPInstanceUID"), (0x0020000D, "StudyInstanceUID")])
def test_a_film_whose_uid_is_none_is_refused_since_no_result_could_refer_to_it(tag: int, name: str, uid: bytes) -> None:
    with pytest.raises(UnreadableFilm, match=f"the {name} of the DICOM header is no UID"):
        facts_of(with_raw_elements(modality_film(BLACK), {tag: ("UI", uid)}))


def test_uids_as_archives_have_them_are_taken() -> None:
    for uid in (b"1.2.03.4", b"2.25." + b"9" * 39, b"1.2.3 ", b"1.2.3\0"):
        film = with_raw_elements(modality_film(BLACK), {0x00080018: ("UI", uid)})
        assert facts_of(film).sop_instance == uid.decode().strip("\0 ")


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2", EXPLICIT])
def test_a_name_that_no_result_could_hold_is_refused_without_quoting_it(syntax: str) -> None:
    vr = "UN" if syntax == EXPLICIT else "PN"
    for size, refused in ((2**16 - 2, False), (2**16, True)):
        name = (b"Doe^Jane" * size)[:size]
        film = with_raw_elements(modality_film(BLACK, 1, syntax), {0x00100010: (vr, name)})
        if refused:
            with pytest.raises(UnreadableFilm, match=r"header's \(0010,0010\) has more than 65,534 bytes") as caught:
                facts_of(film)
            assert "Doe" not in str(caught.value)
        else:
            assert len(read_header(film)[1][0x00100010]) == size


def test_what_is_no_dicom_is_refused_without_quoting_it() -> None:
    with pytest.raises(UnreadableFilm, match=r"x\.dcm: not a DICOM file") as caught:
        facts_of(b"Doe^Jane" * 40, source="x.dcm")
    assert "Doe" not in str(caught.value)


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[node]\nfolder = 'q'\nae_titel = 'X'", "no key of .node. named 'ae_titel'; the nearest is 'ae_title'"),
        ("[nodes]\nfolder = 'q'", "no table named 'nodes'; the nearest is 'node'"),
        ("[node]\nfolder = 'q'\n[[rule]]\nname = 'a'\nmodalities = ['DX']", "the nearest is 'modality'"),
        ("[node]\nfolder = 'q'\n[[rule]]\nname = 'a'\nsend_to = ['pax']", "no destination named 'pax'; there is none"),
        ("[node]\nfolder = 'q'\nport = 'x'", "node.port = 'x': must be a whole number"),
        ("[node]\nfolder = 'q'\nport = 70000", "a port is 0 to 65535"),
        ("[node]\nfolder = 'q'\nport = true", "must be a whole number"),
        ("[node]\nport = 1", "folder must be given"),
        ("[node]\nfolder = 'q'\nae_title = 'A123456789012345X'", "1 to 16 ASCII characters"),
        ("[node]\nfolder = 'q'\n[limits]\nfilm = 0", "limits.film = 0: must be above 0"),
        ("[node]\nfolder = 'q'\n[[destination]]\nname = 'p'", "give either host, port and ae_title, or url"),
        ("[node]\nfolder = 'q'\n[[destination]]\nname = 'p'\nurl = 'file:///x'", "not an http or https address"),
        ("[node]\nfolder = 'q'\n[[rule]]\nname = 'a'", "send_to names no destination"),
        ("[node]\nfolder = 'q'\n[[rule]]\nname = 'a'\nanswer = false\nage = [5, 2]", "two rising numbers"),
        ("[node]\nfolder = 'q'\n[peer]\nae_title = 'X'", r"write it as \[\[peer\]\]"),
        ("[node", "not TOML"),
    ],
)
def test_settings_that_make_no_sense_are_refused_with_the_fact(text: str, said: str) -> None:
    with pytest.raises(SettingsInvalid, match=said) as caught:
        NodeSettings.from_toml(text, "node.toml")
    assert str(caught.value).startswith("node.toml: ")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "pacs.example"])
def test_a_node_that_others_reach_needs_a_list_of_callers_or_client_certificates(host: str, tmp_path: Path) -> None:
    node = f'host = "{host}"'
    with pytest.raises(SettingsInvalid, match="nothing limits who may call"):
        settings(tmp_path, 1, node=node)
    assert settings(tmp_path, 1, '[[peer]]\nae_title = "PACS"', node=node).host == host
    with pytest.raises(SettingsInvalid, match="nothing limits who may call"):
        settings(tmp_path, 1, '[tls]\ncertificate = "c"\nkey = "k"', node=node)
    assert settings(tmp_path, 1, '[tls]\ncertificate = "c"\nkey = "k"\nclient_authority = "a"', node=node).tls


def test_paths_are_taken_from_the_folder_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(settings_text(Path("queue"), 1, '[tls]\ncertificate = "c.pem"\nkey = "k.pem"'))
    read = NodeSettings.read(tmp_path / "node.toml")
    assert read.folder == tmp_path / "queue"
    assert read.tls is not None
    assert read.tls.key == tmp_path / "k.pem"
