"""A text that names pretrained weights, and the licence that they have."""

import json

import pytest
from helpers.weight_files import timm_shapes, write_file

from vit_search.config.weight_licences import licence_beside, licence_warning
from vit_search.config.weight_sources import WeightSource, parse
from vit_search.errors import SpecError

HEX = "0123456789abcdef" * 4
COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("weights/a.safetensors", WeightSource("file", "weights/a.safetensors")),
        ("~/a.safetensors", WeightSource("file", "~/a.safetensors")),
        ("./tim:a", WeightSource("file", "./tim:a")),
        ("a@b", WeightSource("file", "a@b")),
        (f"a.safetensors#sha256={HEX}", WeightSource("file", "a.safetensors", sha256=HEX)),
        ("https://here.example/a.safetensors", WeightSource("url", "https://here.example/a.safetensors")),
        (f"s3://bucket/a.safetensors#sha256={HEX}", WeightSource("url", "s3://bucket/a.safetensors", sha256=HEX)),
        ("models:/digits@champion", WeightSource("models", "digits", "@champion")),
        (f"models:/digits/3#sha256={HEX}", WeightSource("models", "digits", "3", HEX)),
        ("timm:vit_small_patch16_224.augreg_in21k", WeightSource("timm", "vit_small_patch16_224.augreg_in21k")),
        (f"timm:vit.a@{COMMIT}#sha256={HEX}", WeightSource("timm", "vit.a", COMMIT, HEX)),
        ("hf:org/repo", WeightSource("hf", "org/repo")),
        ("hf:org/repo@refs/pr/1", WeightSource("hf", "org/repo", "refs/pr/1")),
        ("hf:org/repo/large/a.safetensors@v1.0", WeightSource("hf", "org/repo", "v1.0", file="large/a.safetensors")),
    ],
)
def test_a_source_is_read_and_written_again(text, source):
    assert parse(text) == source
    assert str(source) == text


def test_a_sha256_may_be_written_in_capitals_and_a_file_as_a_url():
    assert parse(f"a#sha256={HEX.upper()}").sha256 == HEX
    assert parse("file:///a%20b.safetensors") == WeightSource("file", "/a b.safetensors")


def test_only_a_commit_cannot_mean_other_weights():
    exact = [parse(text).is_exact for text in (f"hf:o/r@{COMMIT}", "models:/digits/3", "hf:o/r@main", "hf:o/r", "models:/digits@champion")]
    assert exact == [True, False, False, False, False]


def test_timms_models_are_repositories_of_its_organisation():
    assert parse("timm:vit_tiny.a").repository == "timm/vit_tiny.a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"model\.pretrained: '' names no weights; write FILE\.safetensors, a URL, models:/NAME@ALIAS, timm:NAME or hf:ORG/REPO"),
        ("a\nb", "a source is one line"),
        ("tim:vit_small", r"unknown kind of source 'tim'; did you mean timm\? For a file of this name, write \./tim:vit_small"),
        ("model:/digits@champion", r"did you mean models\?"),
        ("huggingface:org/repo", r"did you mean hf\?"),
        ("hf-hub:org/repo", r"did you mean hf\?"),
        ("hf://org/repo", "unknown protocol hf://; write hf:org/repo"),
        ("htps://a/b.safetensors", r"unknown protocol htps://; did you mean https\?"),
        ("https://a/b.pth", "a pickle, .*convert-weights"),
        ("https://a/org/repo", r"names no \.safetensors file; .* write hf:ORG/REPO"),
        ("https://a/{b,c}.safetensors", "braces"),
        ("a#sha256=12", "needs 64 hexadecimal digits and has 2 characters"),
        (f"a#sha256={HEX[:-1]}g", "64 hexadecimal digits and has other characters"),
        (f"#sha256={HEX}", "64 hexadecimal digits"),
        ("models:/digits", "names no registered version; write models:/NAME@ALIAS or models:/NAME/3"),
        ("models:digits@champion", "names no registered version"),
        ("models:/../digits/3", "names no registered version"),
        ("timm:", r"^model\.pretrained: timm: '' is no name of a timm model; write timm:NAME with a name of timm"),
        ("hf:", r"^model\.pretrained: hf: '' names no repository; write hf:ORG/REPO"),
        ("models:", r"^model\.pretrained: models: names no registered version"),
        ("tim:", r"^model\.pretrained: tim: unknown kind of source 'tim'; did you mean timm\? For a file of this name, write \./tim:\.$"),
        ("timm:org/repo", "'org/repo' is no name of a timm model; .*or hf:ORG/REPO"),
        ("timm:../repo", "no name of a timm model"),
        ("hf:repo", "'repo' names no repository; write hf:ORG/REPO"),
        ("hf:/etc/passwd", "names no repository"),
        ("hf:org/../../etc", "names no repository"),
        ("hf:org/..", "names no repository"),
        ("hf:org/repo/../a.safetensors", "names no repository"),
        ("hf:org/repo/pytorch_model.bin", r"pytorch_model\.bin is a pickle, .*convert-weights"),
        ("hf:org/repo/config.json", r"config\.json is no \.safetensors file"),
        ("hf:org/repo@", "'' is no revision"),
        ("hf:org/repo@../main", r"'\.\./main' is no revision"),
        ("hf:org/repo@a?b", r"'a\?b' is no revision"),
    ],
)
def test_a_source_that_cannot_be_read_is_one_line_with_the_mend(text, message):
    with pytest.raises(SpecError, match=message) as raised:
        parse(text)
    assert "\n" not in str(raised.value)


def test_a_password_in_a_url_is_never_repeated():
    with pytest.raises(SpecError, match=r"SOURCE: the https URL has a user name or a password") as raised:
        parse("https://ann:secret@here.example/a.safetensors", key="SOURCE")
    assert "secret" not in str(raised.value)


def test_a_licence_is_read_from_the_file_its_settings_or_its_card(tmp_path):
    path = write_file(tmp_path / "model.safetensors", timm_shapes())
    assert licence_beside(path) is None
    (tmp_path / "README.md").write_text("---\ntags:\n- timm\nlicense: other\nlicense_name: dinov3-license\n---\n# A model\nlicense: mit\n")
    assert licence_beside(path) == "dinov3-license"
    (tmp_path / "README.md").write_text("---\nlicense: 'cc-by-4.0'\n---\n")
    assert licence_beside(path) == "cc-by-4.0"
    (tmp_path / "README.md").write_bytes(b"---\r\nlicense: cc-by-nc-4.0\r\n---\r\n")
    assert licence_beside(path) == "cc-by-nc-4.0"
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": {"license": "apache-2.0"}}))
    assert licence_beside(path) == "apache-2.0"
    assert licence_beside(write_file(path, timm_shapes(), metadata={"license": "mit"})) == "mit"


@pytest.mark.parametrize(
    "licence",
    [
        "cc-by-nc-4.0",
        "CC BY-NC-SA 4.0",
        "intel-research",
        "fair-noncommercial-research-license",
        "apple-amlr",
        "Attribution-NonCommercial 4.0",
    ],
)
def test_a_licence_that_forbids_commercial_use_is_warned_of(licence):
    assert licence_warning("hf:org/repo@main", licence) == (
        f"hf:org/repo@main: the licence of these weights is {licence}, which forbids commercial use; read it before you use the model."
    )


@pytest.mark.parametrize(
    "licence", ["apache-2.0", "mit", "cc-by-4.0", "bsd-3-clause", "Academic Free License v3.0", "dinov3-license", "cc-by-sa-4.0"]
)
def test_other_licences_are_not_warned_of(licence):
    assert licence_warning("timm:vit_small.a", licence) is None


@pytest.mark.parametrize("licence", [None, "other", "unknown"])
def test_a_missing_licence_is_warned_of_but_for_your_own_models(licence):
    warning = licence_warning(f"weights/a.safetensors#sha256={HEX}", licence)
    assert warning is not None and warning.startswith("weights/a.safetensors: nothing states the licence")
    assert licence_warning("models:/digits@champion", licence) is None
    assert licence_warning("models:/digits@champion", "cc-by-nc-4.0") is not None
